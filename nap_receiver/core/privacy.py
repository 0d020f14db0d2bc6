"""Keep nap's files private: no other account reads or writes them.

Each program of nap starts with `keep_private`. `nap up` closes the state directory itself.
"""

import os
import stat
from pathlib import Path

from nap_receiver.core.paths import State

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_private() -> None:
    """Set the umask of this process and of its children so that no other account can read or write their files
    (umask(2))."""
    os.umask(_OTHERS)


def umask_of(folder: Path) -> int:
    """Return the umask for files in `folder`: as open to other accounts as the folder is."""
    return ~folder.stat().st_mode & (stat.S_IRWXU | _OTHERS) if folder.exists() else _OTHERS


def is_private(folder: Path) -> bool:
    """Return whether the mode of `folder` excludes other accounts; true if it does not exist."""
    return not folder.exists() or not folder.stat().st_mode & _OTHERS


def close(state: State) -> None:
    """Create the state directory with mode 0700. If it was open, close it first, then each file and folder in it.

    The engine's own data keep their modes: containers see them.
    """
    state.root.mkdir(parents=True, exist_ok=True)
    if is_private(state.root):
        return
    state.root.chmod(stat.S_IRWXU)
    engines = {state.root / "engine", state.run / "engine"}
    for folder, below, files in os.walk(state.root):
        below[:] = [name for name in below if Path(folder, name) not in engines]
        for path in (Path(folder, name) for name in (*below, *files)):
            _close(path)


def _close(path: Path) -> None:
    """Remove the rights of others from a file or a folder. Links and sockets are skipped."""
    if not stat.S_ISREG(path.lstat().st_mode) and not stat.S_ISDIR(path.lstat().st_mode):
        return
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        os.fchmod(opened, os.fstat(opened).st_mode & stat.S_IRWXU)
    finally:
        os.close(opened)
