"""Secrets that can be found again: a mark in each, and a look for them at all processes and files of the machine."""

import base64
import functools
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN = secrets.token_hex(8)
_OWN_PIDS = Path("/proc/self/ns/pid").readlink()
_PAUSE_SECONDS = 0.002


def marked(name: str) -> str:
    """A secret of this name."""
    return f"{name}-{_TOKEN}"


@dataclass(frozen=True)
class Seen:
    """A secret's name, and where it was seen: in the `arguments` or `environment` of a process with these words."""

    secret: str
    where: str
    words: str


@dataclass
class Marks:
    """What to look for: all of `marked`, and what has another form, by its name."""

    others: dict[str, bytes] = field(default_factory=dict)

    def within(self, content: bytes) -> set[str]:
        """The names of the secrets that this has in it, as they are or in base64."""
        found = {name for name, mark in self.others.items() if any(form in content for form in _forms(mark))}
        found |= {name.decode() for name in re.findall(rb"([a-z]+)-" + _TOKEN.encode(), content)}
        if any(form in content for form in _forms(_TOKEN.encode())[1:]):
            found.add("in base64")
        return found


@functools.cache
def _forms(mark: bytes) -> list[bytes]:
    """The mark, and how base64 writes it; that depends on where in its group of three bytes the mark begins."""
    return [mark, *(base64.b64encode(bytes(skip) + mark)[skip + 2 : -4] for skip in range(3))]


@contextmanager
def watch(marks: Marks) -> Iterator[set[Seen]]:
    """All that is seen in processes while the block lasts; what runs in containers, and this process, is left out."""
    seen: set[Seen] = set()
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(marks, seen, over))
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


def _watch(marks: Marks, seen: set[Seen], over: threading.Event) -> None:
    known: dict[str, bytes] = {}
    while not over.is_set():
        processes = [each.name for each in Path("/proc").glob("[0-9]*") if each.name != str(os.getpid())]
        for process in processes:
            with suppress(OSError):  # it has ended
                _look_at(process, known, marks, seen)
        known = {process: known[process] for process in processes if process in known}
        time.sleep(_PAUSE_SECONDS)


def _look_at(process: str, known: dict[str, bytes], marks: Marks, seen: set[Seen]) -> None:
    folder = Path("/proc", process)
    arguments, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
    if known.get(process) == arguments + environment:
        return
    known[process] = arguments + environment
    for where, content in (("arguments", arguments), ("environment", environment)):
        for secret in marks.within(content):
            if (folder / "ns/pid").readlink() == _OWN_PIDS:
                seen.add(Seen(secret, where, arguments.replace(b"\0", b" ").decode(errors="replace")))


def files_with(
    marks: Marks, folders: Sequence[Path], since: float, besides: Sequence[Path], *which: str
) -> Mapping[Path, set[str]]:
    """The files below `folders`, changed since then, that have a secret in them; not below these patterns, `besides`.

    `which` are more tests of find(1).
    """
    left_out = [word for path in besides for word in ("-path", str(path), "-prune", "-o")]
    words = ["find", *map(str, folders), *left_out, "-type", "f", "-newermt", f"@{since}", *which, "-print0"]
    changed = subprocess.run(words, capture_output=True, check=False).stdout.split(b"\0")[:-1]  # some end meanwhile
    found = {}
    for path in map(os.fsdecode, changed):
        with suppress(OSError):
            if has := marks.within(Path(path).read_bytes()):
                found[Path(path)] = has
    return found
