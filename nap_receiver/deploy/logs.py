"""Read, merge and follow the output of instances.

Each scheduler reads the output of its own instances (`Scheduler.logs`). The requests to an app are in the router's own
log, on the router's machine.
"""

import json
import math
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from nap_receiver.core.channel import plain
from nap_receiver.model.release import RENAMED, ROUTER, Instance, Release
from nap_receiver.routing.caddy_configuration import ACCESS_LOG, VISITORS_PROTOCOL
from nap_receiver.schedulers.log_source import Line, Source, Wanted, time_of

MOST_LINES = 10_000
"""How many lines can be asked for."""

_HELD_LINES = 1000  # for a reader who is slower than the app; then the sources wait
_LOOK_AGAIN_SECONDS = 0.2


def merged(lines: Iterable[Line], most: int) -> list[Line]:
    """Return the last `most` of these lines by time; lines with the same time keep their order."""
    ordered = sorted(lines, key=lambda line: line.at)
    return ordered[max(0, len(ordered) - most) :]


def follow(source: Source, wanted: Wanted, descriptor: int, say: Callable[[Line], None]) -> None:
    """Print each new line until nobody reads `descriptor` any more."""
    lines: queue.Queue[Line | None] = queue.Queue(_HELD_LINES)

    def await_end() -> None:
        poller = select.poll()
        poller.register(descriptor, 0)  # an app may be silent for ever, so no write would tell
        poller.poll()
        lines.put(None)

    threading.Thread(target=await_end, daemon=True).start()
    source.follow(wanted, lines.put)
    while line := lines.get():
        say(line)


class Requests:
    """The requests to one app in the router's log, `since` this time, to these domains."""

    def __init__(self, app: str, log: Path, names: Collection[str], since: float) -> None:
        self._app, self._log, self._names, self._since = app, log, names, since
        self._logger = f"{ACCESS_LOG}.{app}"
        # What else there is in the log need not be understood.
        self._marks = [f'"{self._logger}"'.encode(), f'"{ACCESS_LOG}"'.encode()]
        self._read: tuple[int, int] | None = None  # the number of the file that was read last, and how far
        self.missing: list[str] = []

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        lines: list[Line] = []
        with self._opened() as files:
            for number, file in reversed(files.items()):
                lines = [*self._lines(file), *lines]
                self._read = self._read or (number, file.tell())
                if len(lines) >= most:
                    break
        return lines

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        threading.Thread(target=self._watch, args=(tell,), daemon=True).start()

    def _watch(self, tell: Callable[[Line], None]) -> None:
        """Report new lines, also after the log was rotated; never ends."""
        while True:
            for line in self._news():
                tell(line)
            time.sleep(_LOOK_AGAIN_SECONDS)  # Python has no way to wait for news of a file

    def _news(self) -> list[Line]:
        """Return the lines since the last read."""
        lines: list[Line] = []
        with self._opened() as files:
            known, offset = self._read or (0, 0)
            for number in list(files)[list(files).index(known) if known in files else 0 :]:
                files[number].seek(offset if number == known else 0)
                lines += self._lines(files[number])
                self._read = (number, files[number].tell())
        return lines

    @contextmanager
    def _opened(self) -> Iterator[dict[int, IO[bytes]]]:
        """Return the log and the rotated ones, by inode number, oldest first."""
        with ExitStack() as stack:
            files = []
            # It first, or it could become one of those after they were looked for.
            for paths in (
                [self._log],
                sorted(self._log.parent.glob(f"{self._log.stem}-*{self._log.suffix}"), reverse=True),
            ):
                for path in paths:
                    with suppress(FileNotFoundError):
                        files.append(stack.enter_context(path.open("rb")))
            yield {os.fstat(file.fileno()).st_ino: file for file in reversed(files)}

    def _lines(self, opened: IO[bytes]) -> list[Line]:
        """Yield the lines of the app from the current position to the last whole line."""
        begun = opened.tell()
        content = opened.read()
        whole = content[: content.rfind(b"\n") + 1]
        opened.seek(begun + len(whole))
        return [
            line
            for said in whole.splitlines()
            if any(mark in said for mark in self._marks) and (line := self._line(said))
        ]

    def _line(self, content: bytes) -> Line | None:
        try:
            entry = json.loads(content)
            request = entry["request"]
            logger, host = entry["logger"], request["host"].lower().partition(":")[0]
            if entry["ts"] < self._since or (
                logger != self._logger and (logger != ACCESS_LOG or host not in self._names)
            ):
                return None
            ids = entry.get("resp_headers", {}).get("X-Request-Id", [])
            protocol = entry.get(VISITORS_PROTOCOL, request["proto"])
            asked = f"{request['method']} {request['uri']} {protocol}".replace('"', "%22")
            text = f'{request["remote_ip"]} "{asked}" {entry["status"]} {entry["size"]} {entry["duration"]:.3f}s'
            return Line(time_of(entry["ts"]), ROUTER, plain(" ".join([text, *ids])))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # none of a request's


def requests_since(history: Iterable[tuple[Release, object]]) -> float:
    """Return the time from which requests under an app's name belong to this app, not to an earlier one of that
    name."""
    releases = [release for release, _ in history]
    return max([each.at for each in releases if each is releases[0] or each.why.startswith(RENAMED)], default=math.inf)
