"""Bare repositories of a receiver: where they are, and how they are created and removed."""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from nap_receiver.core.bounded import bounded
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.git.git import git
from nap_receiver.model.app import app_name


def repository_at(path: str, state: State) -> Path:
    """Return the repository for `hello`, `/hello.git` or `team/hello` in a remote's URL.

    Raises `NapError` for an invalid path, and for a symbolic link: nothing may lead out of the repositories.
    """
    relative = PurePosixPath(path.removeprefix("/").removeprefix("~/"))
    parts = [*relative.parts[:-1], relative.name.removesuffix(".git")]
    if relative.is_absolute() or any(not p or p.startswith((".", "-")) or not p.isprintable() for p in parts):
        raise NapError(f"{path[:80]!a} is not a name of an app", advice="Push to ssh://…/APP or ssh://…/TEAM/APP.")
    repository = state.repositories.joinpath(*parts[:-1], f"{parts[-1]}.git")
    base = state.repositories.resolve()
    if repository.resolve() != base / repository.relative_to(state.repositories):
        raise NapError(f"{path[:80]!a} is a symbolic link on this host; the gate does not follow links")
    return repository


def name_of(repository: Path, state: State) -> str:
    """Return the name of a repository on every receiver: its path below the repositories, `team/shop`; else its whole
    path."""
    if repository.is_relative_to(state.repositories):
        return str(repository.relative_to(state.repositories)).removesuffix(".git")
    return str(repository)


def repository_called(name: str, state: State) -> Path:
    """Return the repository whose `name_of` is `name`."""
    return Path(name) if name.startswith("/") else state.repositories / f"{name}.git"


def repository_of(app: str, state: State) -> Path | None:
    """Return the repository of `app` below the repositories of this host, or None."""
    for folder, below, _ in os.walk(state.repositories):
        for repository in [Path(folder, name) for name in below if name.endswith(".git")]:
            with suppress(NapError):  # one that the operator keeps there, of a name that no app can have
                if app_name(repository, state, {}) == app:
                    return repository
        below[:] = [name for name in below if not name.endswith(".git")]
    return None


OBJECT_FORMATS = ("sha1", "sha256")
"""What a repository's objects are named by (git-init(1), `--object-format`). Both ends of a push must have the same."""


def object_format_of(repository: Path) -> str:
    """Return the object format of a repository, one of `OBJECT_FORMATS`."""
    command = git("rev-parse", "--show-object-format", repository=repository)
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def create(repository: Path, object_format: str = OBJECT_FORMATS[0]) -> None:
    """Create a bare repository atomically; an existing one is not changed."""
    import tempfile  # what only the first push needs

    while not repository.is_dir():
        repository.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # `discard_empty` of another app was quicker
            draft = Path(tempfile.mkdtemp(prefix=".creating-", dir=repository.parent))
            options = ["--quiet", "--bare", "--template=", f"--object-format={object_format}"]
            subprocess.run(git("init", *options, str(draft)), check=True)
            try:
                draft.rename(repository)
            except OSError:
                _remove_tree(draft)
                if not repository.is_dir():  # else another push created it meanwhile
                    raise


@contextmanager
def in_use(repository: Path) -> Iterator[None]:
    """Prevent the removal of the repository during the block."""
    folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH)
        yield
    finally:
        os.close(folder)


def discard_incoming(repository: Path) -> None:
    """Remove the objects of pushes that a signal ended, if nobody pushes now: git leaves them."""
    folder = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(BlockingIOError):  # the next one does it
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in repository.glob("objects/tmp_objdir-incoming-*"):
                _remove_tree(left)
    finally:
        os.close(folder)


def discard_empty(repository: Path, state: State) -> bool:
    """Remove a repository without refs to which nobody pushes; return whether it was removed."""
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
    """Remove a repository, and its parent folders that have no other repository."""
    if repository.is_dir():
        _remove_tree(repository)
    _remove_empty_above(repository, state)


def _remove_tree(folder: Path) -> None:
    from shutil import rmtree  # libraries of compression, which no other connection needs

    rmtree(folder)


def move(repository: Path, target: Path, state: State) -> None:
    """Move a repository, and remove its parent folders that have no other. Raises `NapError` if it fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        repository.rename(target)
    except OSError as error:
        raise NapError(f"{repository} cannot become {target}: {error.strerror}") from error
    _remove_empty_above(repository, state)


def _remove_empty_above(repository: Path, state: State) -> None:
    with suppress(OSError):  # the first that is not empty
        for team in repository.parents[: -len(state.repositories.parts)]:
            team.rmdir()


def has_refs(repository: Path) -> bool:
    """Return whether the repository has any ref."""
    command = git("for-each-ref", "--count=1", repository=repository)
    return bool(subprocess.run(command, capture_output=True, check=True).stdout)


def collect_garbage(repository: Path, environment: Mapping[str, str], memory: int) -> None:
    """Run git-gc(1) with `--auto` in the background, with this memory limit in bytes."""
    command = bounded(git("gc", "--auto", "--quiet", repository=repository), memory=memory)
    null = subprocess.DEVNULL
    subprocess.Popen(command, env=environment, stdin=null, stdout=null, stderr=null, start_new_session=True)
