"""The pushed commit's tree as a build context: a tar stream made straight from the object store.

No work tree and no temporary copy. dulwich walks the trees, so that what `.dockerignore` names is never read; the blobs
come through `git cat-file --batch` in pieces, because dulwich holds a blob whole (shared/libraries.md, "Reading the
commit"). dulwich's own `archive.tar_stream` breaks symlinks, odd names and submodules (the same, finding 2).
"""

import posixpath
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from docker.utils.build import PatternMatcher
from dulwich.errors import ChecksumMismatch, FileFormatException, NotTreeError
from dulwich.objects import Blob, Commit, SubmoduleEncountered, Tag, Tree
from dulwich.repo import Repo

from nap_receiver.errors import NapError

MANIFESTS = ("Procfile", "app.json")
"""Files at the top that say what there is to the app beside its image."""

_DOCKERIGNORE = ".dockerignore"
_READ = (*MANIFESTS, _DOCKERIGNORE)
_PIECE_BYTES = 1 << 20
_ASKED_AT_ONCE = 512  # object names (41 bytes a line) that fit into a pipe (64 KB) before the first answer is read
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_POINTER_BYTES = 1024  # "must be less than 1024 bytes" (git-lfs, docs/spec.md)
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Leaf:
    """A file, symbolic link, directory or submodule of the tree; `path` is bytes because git's names are."""

    path: bytes
    mode: int
    object_name: str

    @property
    def is_submodule(self) -> bool:
        return stat.S_IFMT(self.mode) == 0o160000


@dataclass
class Checkout:
    """The tree of one commit, with everything that `.dockerignore` names left out."""

    repository: Path
    commit: str
    time: int
    leaves: list[Leaf]
    lfs_pointers: list[str]
    manifests: dict[str, bytes] = field(default_factory=dict)
    """The contents of `MANIFESTS`, by name, of those that are there."""

    @property
    def submodules(self) -> list[str]:
        """The paths of submodules, which arrive as empty directories."""
        return [_shown(leaf.path) for leaf in self.leaves if leaf.is_submodule]

    def tar(self) -> Iterator[bytes]:
        """The build context, in pieces of at most 1 MiB; fills `lfs_pointers` on its way.

        A tar that stops early at an entry's end is a valid one to the engine, so whatever goes wrong in here is raised
        inside the upload, which aborts it (shared/libraries.md, finding 4).
        """
        with _Blobs(self.repository) as blobs:
            for batch in _batches(self.leaves):
                blobs.ask([leaf.object_name for leaf in batch if _has_content(leaf)])
                for leaf in batch:
                    yield from self._entry(leaf, blobs)
        yield bytes(2 * _BLOCK)

    def _entry(self, leaf: Leaf, blobs: "_Blobs") -> Iterator[bytes]:
        header = tarfile.TarInfo(leaf.path.decode("utf-8", "surrogateescape"))
        header.mtime = self.time
        if not _has_content(leaf):
            header.type, header.mode = tarfile.DIRTYPE, 0o755
            yield _header(header)
            return
        size = blobs.next_size(leaf.object_name)
        if stat.S_ISLNK(leaf.mode):
            header.type, header.mode = tarfile.SYMTYPE, 0o777
            header.linkname = b"".join(blobs.content(size)).decode("utf-8", "surrogateescape")
            yield _header(header)
            return
        header.size, header.mode = size, 0o755 if leaf.mode & 0o100 else 0o644
        yield _header(header)
        for piece in blobs.content(size):
            if size < _LFS_POINTER_BYTES and piece.startswith(_LFS_POINTER):
                self.lfs_pointers.append(_shown(leaf.path))
            yield piece
        yield bytes(-size % _BLOCK)


def check_out(path: Path, commit: str, app: str) -> Checkout:
    """The commit's tree, ready to be streamed. Raises `NapError` when it is no commit, or has no Dockerfile."""
    with Repo(str(path)) as repository, _readable(path):
        found = _commit(repository, commit)
        tree = repository[found.tree]
        assert isinstance(tree, Tree)
        top = {name: (mode, sha) for name, mode, sha in tree.iteritems()}
        if b"Dockerfile" not in top or stat.S_ISDIR(top[b"Dockerfile"][0]):
            raise NapError(
                f"{app}: commit {commit[:7]} has no Dockerfile at its top",
                advice=[
                    "Add a file named Dockerfile that says how to build and start the app, for example:",
                    '    FROM debian:bookworm-slim / COPY . /app / EXPOSE 8080 / CMD ["/app/serve"]',
                    "then: git add Dockerfile && git commit -m 'Add a Dockerfile' && git push nap",
                ],
            )
        files = {name: data for name in _READ if (data := _file(repository, tree, name, app)) is not None}
        ignored = _ignored(files.pop(_DOCKERIGNORE, b""))
        leaves = list(_walk(repository, tree, b"", ignored))
        return Checkout(path, found.id.decode(), found.commit_time, leaves, [], files)


@contextmanager
def _readable(repository: Path) -> Iterator[None]:
    """Turn whatever dulwich raises over a missing or damaged object into a sentence."""
    try:
        yield
    except (KeyError, FileFormatException, ChecksumMismatch, zlib.error) as error:
        raise _unreadable(f"an object ({error})", repository) from error


