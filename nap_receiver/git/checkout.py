"""The pushed commit's tree as a build context: a tar stream directly from the object store.

There is no work tree and no temporary copy. A separate process reads the repository (`tree`), with limits on memory and
processor time: its input is untrusted, and this process has to keep a lock alive meanwhile.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import TYPE_CHECKING, Any, cast

from nap_receiver.core.bounded import bounded, killed
from nap_receiver.core.errors import NapError
from nap_receiver.core.process import piped

if TYPE_CHECKING:  # `tree` imports this module, and starts faster without the libraries of these
    from pathlib import Path

    from nap_receiver.core.settings import CommitSettings

DOCKERFILE = "Dockerfile"
MANIFESTS = ("Procfile", "app.json", DOCKERFILE)
"""Files at the top that say what there is to the app, and how its image is built."""

_PIECE_BYTES = 1 << 20
_END_OF_ARCHIVE = bytes(1024)  # two blocks of zeros (tar(5))


@dataclass
class Checkout:
    """The tree of one commit without the files that `.dockerignore` excludes; use `check_out`."""

    commit: str
    time: int
    """Of the commit, in seconds since the epoch."""
    submodules: str = ""
    """The first few paths of submodules, which arrive as empty directories, and how many more there are."""
    lfs_pointers: str = ""
    """The same of files that arrive as Git LFS pointers; known when `tar` has ended."""
    windows_scripts: str = ""
    """The same of scripts that Windows line ends or a byte order mark keep from starting, known then too."""
    misnamed: list[str] = field(default_factory=list)
    """Files at the top whose names differ from a manifest's only in case, where that manifest is not there."""
    manifests: dict[str, bytes] = field(default_factory=dict)
    """The contents of `MANIFESTS`, by name, of those that are there. What is the Dockerfile here, the engine builds."""
    _reader: "_Reader | None" = None

    def tar(self) -> Iterator[bytes]:
        """The build context, in pieces of at most 1 MiB; fills `lfs_pointers` and `windows_scripts`. It is read once.

        A tar that stops early at an entry's end is a valid one to the engine. So the archive is ended here, after the
        reader ended well, and whatever went wrong is raised inside the upload, which aborts it.
        """
        if self._reader is None:
            raise ValueError("only a checkout by `check_out` has a tar")
        yield from self._reader.content()
        end = self._reader.end()
        self.lfs_pointers, self.windows_scripts = end["lfs_pointers"], end["windows_scripts"]
        if dockerfile := self.manifests.get(DOCKERFILE):
            # The last entry of a name is the one that counts, whatever kind of file the tree has there.
            header = tarfile.TarInfo(DOCKERFILE)
            header.size, header.mtime = len(dockerfile), self.time
            yield header.tobuf(tarfile.GNU_FORMAT) + dockerfile + bytes(-len(dockerfile) % tarfile.BLOCKSIZE)
        yield _END_OF_ARCHIVE


@contextmanager
def check_out(path: "Path", commit: str, app: str, bounds: "CommitSettings") -> Iterator[Checkout]:
    """Prepare the tree of the commit for streaming, for the block.

    Raises `NapError` if it is not a commit, has no Dockerfile, or exceeds one of the `bounds`.
    """
    reader = _Reader(path, commit, app, bounds)
    try:
        plan = reader.plan()
        manifests = {name: b64decode(content) for name, content in plan.pop("manifests").items()}
        yield Checkout(**plan, manifests=manifests, _reader=reader)
    finally:
        reader.kill()


class _Reader:
    """The process that reads the tree."""

    def __init__(self, path: "Path", commit: str, app: str, bounds: "CommitSettings") -> None:
        limits = {name: getattr(bounds, name) for name in bounds.__struct_fields__}
        words = [str(path), commit, app, json.dumps(limits)]
        self._app, self._bounds = app, bounds
        self._process = subprocess.Popen(
            bounded(
                [sys.executable, "-P", "-m", "nap_receiver.git.tree", *words],
                memory=bounds.memory,
                seconds=bounds.processor_time,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its git ends with it
        )
        self._input, self._errors = piped(self._process.stdin), piped(self._process.stderr)
        self._output = cast(BufferedReader, piped(self._process.stdout))  # Popen makes such, where `bufsize` is not 0

    def plan(self) -> dict[str, Any]:
        """Return what the tree has, before any file content. Raises `NapError`."""
        line = self._output.readline()
        if not line.endswith(b"\n"):
            self.end()
        plan: dict[str, Any] = json.loads(line)
        return plan

    def content(self) -> Iterator[bytes]:
        """Yield the tar without its end, as far as it exists."""
        with suppress(BrokenPipeError):  # it has ended, and `end` says why
            self._input.write(b"\n")
            self._input.flush()
        # Not `read`: the engine takes what is here while the reader makes the rest.
        while piece := self._output.read1(_PIECE_BYTES):
            yield piece

    def end(self) -> dict[str, Any]:
        """Return the final report. Raises `NapError` if the process failed."""
        report = self._errors.read()
        status = self._process.wait()
        if status == 0:
            return dict(json.loads(report))
        if status == 1 and report.startswith(b"{"):
            error = json.loads(report)
            raise NapError(error["what"], advice=error["advice"])
        raise killed(self._app, -status, self._bounds) if status < 0 else RuntimeError(report.decode(errors="replace"))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._input, self._output, self._errors):
            with suppress(BrokenPipeError):  # of what was not read any more
                pipe.close()
