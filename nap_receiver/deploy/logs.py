"""What instances print: read where they run, merged by time, and followed.

On one machine the engine has it, with the time of each line, but only of containers that are there; what those before
them printed is in the files that the local scheduler keeps, which tell no times. On a cluster all of it is in the
journals of the machines, which are read over ssh, where the operator has set that up. What the router says of the
requests to an app is no instance's, and in the router's own log, on its machine.
"""

import json
import math
import os
import queue
import select
import shlex
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.model.release import RENAMED, ROUTER, Instance, Release
from nap_receiver.routing.caddy_configuration import ACCESS_LOG, VISITORS_PROTOCOL

if TYPE_CHECKING:  # docker's library and fleet's are for those who call them
    from nap_receiver.schedulers.placement import Machine

MOST_LINES = 10_000
"""How many lines can be asked for."""

_HELD_LINES = 1000  # for a reader who is slower than the app; then the sources wait
_LONGEST_LINE = 1 << 20  # bytes; the engine hands out a longer line than 16 KiB in parts
_TRY_AGAIN_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.2
_ALIVE = "ServerAliveInterval=15"
_SPARE_SECONDS = 25  # over the time to connect, for a journal to be searched


@dataclass(frozen=True)
class Line:
    """A line that an instance printed; `at` is when, to the nanosecond: `2026-11-25T01:02:03.123456789Z`."""

    at: str
    label: str
    text: str

    def __str__(self) -> str:
        return f"{self.at[:26]}Z {self.label}: {self.text}"


@dataclass(frozen=True)
class Wanted:
    """Which instances of an app: those of a release (`v3`), of a process type (`web`), one of it (`web.1`), or all."""

    app: str
    release: str = ""
    process: str = ""

    def label(self, unit: str) -> str | None:
        """`web.1` where the instance whose unit is `hello.v3.web.1` is wanted."""
        app, _, key = unit.partition(".")
        release, _, label = key.partition(".")
        if app != self.app or self.release not in {"", release} or not self.includes(label):
            return None
        return label if label.rpartition(".")[2].isdecimal() else None

    def includes(self, label: str) -> bool:
        """Whether `web.1` is of the process type that is wanted."""
        return self.process in {"", label, label.partition(".")[0]}


class Source(Protocol):
    """Where what instances print can be read."""

    missing: list[str]
    """Why some of it could not be read, a sentence each."""

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        """At least the last `most` lines of these instances, as far as they are kept. Raises `NapError`."""

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """From now on `tell` each line that came after `past`, also of instances that start later; returns at once."""


@contextmanager
def source_of(app: str, state: State, settings: Settings) -> Iterator[Source]:
    """Where what the instances of `app` print is read, for the block. Raises `NapError` where nothing is set up."""
    if settings.scheduler == "fleet":
        from nap_receiver.schedulers.fleet import Fleet

        if not settings.fleet.logs:
            raise NapError(
                "what apps print on a cluster is in the journals of its machines, and nap is not told how to read them",
                advice='Ask the operator to set fleet.logs, such as "ssh://root@{address}" (docs/logs.md).',
            )
        journals = Journals(settings.fleet.logs, Fleet(state, settings).machines(), settings.fleet.request_timeout)
        try:
            yield journals
        finally:
            journals.close()
        return
    from nap_receiver.engine.client import engine_at

    with engine_at(settings.engine.url) as engine:
        yield Containers(app, state, engine.api)


def merged(lines: Iterable[Line], most: int) -> list[Line]:
    """The last `most` of these lines by time; those of one moment stay as they are."""
    ordered = sorted(lines, key=lambda line: line.at)
    return ordered[max(0, len(ordered) - most) :]


def follow(source: Source, wanted: Wanted, descriptor: int, say: Callable[[Line], None]) -> None:
    """Say each line that comes, until nobody reads `descriptor` any more."""
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