def _unreadable(what: str, repository: Path) -> NapError:
    return NapError(
        f"{what} cannot be read from {repository}",
        advice="Ask the operator to run `git fsck` there; nothing was built.",
    )


def _commit(repository: Repo, name: str) -> Commit:
    try:
        found = repository[name.encode()]
        while isinstance(found, Tag):
            found = repository[found.object[1]]
    except (KeyError, ValueError) as error:
        raise NapError(f"commit {name[:7]} is not in {repository.path}", advice="Push again.") from error
    if not isinstance(found, Commit):
        raise NapError(f"{name[:7]} is no commit", advice="Push a branch of commits.")
    return found


def _ignored(content: bytes) -> PatternMatcher | None:
    """What `.dockerignore` says; the engine itself does not look at it (shared/libraries.md, finding 3)."""
    lines = content.decode("utf-8-sig", "surrogateescape").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return PatternMatcher([*patterns, "!Dockerfile"]) if patterns else None


def _file(repository: Repo, tree: Tree, name: str, app: str) -> bytes | None:
    """The content of a file at the top, or of what is linked to there; None where there is nothing of that name.

    Raises `NapError` for what is no file: it would be left out, and nobody know.
    """
    path, what = name.encode(), "it is a directory or a submodule"
    if path not in tree:
        return None
    mode, sha = tree[path]
    if stat.S_ISLNK(mode):
        blob = repository[sha]
        assert isinstance(blob, Blob)
        what = f"it is a link to {_shown(blob.data)[:80]}, and that is no file of this commit"
        try:
            # Or the commit's own directories would be taken for those at the root of a machine.
            target = b".." if blob.data.startswith(b"/") else posixpath.normpath(blob.data)
            mode, sha = tree.lookup_path(repository.__getitem__, target)
        except (KeyError, NotTreeError, SubmoduleEncountered):  # also for what is above the top
            mode = 0
    if not stat.S_ISREG(mode):
        raise NapError(
            f"{app}: {name}: {what}",
            advice=f"Put a file named {name} in its place, commit, and push again; nothing was built.",
        )
    blob = repository[sha]
    assert isinstance(blob, Blob)
    return bytes(blob.data)


def _walk(repository: Repo, tree: Tree, above: bytes, ignored: PatternMatcher | None) -> Iterator[Leaf]:
    for name, mode, object_name in tree.iteritems():
        path = above + name
        out = ignored is not None and ignored.matches(path.decode("utf-8", "surrogateescape"))
        if stat.S_ISDIR(mode):
            if out and not _kept_below(path, ignored):
                continue
            if not out:
                yield Leaf(path + b"/", mode, object_name.decode())
            below = repository[object_name]
            assert isinstance(below, Tree)
            yield from _walk(repository, below, path + b"/", ignored)
        elif not out:
            yield Leaf(path, mode, object_name.decode())


def _kept_below(path: bytes, ignored: PatternMatcher | None) -> bool:
    """Whether an exception (`!dir/file`, `!**/file`) may bring something back from below an ignored directory."""
    directory = path.decode("utf-8", "surrogateescape") + "/"
    exceptions = [p.cleaned_pattern for p in ignored.patterns if p.exclusion] if ignored else []
    return any(e.startswith(directory) or _has_wildcard_before(e, directory) for e in exceptions)


def _has_wildcard_before(pattern: str, directory: str) -> bool:
    depth = directory.count("/")
    return "/" in pattern and any(c in part for part in pattern.split("/")[:depth] for c in "*?[")


def _has_content(leaf: Leaf) -> bool:
    return not leaf.is_submodule and not leaf.path.endswith(b"/")


def _batches(leaves: Sequence[Leaf]) -> Iterator[Sequence[Leaf]]:
    for start in range(0, len(leaves), _ASKED_AT_ONCE):
        yield leaves[start : start + _ASKED_AT_ONCE]


def _header(info: tarfile.TarInfo) -> bytes:
    # GNU's format carries names of any bytes and any length; pax allows only UTF-8.
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


class _Blobs:
    """The contents of objects, one after another, through one `git cat-file --batch`."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def __enter__(self) -> "_Blobs":
        self._process = subprocess.Popen(
            ["git", f"--git-dir={self._repository}", "cat-file", "--batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=_PIECE_BYTES,
        )
        assert self._process.stdin and self._process.stdout
        self._questions: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._questions.close()
        self._answers.close()
        self._process.wait()

    def ask(self, object_names: Sequence[str]) -> None:
        self._questions.write("".join(f"{name}\n" for name in object_names).encode())
        self._questions.flush()

    def next_size(self, object_name: str) -> int:
        """The size in bytes of the object that comes next, which must be the one named."""
        answer = self._answers.readline().split()
        if len(answer) != 3 or answer[0] != object_name.encode() or answer[1] != b"blob":
            raise _unreadable(f"object {object_name[:12]}", self._repository)
        return int(answer[2])

    def content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._answers.read(min(left, _PIECE_BYTES))
            if not piece:
                raise NapError(f"git stopped while reading {self._repository}", advice="Push again; nothing was built.")
            left -= len(piece)
            yield piece
        self._answers.read(1)
