"""Replace a file atomically: a reader sees the old content or the new content, never a part."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft_of(path: Path, content: str | bytes, mode: int) -> Iterator[Path]:
    """Create a file beside `path` with this content and mode, for the block to rename.

    Text is written as UTF-8, and bytes that Python could not decode as they were. The file is removed if the block does
    not rename it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name.lstrip('.')}.")
    os.close(descriptor)
    draft = Path(name)
    try:
        draft.write_bytes(_bytes(content))
        draft.chmod(mode & 0o7777)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def put(path: Path, content: str | bytes, mode: int) -> bool:
    """Write `content` to `path` with this mode; return whether anything changed. A link is replaced by a file."""
    with suppress(FileNotFoundError):
        same_content = path.read_bytes() == _bytes(content)
        if same_content and not path.is_symlink() and path.stat().st_mode & 0o7777 == mode:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path, content, mode) as draft:
        draft.rename(path)
    return True


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
