"""Containers of instances: create, start and stop them, and tell how they ended."""

import fcntl
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from docker.errors import APIError, NotFound
from docker.utils import parse_repository_tag

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine.client import Engine
from nap_receiver.engine.container import DIGEST_LABEL, Body, bridge_of
from nap_receiver.engine.login import login_of
from nap_receiver.store.assignments import Assignment, Watched

WATCHED_LABEL = "nap.watched"
"""The label that has what the agent must know of an instance, for an etcd that has lost it."""

_RESTARTS = {"Name": "unless-stopped"}
_MOST_TRIES = 30  # the engine picks the host's ports, and never the same again
_PORT_IS_TAKEN = ("address already in use", "port is already allocated")
_KILLED = 128 + signal.SIGKILL
_LAST_LINES, _LAST_BYTES = 20, 8000


class NotStarted(NapError):
    """The engine could not create or start a container."""


@dataclass(frozen=True)
class Found:
    """A container as the engine describes it now."""

    id: str
    unit: str
    digest: str
    watched: Watched | None
    runs: bool
    restarting: bool
    """Whether it has ended, and the engine is about to start it again."""
    paused: bool
    health: str
    """Of its HEALTHCHECK: `starting`, `healthy`, `unhealthy`; empty where it has none."""
    started: str
    """When it was started last, as the engine tells it."""
    pid: int
    address: str
    ports: dict[str, int]
    """The host's ports by its own: `8080/tcp`."""
    memory: int
    restarts: bool
    healthcheck: dict[str, Any]
    shell: list[str]
    about: dict[str, Any]


