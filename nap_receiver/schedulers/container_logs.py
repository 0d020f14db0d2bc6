"""Read the output of instances from this machine's engine, which has it as long as a container is there."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from http import HTTPStatus
from typing import Any

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.log_source import Line, Wanted, time_of

_TRY_AGAIN_SECONDS = 1.0
_PART_BYTES = 16 << 10
_LONGEST_LINE = 1 << 20  # bytes; the engine hands out a longer line than 16 KiB in parts


class ContainerLogs:
    """The containers of one app on this machine's engine."""

    def __init__(self, app: str, state: State, api: Any) -> None:
        self._app, self._state, self._api = app, state, api
        self._began = time.time()
        self._seen: dict[str, str] = {}  # by a container's id, the time of its last line that was told; or none yet
        self._followed: dict[str, bool] = {}  # by a container's id, whether it was started again meanwhile
        self._lock = threading.Lock()
        self.missing: list[str] = []

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        return [line for instance in instances for line in self._past_of(instance, max(most, 1))]

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        threading.Thread(target=self._watch, args=(wanted, tell), daemon=True).start()

    def _past_of(self, instance: Instance, most: int) -> list[Line]:
        container = self._inspected(f"{instance.unit}.{self._state.name}")
        lines = self._kept_by_engine(container["Id"], instance.label, most) if container else None
        if container and lines:
            self._seen[container["Id"]] = lines[-1].at
        return lines or []

    def _kept_by_engine(self, container: str, label: str, most: int) -> list[Line] | None:
        """Return the last lines of a container; None if it is gone or being removed."""
        from docker.errors import APIError

        with _answering():
            try:
                return list(self._said(container, label, follow=False, tail=most))
            except APIError as error:
                if error.status_code not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                    raise
                return None

    def _inspected(self, container: str) -> Any:
        """Return the engine's facts about a container, or None if it does not exist."""
        from docker.errors import NotFound

        with _answering():
            try:
                return self._api.inspect_container(container)
            except NotFound:
                return None

    def _said(self, container: str, label: str, **which: Any) -> Iterator[Line]:
        """Yield the output of a container by whole lines."""
        begun, at, is_cut = b"", "", False
        for part in self._api.logs(container, stream=True, timestamps=True, **which):
            stamp, _, text = part.partition(b" ")
            if begun and not is_cut:  # the last of a run, which had no end of a line
                yield Line(at, label, _text(begun))
                begun = b""
            is_cut = len(text) >= _PART_BYTES
            at = at if begun else _stamp(stamp.decode())
            begun += text
            if begun.endswith(b"\n") or len(begun) > _LONGEST_LINE:
                yield Line(at, label, _text(begun))
                begun = b""
        if begun:
            yield Line(at, label, _text(begun))

    def _watch(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """Follow each existing container and each that starts; never ends."""
        filters = {"type": "container", "label": f"nap.app={self._app}", "event": ["start", "die"]}
        since, first = int(self._began), True
        while True:
            with suppress(*_away()):  # an engine that went away may come back
                events = self._api.events(since=since, filters=filters, decode=True)
                for listed in self._api.containers(all=True, filters={"label": f"nap.app={self._app}"}):
                    if first:  # what those printed before that were not asked for is not wanted now
                        self._seen.setdefault(listed["Id"], time_of(self._began))
                    self._follow(listed["Id"], listed["Names"][0].lstrip("/"), wanted, tell)
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
                self._followed[container] = True
                return
            self._followed[container] = False
        self._seen.setdefault(container, "")
        threading.Thread(target=self._pass_on, args=(container, label, tell), daemon=True).start()

    def _pass_on(self, container: str, label: str, tell: Callable[[Line], None]) -> None:
        """Report the output of a container until it or the engine has ended; also when it is started again."""
        while True:
            self._pass_on_run(container, label, tell)
            with self._lock:
                if not self._followed[container]:
                    del self._followed[container]
                    return
                self._followed[container] = False

    def _pass_on_run(self, container: str, label: str, tell: Callable[[Line], None]) -> None:
        """Report the output of a container until it or the engine has ended."""
        with suppress(*_away()):
            for follow in (True, False):  # of what it said last, the engine keeps a line without an end from followers
                last = self._seen[container]
                since = {"since": int(datetime.fromisoformat(last[:19] + "Z").timestamp())} if last else {}
                for line in self._said(container, label, follow=follow, **since):
                    if line.at > last:
                        tell(line)
                        self._seen[container] = line.at


def _stamp(at: str) -> str:
    """Return an engine's time with all nine digits: the engine omits zeros at the end."""
    seconds, _, fraction = at.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}Z"


def _text(line: bytes) -> str:
    return plain(line.decode("utf-8", "replace"))


def _away() -> tuple[type[Exception], ...]:
    """Return the exceptions of the SDK for a missing container or engine."""
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
            advice="`nap status` shows what is down; on a single machine `nap up` starts it.",
        ) from error
