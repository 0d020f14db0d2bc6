"""Read a commit's tree for a build context, in a separate process: `python -m nap_receiver.git.tree`.

The input is untrusted. So git reports the size of each object before it is read, no object larger than the settings
allow is read, and `checkout`, which starts this process, limits its memory and processor time.

Arguments: the repository, the commit, the app, and `CommitSettings` in JSON. Standard output: a line of JSON; then,
after one line of standard input, the entries of a tar, without the final blocks. Standard error: JSON with the final
results or, with exit status 1, the message and advice of an error.
"""

import json
import posixpath
import re
import stat
import subprocess
import sys
import tarfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from dulwich.errors import FileFormatException
from dulwich.objects import parse_tree

from nap_receiver.core.bounded import killed
from nap_receiver.core.errors import NapError, some
from nap_receiver.core.process import piped, run
from nap_receiver.git.checkout import DOCKERFILE, MANIFESTS
from nap_receiver.git.dockerignore import NAME as DOCKERIGNORE
from nap_receiver.git.dockerignore import Patterns, patterns_of
from nap_receiver.git.git import git
from nap_receiver.git.no_dockerfile import DOCKERFILES, what_to_do

if TYPE_CHECKING:  # its libraries would be a third of the time in which this process starts
    from nap_receiver.core.settings import CommitSettings

_PIECE_BYTES = 1 << 20
_ASKED_AT_ONCE = 512  # questions (50 to 74 bytes each) that fit into a pipe (64 KB) before the first answer is read
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_POINTER_BYTES = 1024  # "must be less than 1024 bytes" (git-lfs, docs/spec.md)
_BLOCK = tarfile.BLOCKSIZE
_NAME_BYTES = 255  # NAME_MAX (limits.h): no file system of Linux has longer names
_PATH_BYTES = 4095  # PATH_MAX without its NUL: nor can longer paths be opened
_ENTRY_BYTES = 300  # of a tree object: mode, name and object name of one entry, at most
_LARGEST = 8**11 - 1  # number that an octal field of a tar holds: 8 GiB, or in seconds the year 2242
_SHOWN_CHARACTERS = 200
_FIRST_BYTES = 256  # BINPRM_BUF_SIZE (linux/binfmts.h): so much of a script's first line counts
_FOLDERS_LOOKED_INTO = 50  # for a Dockerfile, where the top has none
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHELL_SCRIPT = re.compile(rb"(?:.*\.(?:sh|bash|ksh)|(?:.*[/_-])?entrypoint)", re.DOTALL)

_COMMIT = re.compile(rb"tree ([0-9a-f]{40,64})\n(?:.+\n)*?committer [^\n]*> (\d{1,15}) [+-]\d{4}\n")
_TREE = re.compile(rb"tree ([0-9a-f]{40,64})\n")


class Leaf(NamedTuple):
    """A file, symbolic link, directory or submodule of the tree; `path` is bytes because git's names are."""

    path: bytes
    mode: int
    object_name: bytes
    size: int = 0
    """Of the object, in bytes; -1 where it is missing, or of another kind. A submodule has none."""

    @property
    def has_content(self) -> bool:
        return stat.S_ISREG(self.mode) or stat.S_ISLNK(self.mode)