class InstanceContainers:
    """The containers of this machine's instances on its engine."""

    def __init__(self, state: State, settings: Settings, engine: Engine) -> None:
        self._state, self._settings, self._engine = state, settings, engine
        self.api = engine.api

    def name(self, unit: str) -> str:
        """What the container of a unit is called."""
        return f"{unit}.{self._state.name}"

    def unit(self, name: str) -> str:
        """The unit whose container is called so; empty where it is none of this nap's."""
        unit, _, machine = name.removeprefix("/").rpartition(".")
        return unit if machine == self._state.name else ""

    def units(self) -> list[str]:
        """The units that have a container, running or not, by which the agent goes."""
        listed = self.api.containers(all=True, filters={"label": DIGEST_LABEL})
        return [unit for each in listed if each["Names"] and (unit := self.unit(each["Names"][0]))]

    def find(self, unit: str) -> Found | None:
        """The container of a unit, or None."""
        try:
            about = self.api.inspect_container(self.name(unit))
        except NotFound:
            return None
        state, config, host = about["State"], about["Config"], about["HostConfig"]
        labels, network = config.get("Labels") or {}, about["NetworkSettings"]
        published = {port: int(at[0]["HostPort"]) for port, at in (network.get("Ports") or {}).items() if at}
        addresses = [each["IPAddress"] for each in (network.get("Networks") or {}).values() if each.get("IPAddress")]
        return Found(
            about["Id"],
            unit,
            labels.get(DIGEST_LABEL, ""),
            _watched(labels.get(WATCHED_LABEL, "")),
            bool(state["Running"]) and not state["Restarting"],
            bool(state["Restarting"]),
            bool(state["Paused"]),
            (state.get("Health") or {}).get("Status", "").removeprefix("none"),
            state["StartedAt"],
            int(state["Pid"]),
            addresses[0] if addresses else "",
            published,
            int(host.get("Memory") or 0),
            (host.get("RestartPolicy") or {}).get("Name") == _RESTARTS["Name"],
            config.get("Healthcheck") or {},
            config.get("Shell") or ["/bin/sh", "-c"],
            about,
        )

    def create(self, unit: str, assignment: Assignment, body: Body) -> None:
        """Create the container of a unit. Raises `NotStarted`."""
        wanted = dict(body)
        wanted["HostConfig"] = body["HostConfig"] | {"RestartPolicy": _RESTARTS}
        watched = msgspec.json.encode(assignment.watched).decode()
        wanted["Labels"] = body["Labels"] | {WATCHED_LABEL: watched}
        self._engine.network(bridge_of(self._state.name))
        try:
            self._pull(body["Image"])
            self.api.create_container_from_config(wanted, self.name(unit))
        except APIError as error:
            raise NotStarted(_reason(error)) from error

    def _pull(self, image: str) -> None:
        try:
            self.api.inspect_image(image)
        except NotFound:
            login = login_of(self._state, self._settings)
            repository, tag = parse_repository_tag(image)
            with self._state.registry_lock.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)  # nap's own registry is stopped while it frees space
                self.api.pull(repository, tag=tag, auth_config=login.of_docker if login else None)

    def start(self, unit: str) -> None:
        """Start the container of a unit, on other ports where another engine has those. Raises `NotStarted`."""
        for left in reversed(range(_MOST_TRIES)):
            try:
                self.api.start(self.name(unit))
                return
            except APIError as error:
                if left and any(each in _reason(error) for each in _PORT_IS_TAKEN):
                    continue
                raise NotStarted(_reason(error)) from error

    def have_restarted(self, found: Found) -> None:
        """Have the engine restart a container whenever it ends, also if it was created without a restart policy."""
        if not found.restarts:
            self.api.update_container(found.id, restart_policy=_RESTARTS)

    def stop(self, unit: str, grace: int) -> None:
        """Stop the container of a unit: SIGTERM, and after so many seconds SIGKILL. Nothing where there is none."""
        with suppress(NotFound):
            self.api.stop(self.name(unit), timeout=grace)

    def restart(self, unit: str, grace: int) -> None:
        """Stop it likewise, and start it."""
        with suppress(NotFound):
            self.api.restart(self.name(unit), timeout=grace)

    def remove(self, unit: str) -> None:
        """Remove the container of a unit with its anonymous volumes, whether it runs or not."""
        try:
            self.api.remove_container(self.name(unit), force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:  # its removal is under way
                raise

    def last_lines(self, unit: str) -> bytes:
        """The last lines that the container of a unit printed, in the order of time."""
        try:
            printed = self.api.logs(self.name(unit), timestamps=True, tail=_LAST_LINES)
        except (NotFound, APIError):
            return b""
        lines = sorted(printed.splitlines(), key=lambda line: line.partition(b" ")[0])
        return b"\n".join(line.partition(b" ")[2] for line in lines)[-_LAST_BYTES:]

    def was_too_large(self, found: Found, status: int) -> bool:
        """Whether a container that ended just now with this status had used more memory than it may.

        The engine may tell of that only after its end, and is in no state of the container's that runs again by then.
        """
        if found.about["State"]["OOMKilled"]:
            return True
        if status != _KILLED:
            return False
        now, filters = int(time.time()), {"container": found.id, "event": "oom"}
        return any(True for _ in self.api.events(since=now - 10, until=now + 1, filters=filters, decode=True))

    def pids(self, unit: str) -> list[int]:
        """The processes of a container, by the machine's numbers."""
        try:
            top = self.api.top(self.name(unit), ps_args="-o pid")
        except APIError:
            return []
        return [int(row[0]) for row in top["Processes"] or [] if row[0].isdecimal()]

    def processor_time(self, unit: str) -> int:
        """Nanoseconds of processors that a container has used."""
        try:
            return int(
                self.api.stats(self.name(unit), stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"]
            )
        except (APIError, KeyError, TypeError):
            return 0


def _watched(label: str) -> Watched | None:
    try:
        return msgspec.json.decode(label, type=Watched) if label else None
    except msgspec.DecodeError:
        return None


def _reason(error: APIError) -> str:
    return plain(str(error.explanation or error).replace("\n", " "))
