"""The bare repositories of a receiver: where each has its place, and how one is made and taken away."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from nap_receiver.app import app_name
from nap_receiver.errors import NapError
from nap_receiver.state import State


def repository_at(path: str, state: State) -> Path:
    """The place of what a remote's URL calls `hello`, `/hello.git` or `team/hello`, below the repositories.

    Raises `NapError` for what has none there, and for a link: nothing leads out of the repositories.
    """
    relative = PurePosixPath(path.removeprefix("/").removeprefix("~/"))
    parts = [*relative.parts[:-1], relative.name.removesuffix(".git")]
    if relative.is_absolute() or any(not p or p.startswith((".", "-")) or not p.isprintable() for p in parts):
        raise NapError(f"{path[:80]!a} is no name of an app", advice="Push to ssh://…/APP or ssh://…/TEAM/APP.")
    repository = state.repositories.joinpath(*parts[:-1], f"{parts[-1]}.git")
    base = state.repositories.resolve()
    if repository.resolve() != base / repository.relative_to(state.repositories):
        raise NapError(f"{path[:80]!a} is a link on this host, and the gate follows none")
    return repository


def name_of(repository: Path, state: State) -> str:
    """What a repository is called on every receiver: its path below the repositories, `team/shop`; else all of it."""
    if repository.is_relative_to(state.repositories):
        return str(repository.relative_to(state.repositories)).removesuffix(".git")
    return str(repository)


def repository_called(name: str, state: State) -> Path:
    """The repository of which `name_of` is `name`."""
    return Path(name) if name.startswith("/") else state.repositories / f"{name}.git"


def repository_of(app: str, state: State) -> Path | None:
    """The repository of `app` below the repositories of this host, or None."""
    for folder, below, _ in os.walk(state.repositories):
        for repository in [Path(folder, name) for name in below if name.endswith(".git")]:
            with suppress(NapError):  # one that the operator keeps there, of a name that no app can have
                if app_name(repository, state, {}) == app:
                    return repository
        below[:] = [name for name in below if not name.endswith(".git")]
    return None


def create(repository: Path) -> None:
    """A bare repository; nobody sees it half made, and one that is there is left as it is."""
    import tempfile  # what only the first push needs

    while not repository.is_dir():
        repository.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # `discard_empty` of another app was quicker
            draft = Path(tempfile.mkdtemp(prefix=".creating-", dir=repository.parent))
            subprocess.run(["git", "init", "--quiet", "--bare", "--template=", str(draft)], check=True)
            draft.chmod(0o755)
            try:
                draft.rename(repository)
            except OSError:
                shutil.rmtree(draft)
                if not repository.is_dir():  # else another push created it meanwhile
                    raise


@contextmanager
def in_use(repository: Path) -> Iterator[None]:
    """Nobody takes the repository away during the block."""
    folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)


def discard_empty(repository: Path, state: State) -> bool:
    """Remove a repository that holds no ref and that nobody pushes to; whether it was one."""
    folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if has_refs(repository):
            return False
        remove(repository, state)
    except BlockingIOError:
        return False
    finally:
        os.close(folder)
    return True


def remove(repository: Path, state: State) -> None:
    """Remove a repository, and the folders above it that hold no other."""
    if repository.is_dir():
        shutil.rmtree(repository)
    with suppress(OSError):  # the first that is not empty
        for team in repository.parents[: -len(state.repositories.parts)]:
            team.rmdir()


def has_refs(repository: Path) -> bool:
    """Whether anything was ever pushed to the repository, and is still there."""
    command = ["git", f"--git-dir={repository}", "for-each-ref", "--count=1"]
    return bool(subprocess.run(command, capture_output=True, check=True).stdout)


def collect_garbage(repository: Path) -> None:
    """In the background, and only where enough has gathered (git-gc(1), `--auto`)."""
    command = ["git", f"--git-dir={repository}", "gc", "--auto", "--quiet"]
    null = subprocess.DEVNULL
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