class _Objects:
    """Reads objects of a repository through one `git cat-file`, which reports the size of an object before its
    content."""

    def __init__(self, repository: str, app: str, bounds: "CommitSettings") -> None:
        self._repository, self._app, self._bounds = repository, app, bounds
        # Large files are passed on in pieces where git has them whole, and packs are mapped in small parts.
        options = {"core.bigFileThreshold": "1m", "core.packedGitWindowSize": "16m", "core.packedGitLimit": "128m"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            git(*settings, "cat-file", "--batch-command", "--buffer", repository=repository),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=_PIECE_BYTES,
        )
        self._questions: IO[bytes] = piped(self._process.stdin)
        self._answers: IO[bytes] = piped(self._process.stdout)

    def kinds(self, names: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
        """Return the type of each object (`blob`, …) and its size in bytes; an empty type for a missing object."""
        for start in range(0, len(names), _ASKED_AT_ONCE):
            asked = names[start : start + _ASKED_AT_ONCE]
            self._ask(b"info", asked)
            for name in asked:
                yield self._answer(name)[1:]

    def found(self, name: bytes) -> tuple[bytes, bytes, int]:
        """Return name, type and size of the object that `name` names, such as `<name>^{commit}`."""
        self._ask(b"info", [name])
        return self._answer(name)

    def ask_for_contents(self, names: Sequence[bytes]) -> None:
        """Request the contents of these blobs, one for each later `next_content`."""
        self._ask(b"contents", names)

    def next_content(self, name: bytes, size: int, kind: bytes = b"blob") -> Iterator[bytes]:
        """Yield the next content in pieces; it must be that of the named object."""
        line = self._answers.readline()
        if line != b"%b %b %d\n" % (name, kind, size):
            raise self.unreadable(f"object {_shown(name[:12])}") if line.endswith(b"\n") else self._stopped()
        left = size
        while left:
            piece = self._answers.read(min(left, _PIECE_BYTES))
            if not piece:
                raise self._stopped()
            left -= len(piece)
            yield piece
        self._answers.read(1)

    def content(self, name: bytes, size: int, kind: bytes) -> bytes:
        """The whole content of one object."""
        self._ask(b"contents", [name])
        return b"".join(self.next_content(name, size, kind))

    def unreadable(self, what: str) -> NapError:
        return NapError(
            f"{self._app}: {what} cannot be read from {self._repository}",
            advice="Ask the operator to run `git fsck` there; nothing was built.",
        )

    def _ask(self, command: bytes, names: Sequence[bytes]) -> None:
        try:
            self._questions.write(b"".join(b"%b %b\n" % (command, name) for name in names) + b"flush\n")
            self._questions.flush()
        except BrokenPipeError as error:
            raise self._stopped() from error

    def _answer(self, name: bytes) -> tuple[bytes, bytes, int]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._stopped()
        words = line.split()
        if len(words) == 3 and words[2].isdigit():
            return words[0], words[1], int(words[2])
        return name, b"", 0

    def _stopped(self) -> NapError:
        """Return the error for git's end."""
        output = piped(self._process.stderr).read().decode(errors="backslashreplace").strip()
        status = self._process.wait()
        if status < 0:
            return killed(self._app, -status, self._bounds)
        if "ut of memory" in output or "mmap failed" in output:  # git's words, in usage.c, wrapper.c and packfile.c
            return NapError(
                f"{self._app}: reading the commit took too much memory: commit.memory is {self._bounds.memory} bytes",
                advice="Remove the largest files, or ask the operator to raise the limit; then push again.",
            )
        last = output.splitlines()[-1][:_SHOWN_CHARACTERS] if output else f"git ended with status {status}"
        return self.unreadable(f"an object ({last})")


class Tree:
    """The files of one commit that are in the build context."""

    def __init__(self, objects: _Objects, app: str, bounds: "CommitSettings") -> None:
        self._objects, self._app, self._bounds = objects, app, bounds
        self._entries_read = self._bytes = 0

    misnamed: Sequence[str] = ()
    """What `Checkout` says of them; known after `of`."""

    def of(self, commit: str) -> tuple[bytes, int, dict[str, bytes], list[Leaf]]:
        """Read the commit's name, time, manifests and leaves. Raises `NapError` before it reads anything above a
        limit."""
        name, tree, time = self._commit(commit)
        kind, size = next(self._objects.kinds([tree]))
        top = self._entries(Leaf(b"", stat.S_IFDIR, tree, size if kind == b"tree" else -1))
        dockerfile = self._dockerfile(top, commit)
        called = {DOCKERFILE: dockerfile}
        # A Dockerfile's own comes before that of the folder (Dockerfile reference, "Filename and location").
        if any(leaf.path.decode(errors="replace") == dockerfile + DOCKERIGNORE for leaf in top):
            called[DOCKERIGNORE] = dockerfile + DOCKERIGNORE
        named = {name: called.get(name, name) for name in (*MANIFESTS, DOCKERIGNORE)}
        self.misnamed = _misnamed(top)
        files = {name: data for name, entry in named.items() if (data := self._file(top, entry)) is not None}
        try:
            patterns = patterns_of(files.pop(DOCKERIGNORE, b""))
        except NapError as error:
            raise NapError(f"{self._app}: {error}", advice="Fix the line, commit, and push again.") from error
        return name, time, files, list(self._leaves(top, patterns))

    def _commit(self, name: str) -> tuple[bytes, bytes, int]:
        """Return the object names of a commit, or of the commit of a tag, and of its tree; and its time.

        git-fsck(1) finds fault with commits that lack an author or a time; git itself reads them, and so does this.
        """
        asked = name.encode(errors="replace")
        if not re.fullmatch(rb"[0-9a-f]{40}|[0-9a-f]{64}", asked) or self._objects.found(asked)[1] == b"":
            raise NapError(f"{self._app}: commit {_shown(asked[:7])} is not in the repository", advice="Push again.")
        found, kind, size = self._objects.found(asked + b"^{commit}")
        if kind != b"commit":
            raise NapError(f"{self._app}: {name[:7]} is not a commit", advice="Push a branch of commits.")
        self._require_few_bytes(f"commit {name[:7]}", size, "max_manifest")
        content = self._objects.content(found, size, b"commit")
        whole, tree = _COMMIT.match(content), _TREE.match(content)
        if not tree:
            raise self._objects.unreadable(f"commit {name[:7]}")
        return found, tree[1], min(int(whole[2]), _LARGEST) if whole else 0

    def _dockerfile(self, top: Sequence[Leaf], commit: str) -> str:
        """Return the name of the Dockerfile. Raises `NapError` with advice if there is none."""
        files = [leaf.path for leaf in top if leaf.has_content]
        for name in DOCKERFILES:
            if name in files:
                return name.decode()
        folders = [leaf for leaf in top if stat.S_ISDIR(leaf.mode)][:_FOLDERS_LOOKED_INTO]
        below = [leaf.path for each in folders for leaf in self._entries(each)]
        raise NapError(
            f"{self._app}: commit {commit[:7]} has no Dockerfile at its top",
            advice=what_to_do(files, [path for path in below if path.endswith(b"/" + DOCKERFILES[0])]),
        )

    def _entries(self, folder: Leaf) -> list[Leaf]:
        """Return the entries of a directory with their sizes. Raises `NapError` for an entry that cannot be a file."""
        tree, above = folder.object_name, folder.path + b"/" if folder.path else b""
        if folder.size < 0:
            raise self._objects.unreadable(f"tree {_shown(tree[:12])}")
        if folder.size > self._bounds.max_entries * _ENTRY_BYTES:
            raise self._too_many()
        content = self._objects.content(tree, folder.size, b"tree")
        try:
            entries = list(parse_tree(content, len(tree) // 2))
        except (FileFormatException, ValueError, OverflowError) as error:
            raise self._objects.unreadable(f"tree {_shown(tree[:12])}") from error
        self._entries_read += len(entries)
        if self._entries_read > self._bounds.max_entries:
            raise self._too_many()
        for name, _, _ in entries:
            self._require_name(above, name)
        if len({name for name, _, _ in entries}) < len(entries):
            raise NapError(
                f"{self._app}: {_shown(above) or 'the top'}: the tree has the same name twice", advice=_REWRITE
            )
        kinds = self._objects.kinds([name for _, mode, name in entries if stat.S_IFMT(mode) in _KINDS])
        leaves = []
        for name, mode, object_name in entries:
            size = 0
            if wanted := _KINDS.get(stat.S_IFMT(mode)):
                kind, size = next(kinds)
                size = size if kind == wanted else -1
            leaves.append(Leaf(above + name, mode, object_name, size))
        return leaves

    def _require_name(self, above: bytes, name: bytes) -> None:
        if name in {b"", b".", b".."} or b"/" in name or len(name) > _NAME_BYTES:
            raise NapError(f"{self._app}: {_shown(above + name)}: it cannot be the name of a file", advice=_REWRITE)
        if len(above) + len(name) > _PATH_BYTES:
            raise NapError(f"{self._app}: {_shown(above + name)}: its path has more than {_PATH_BYTES} bytes")

    def _leaves(self, top: Sequence[Leaf], patterns: Patterns) -> Iterator[Leaf]:
        """Return all entries that are not ignored, each directory before its content. Raises `NapError` above a
        limit."""
        waiting = [(leaf, 0) for leaf in reversed(top)]
        while waiting:
            leaf, above = waiting.pop()
            matching = patterns.matching(leaf.path, above)
            out = patterns.is_out(matching)
            if stat.S_ISDIR(leaf.mode):
                if out and not patterns.may_keep_below(leaf.path):
                    continue
                if leaf.path.count(b"/") + 1 > self._bounds.max_depth:
                    raise NapError(
                        f"{self._app}: {_shown(leaf.path)}: it is deeper than {self._bounds.max_depth} directories "
                        "(commit.max_depth)",
                        advice=_LEAVE_OUT,
                    )
                waiting += [(each, matching) for each in reversed(self._entries(leaf))]
            elif not out:
                self._require_small(leaf)
            if not out:
                yield leaf

    def _require_small(self, leaf: Leaf) -> None:
        if leaf.size < 0:
            raise self._objects.unreadable(f"{_shown(leaf.path)} (object {_shown(leaf.object_name[:12])})")
        if stat.S_ISLNK(leaf.mode) and leaf.size > _PATH_BYTES:
            what = f"it is a link with a target of {leaf.size} bytes; the limit is {_PATH_BYTES}"
            raise NapError(f"{self._app}: {_shown(leaf.path)}: {what}", advice=_LEAVE_OUT)
        if leaf.size > self._bounds.max_file:
            self._require_few_bytes(_shown(leaf.path), leaf.size, "max_file")
        self._bytes += leaf.size
        if self._bytes > self._bounds.max_size:
            raise NapError(
                f"{self._app}: the commit has more than {self._bounds.max_size} bytes in its files (commit.max_size)",
                advice=_LEAVE_OUT,
            )

    def _require_few_bytes(self, what: str, size: int, setting: str) -> None:
        most = getattr(self._bounds, setting)
        if size > most:
            raise NapError(
                f"{self._app}: {what}: it has {size} bytes, and commit.{setting} is {most}", advice=_LEAVE_OUT
            )

    def _too_many(self) -> NapError:
        return NapError(
            f"{self._app}: the commit has more than {self._bounds.max_entries} files and directories "
            "(commit.max_entries)",
            advice=_LEAVE_OUT,
        )

    def _file(self, top: Sequence[Leaf], name: str) -> bytes | None:
        """Return the content of a file at the top, or of the target of a link there; None if the name does not exist.

        Raises `NapError` if it is not a file: it would be missing without a message.
        """
        leaf, what = _called(top, name.encode()), "it is a directory or a submodule"
        if leaf is None:
            return None
        if stat.S_ISLNK(leaf.mode):
            self._require_small(leaf)
            target = self._objects.content(leaf.object_name, leaf.size, b"blob")
            what = f"it is a link to {_shown(target)[:80]}, which is not a file of this commit"
            # Or the commit's own directories would be taken for those at the root of a machine.
            leaf = None if target.startswith(b"/") else self._at(top, posixpath.normpath(target))
        if leaf is None or not stat.S_ISREG(leaf.mode):
            raise NapError(
                f"{self._app}: {name}: {what}",
                advice=f"Put a file named {name} in its place, commit, and push again; nothing was built.",
            )
        self._require_small(leaf)
        self._require_few_bytes(name, leaf.size, "max_manifest")
        return self._objects.content(leaf.object_name, leaf.size, b"blob")

    def _at(self, top: Sequence[Leaf], path: bytes) -> Leaf | None:
        """Return the entry at a path below the top, through directories only."""
        parts = path.split(b"/")
        above = b""
        for part in parts[:-1]:
            above += part
            found = _called(top, above)
            if found is None or not stat.S_ISDIR(found.mode):
                return None
            above += b"/"
            top = self._entries(found)
        return _called(top, path)


_KINDS = {stat.S_IFREG: b"blob", stat.S_IFLNK: b"blob", stat.S_IFDIR: b"tree"}
"""Which kind of object an entry of a tree has. That of a submodule is in another repository."""

_LEAVE_OUT = "Leave it out of the commit, or name it in .dockerignore, or ask the operator to raise the limit."
_REWRITE = "git fsck finds such objects; make the commit with git itself, and push again."


def _misnamed(top: Sequence[Leaf]) -> list[str]:
    paths = {leaf.path for leaf in top if leaf.has_content}
    wanted = {name.lower().encode(): name.encode() for name in MANIFESTS if name != DOCKERFILE}
    return sorted(path.decode() for path in paths if wanted.get(path.lower(), path) not in paths)


def _called(leaves: Sequence[Leaf], path: bytes) -> Leaf | None:
    return next((leaf for leaf in leaves if leaf.path == path), None)


class _Seen:
    """Paths of files that will not work as their author expects, found while the contents are read."""

    def __init__(self) -> None:
        self.lfs_pointers: list[str] = []
        self.windows_scripts: list[str] = []

    def look_at(self, leaf: Leaf, start: bytes) -> None:
        """Note a file that begins with `start`, at least its first `_FIRST_BYTES`."""
        if leaf.size < _LFS_POINTER_BYTES and start.startswith(_LFS_POINTER):
            self.lfs_pointers.append(_shown(leaf.path))
        if (b"\r\n" in start or start.startswith(_BYTE_ORDER_MARK)) and _is_windows_script(leaf.path, start):
            self.windows_scripts.append(_shown(leaf.path))


def _is_windows_script(path: bytes, start: bytes) -> bool:
    """Whether a file is a script that no Unix system starts: `start` has its first line.

    The first line of a script names its program up to the line's end, with a carriage return where there is one
    (execve(2)); before `#!` there may be no byte order mark. A shell takes a carriage return for part of a command.
    """
    marked = start.removeprefix(_BYTE_ORDER_MARK)
    line, end, _ = marked.partition(b"\n")
    if marked.startswith(b"#!"):
        return marked != start or bool(end and line.endswith(b"\r"))
    return bool(end and line.endswith(b"\r") and _SHELL_SCRIPT.fullmatch(path))


def _shown(path: bytes) -> str:
    return path[:_SHOWN_CHARACTERS].decode("utf-8", "backslashreplace")


class _Headers:
    """Makes tar headers for entries with the same time.

    tarfile needs longer for a header than git for the content of a small file. So it makes one header of each kind, and
    only name, size and checksum are replaced there (tar(5), "Pre-POSIX Archives").
    """

    def __init__(self, time: int) -> None:
        self._time = time
        self._known: dict[tuple[bytes, int], tuple[bytes, bytes, bytes, int]] = {}

    def of(self, path: bytes, kind: bytes, mode: int, size: int = 0, link: bytes = b"") -> bytes:
        if link or len(path) > tarfile.LENGTH_NAME or size > _LARGEST:
            return self._by_tarfile(path, kind, mode, size, link)
        if (kind, mode) not in self._known:
            header = self._by_tarfile(b"", kind, mode)
            parts = header[100:124], header[136:148], header[156:]  # without name, size and checksum
            self._known[kind, mode] = *parts, sum(map(sum, parts))
        owner, time, rest, total = self._known[kind, mode]
        digits = b"%011o" % size
        total += sum(path) + sum(digits) + 8 * ord(" ")  # the checksum itself counts as spaces
        return b"%b%b%b\0%b%06o\0 %b" % (path.ljust(100, b"\0"), owner, digits, time, total, rest)

    def _by_tarfile(self, path: bytes, kind: bytes, mode: int, size: int = 0, link: bytes = b"") -> bytes:
        header = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
        header.type, header.mode, header.size, header.mtime = kind, mode, size, self._time
        header.linkname = link.decode("utf-8", "surrogateescape")
        # GNU's format carries names of any bytes and any length; pax allows only UTF-8.
        return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _write_tar(leaves: Sequence[Leaf], time: int, objects: _Objects, out: IO[bytes]) -> _Seen:
    """Write the leaves as entries of a tar, without the final blocks."""
    headers, seen = _Headers(time), _Seen()
    for start in range(0, len(leaves), _ASKED_AT_ONCE):
        batch = leaves[start : start + _ASKED_AT_ONCE]
        objects.ask_for_contents([leaf.object_name for leaf in batch if leaf.has_content])
        for leaf in batch:
            if not leaf.has_content:
                out.write(headers.of(leaf.path + b"/", tarfile.DIRTYPE, 0o755))
                continue
            content = objects.next_content(leaf.object_name, leaf.size)
            if stat.S_ISLNK(leaf.mode):
                out.write(headers.of(leaf.path, tarfile.SYMTYPE, 0o777, link=b"".join(content)))
                continue
            out.write(headers.of(leaf.path, tarfile.REGTYPE, 0o755 if leaf.mode & 0o100 else 0o644, leaf.size))
            for number, piece in enumerate(content):
                if number == 0:
                    seen.look_at(leaf, piece[:_FIRST_BYTES])
                out.write(piece)
            out.write(bytes(-leaf.size % _BLOCK))
    return seen


def _read(repository: str, commit: str, app: str, bounds: "CommitSettings") -> dict[str, str]:
    """Write the tree to standard output; return the final report."""
    objects = _Objects(repository, app, bounds)
    tree = Tree(objects, app, bounds)
    name, time, manifests, leaves = tree.of(commit)
    plan = {
        "commit": name.decode(),
        "time": time,
        "submodules": some(
            [_shown(leaf.path) for leaf in leaves if not leaf.has_content and not stat.S_ISDIR(leaf.mode)]
        ),
        "misnamed": tree.misnamed,
        "manifests": {name: b64encode(data).decode() for name, data in manifests.items()},
    }
    seen = _Seen()
    # PYTHONUNBUFFERED would have Python's own file write each entry by itself.
    with open(sys.stdout.fileno(), "wb", buffering=_PIECE_BYTES, closefd=False) as out:
        out.write(json.dumps(plan).encode() + b"\n")
        out.flush()
        if sys.stdin.buffer.readline():
            seen = _write_tar(leaves, time, objects, out)
    return {"lfs_pointers": some(seen.lfs_pointers), "windows_scripts": some(seen.windows_scripts)}


def main() -> int:
    """Run the module as its docstring describes."""
    repository, commit, app, bounds = sys.argv[1:]
    limits = cast("CommitSettings", SimpleNamespace(**json.loads(bounds)))
    try:
        end: dict[str, object] = dict(_read(repository, commit, app, limits))
        status = 0
    except NapError as error:
        end, status = {"what": str(error), "advice": error.advice}, 1
    except MemoryError:
        what = f"{app}: reading the commit took too much memory: commit.memory is {limits.memory} bytes"
        end, status = {"what": what, "advice": [_LEAVE_OUT]}, 1
    sys.stderr.write(json.dumps(end))
    return status


if __name__ == "__main__":
    run(main)
