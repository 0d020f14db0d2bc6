"""Files, folders and sockets that another account could use."""

import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def open_paths(folder: Path, besides: tuple[Path, ...] = ()) -> Iterator[str]:
    """The files, folders and sockets below `folder` that another account could use, with their modes."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink() or any(path.is_relative_to(each) for each in besides):
            continue
        if path.lstat().st_mode & OTHERS:
            yield f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(folder)}"
