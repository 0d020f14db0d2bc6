"""Replace a file as a whole: a reader sees the old text or the new one, and never a part."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft_of(path: Path, text: str, mode: int) -> Iterator[Path]:
    """Make a file beside `path`, with this text and mode, for the block to rename; remove it if the block does not."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name.lstrip('.')}.")
    os.close(descriptor)
    draft = Path(name)
    try:
        draft.write_bytes(text.encode("utf-8", "surrogateescape"))
        draft.chmod(mode & 0o7777)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def put(path: Path, text: str, mode: int) -> bool:
    """Write `text` to `path` with this mode; whether that changed anything. A link is replaced by a file."""
    with suppress(FileNotFoundError):
        same_text = path.read_bytes() == text.encode("utf-8", "surrogateescape")
        if same_text and not path.is_symlink() and path.stat().st_mode & 0o7777 == mode:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path, text, mode) as draft:
        draft.rename(path)
    return True