class Containers:
    """The containers of one app on this machine's engine, and the files of the local scheduler."""

    def __init__(self, app: str, state: State, api: Any) -> None:
        self._app, self._state, self._api = app, state, api
        self._began = time.time()
        self._seen: dict[str, str] = {}  # by a container's id, the time of its last line that was told; or none yet
        self._followed: set[str] = set()
        self._lock = threading.Lock()
        self.missing: list[str] = []

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        return [line for instance in instances for line in self._past_of(instance, max(most, 1))]

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        threading.Thread(target=self._watch, args=(wanted, tell), daemon=True).start()

    def _past_of(self, instance: Instance, most: int) -> list[Line]:
        log = self._state.program_logs / "apps" / f"{instance.unit}.log"
        # First, so that the engine has told all that is in it of its container.
        written, ended = _last_lines(log, 2 * most)
        there = self._inspected(f"{instance.unit}.{self._state.name}")
        if there is None:
            return [Line(ended, instance.label, text) for text in written]
        with _answering():
            said = list(self._said(there["Id"], instance.label, follow=False, tail=most))
        if said:
            self._seen[there["Id"]] = said[-1].at
        if len(said) >= most:
            return said
        created = _stamp(there["Created"])
        before = not_said(written, [line.text for line in said])
        return [*(Line(created, instance.label, text) for text in before), *said]

    def _inspected(self, container: str) -> Any:
        """What the engine knows of a container, or None where there is none."""
        from docker.errors import NotFound

        with _answering():
            try:
                return self._api.inspect_container(container)
            except NotFound:
                return None

    def _said(self, container: str, label: str, **which: Any) -> Iterator[Line]:
        """What a container printed, a whole line at a time."""
        begun, at = b"", ""
        for part in self._api.logs(container, stream=True, timestamps=True, **which):
            stamp, _, said = part.partition(b" ")
            at = at if begun else _stamp(stamp.decode())
            begun += said
            if begun.endswith(b"\n") or len(begun) > _LONGEST_LINE:
                yield Line(at, label, _text(begun))
                begun = b""
        if begun:
            yield Line(at, label, _text(begun))

    def _watch(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """Follow each container that is there, and each that starts; for ever."""
        filters = {"type": "container", "label": f"nap.app={self._app}", "event": ["start", "die"]}
        since, first = int(self._began), True
        while True:
            with suppress(*_away()):  # an engine that went away may come back
                events = self._api.events(since=since, filters=filters, decode=True)
                for there in self._api.containers(all=True, filters={"label": f"nap.app={self._app}"}):
                    if first:  # what those printed before that were not asked for is not wanted now
                        self._seen.setdefault(there["Id"], _at(self._began))
                    self._follow(there["Id"], there["Names"][0].lstrip("/"), wanted, tell)
                first = False
                for event in events:
                    container, since = event["Actor"]["ID"], event["time"]
                    # One that has ended was perhaps quicker than the news that it had started.
                    if event["Action"] == "start" or container not in self._seen:
                        self._follow(container, event["Actor"]["Attributes"]["name"], wanted, tell)
            time.sleep(_TRY_AGAIN_SECONDS)

    def _follow(self, container: str, name: str, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        unit, _, machine = name.rpartition(".")
        label = wanted.label(unit)
        if label is None or machine != self._state.name:
            return
        with self._lock:
            if container in self._followed:
                return
            self._followed.add(container)
        self._seen.setdefault(container, "")
        threading.Thread(target=self._pass_on, args=(container, label, tell), daemon=True).start()

    def _pass_on(self, container: str, label: str, tell: Callable[[Line], None]) -> None:
        """Tell what a container prints until it has ended, or the engine has."""
        with suppress(*_away()):
            for follow in (True, False):  # of what it said last, the engine keeps a line without an end from followers
                last = self._seen[container]
                since = {"since": int(datetime.fromisoformat(last[:19] + "Z").timestamp())} if last else {}
                for line in self._said(container, label, follow=follow, **since):
                    if line.at > last:
                        tell(line)
                        self._seen[container] = line.at
        with self._lock:
            self._followed.discard(container)


class Journals:
    """The journals of a cluster's machines, read by journalctl over ssh."""

    def __init__(self, destination: str, machines: Sequence["Machine"], seconds: int) -> None:
        self._destination, self._machines, self._seconds = destination, machines, seconds
        self._from: dict[str, str] = {}  # by machine, the option that says where to follow from
        self._running: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self._began = int(time.time())
        self.missing: list[str] = []

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        units = [f"_SYSTEMD_UNIT={instance.unit}.service" for instance in instances]
        # By the machine's own clock, because it is its journal that is followed from then on.
        command = "date +%s"
        if units:
            command += f" && {_journalctl(f'--lines={max(most, 1)}', *units)}"
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = list(pool.map(lambda machine: self._asked(machine, command), self._machines))
        if self._machines and len(self.missing) == len(self._machines):
            raise NapError(
                "none of the cluster's machines let nap read its journal",
                words=self.missing,
                advice="The operator finds in docs/logs.md what fleet.logs needs.",
            )
        return [line for lines in found for line in lines]

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        for machine in self._machines:
            threading.Thread(target=self._follow, args=(machine, wanted, tell), daemon=True).start()

    def close(self) -> None:
        """End whatever still follows."""
        self._over.set()
        running = list(self._running)  # those who read it take out what has ended
        for ssh in running:
            ssh.terminate()
        for ssh in running:
            ssh.wait()

    def _asked(self, machine: "Machine", command: str) -> list[Line]:
        try:
            done = subprocess.run(
                self._ssh(machine, command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._seconds + _SPARE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.missing.append(f"{machine.address}: no answer in time")
            return []
        if done.returncode:
            why = done.stderr.decode("utf-8", "replace").strip().splitlines()
            self.missing.append(f"{machine.address}: {plain(why[-1]) if why else f'exit status {done.returncode}'}")
            return []
        clock, *entries = done.stdout.decode("utf-8", "replace").splitlines()
        read = [entry for entry in map(_journal_entry, entries) if entry]
        self._from[machine.id] = f"--after-cursor={read[-1][0]}" if read else f"--since=@{int(clock)}"
        return [Line(at, unit.split(".", 2)[2], text) for _, unit, at, text in read]

    def _follow(self, machine: "Machine", wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """Tell what comes on one machine, also when it comes back after it was away."""
        while not self._over.is_set():
            begin = self._from.get(machine.id, f"--since=@{self._began}")
            command = self._ssh(machine, _journalctl("--follow", "--no-tail", begin))
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
            ) as ssh:
                self._running.append(ssh)
                if self._over.is_set():
                    ssh.terminate()
                assert ssh.stdout
                for entry in filter(None, map(_journal_entry, ssh.stdout)):
                    cursor, unit, at, text = entry
                    self._from[machine.id] = f"--after-cursor={cursor}"
                    if (label := wanted.label(unit)) is not None:
                        tell(Line(at, label, text))
            self._running.remove(ssh)
            self._over.wait(_TRY_AGAIN_SECONDS)

    def _ssh(self, machine: "Machine", command: str) -> list[str]:
        destination = self._destination.replace("{address}", machine.address)
        options = [f"-o{option}" for option in ("BatchMode=yes", f"ConnectTimeout={self._seconds}", _ALIVE)]
        # ssh must not outlive this process, however that ends.
        return ["setpriv", "--pdeathsig", "TERM", "ssh", "-T", *options, destination, command]


class Requests:
    """The requests to one app that the router has answered, `since` this time; to these names, in whatever case."""

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
        """Tell what is written, also when the log goes on in another file; for ever."""
        while True:
            for line in self._news():
                tell(line)
            time.sleep(_LOOK_AGAIN_SECONDS)  # Python has no way to wait for news of a file

    def _news(self) -> list[Line]:
        """What was written since it was read last."""
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
        """The log and those before it, by the numbers of their files, the oldest first."""
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
        """The lines of the app from here to the last whole line, where the file stands then."""
        begun = opened.tell()
        content = opened.read()
        whole = content[: content.rfind(b"\n") + 1]
        opened.seek(begun + len(whole))
        return [
            line
            for said in whole.splitlines()
            if any(mark in said for mark in self._marks) and (line := self._line(said))
        ]

    def _line(self, said: bytes) -> Line | None:
        try:
            entry = json.loads(said)
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
            return Line(_at(entry["ts"]), ROUTER, plain(" ".join([text, *ids])))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # none of a request's


def requests_since(history: Iterable[tuple[Release, object]]) -> float:
    """Since when what is in the router's log under an app's name is this app's, and no earlier one's of that name."""
    releases = [release for release, _ in history]
    return max([each.at for each in releases if each is releases[0] or each.why.startswith(RENAMED)], default=math.inf)


def not_said(written: Sequence[str], said: Sequence[str]) -> list[str]:
    """Of the lines that the runs of an instance wrote, those that are not among what its container `said`.

    Not cut where the container began, because the file may lack lines of it, have them in another order, and has
    what the programs around it say. The container's first line may stand behind one that has no end.
    """
    left = Counter(said)
    before: deque[str] = deque()
    for text in reversed(written):
        if left[text]:
            left[text] -= 1
        elif said and said[0] and left[said[0]] and text.endswith(said[0]):
            left[said[0]] -= 1
            before.appendleft(text.removesuffix(said[0]))
        else:
            before.appendleft(text)
    return list(before)


def _last_lines(log: Path, most: int) -> tuple[list[str], str]:
    """The last lines of a file of the scheduler's, and of the one before it; and when it was written last."""
    lines: deque[bytes] = deque(maxlen=most)
    ended = ""
    for path in (log.with_name(f"{log.name}.1"), log):
        with suppress(FileNotFoundError), path.open("rb") as opened:
            lines.extend(opened)
            ended = _at(os.fstat(opened.fileno()).st_mtime)
    return [_text(line) for line in lines], ended


def _journalctl(*words: str) -> str:
    # What services print, the instances' among them; not what systemd says about them.
    chosen = ["--quiet", "--no-pager", "--all", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT"]
    return shlex.join(["journalctl", *chosen, *words, "_TRANSPORT=stdout"])


def _journal_entry(said: str) -> tuple[str, str, str, str] | None:
    """An entry's cursor, unit, time and text; None for what is none of an instance's."""
    try:
        entry = json.loads(said)
        seconds, fraction = divmod(int(entry["__REALTIME_TIMESTAMP"]), 1_000_000)
        message = entry["MESSAGE"]
        if isinstance(message, list):  # systemd.journal-fields(7): what is no text comes as its bytes
            message = bytes(message).decode("utf-8", "replace")
        unit = entry["_SYSTEMD_UNIT"].removesuffix(".service")
        at = datetime.fromtimestamp(seconds, UTC).strftime(f"%Y-%m-%dT%H:%M:%S.{fraction:06}000Z")
        return entry["__CURSOR"], unit, at, plain(message)
    except (ValueError, KeyError, TypeError):
        return None


def _stamp(at: str) -> str:
    """An engine's time with all nine digits, of which it leaves out zeros at the end."""
    seconds, _, fraction = at.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}Z"


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _text(line: bytes) -> str:
    return plain(line.decode("utf-8", "replace"))


def _away() -> tuple[type[Exception], ...]:
    """What the SDK raises when a container or the engine is gone."""
    import requests
    import urllib3
    from docker.errors import DockerException

    return (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except _away() as error:
        raise NapError(
            "the Docker Engine did not answer",
            words=[plain(str(error))[:300]],
            advice="On a single machine `nap status` tells what is down, and `nap up` starts it.",
        ) from error
