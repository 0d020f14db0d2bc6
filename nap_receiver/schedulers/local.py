"""The local scheduler: this machine, whose agent runs the instances that it is assigned.

An assignment is a key in etcd (`store.assignments`), so what ran before a reboot runs after it.
"""

import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from nap_receiver.core.errors import NapError, some
from nap_receiver.core.paths import State
from nap_receiver.core.ready import is_ready
from nap_receiver.core.settings import Settings
from nap_receiver.engine.container import Body
from nap_receiver.model.app_url import url_of
from nap_receiver.model.release import DISCOVERY, Instance
from nap_receiver.schedulers import supervised_units
from nap_receiver.schedulers.log_source import Source
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.scheduler import Dependency, RunsOn, Units, VersionOf, Work
from nap_receiver.store import assignments
from nap_receiver.store.assignments import Assignment, DesiredState, assign, place_of, watched_of
from nap_receiver.store.etcdctl import Kept

_ORDER = {"running": 0, "withdrawn": 1, "stopped": 2, "discarded": 3}
_DISCARD_SECONDS = 30
_AGENT_SECONDS = 10
_LOOK_AGAIN_SECONDS = 0.1


class Local:
    """A `Scheduler` for the machine of this state directory."""

    runs_on: RunsOn = "this machine"

    def __init__(self, state: State, settings: Settings) -> None:
        self._state, self._settings = state, settings

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        return Placement()

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        return body

    def start(self, work: Work) -> None:
        self._require_agent()
        self._assign({instance.unit: self._running(instance, work) for instance in work.instances})

    def require_placed(self, work: Work) -> None:
        pass  # there is one machine, this one

    def withdraw(self, instances: Sequence[str]) -> None:
        self._change(instances, "withdrawn")

    def stop(self, instances: Sequence[str]) -> None:
        self._change(instances, "stopped")

    def discard(self, instances: Sequence[str]) -> None:
        if not instances:
            return
        self._change(instances, "discarded")
        from nap_receiver.store.etcd import connect

        places = self._settings.etcd
        with connect(places) as etcd:
            since = etcd.revision()
            place = place_of(places, self._state.name)
            left = {key for key in etcd.keys_below(place) if key.removeprefix(place) in instances}
            for change in etcd.changes([place], since, _DISCARD_SECONDS) if left else ():
                if change.value is None:
                    left.discard(change.key)
                if not left:
                    return
        if left:
            units = some(sorted(key.removeprefix(place) for key in left))
            raise NapError(
                f"{units} did not end within {_DISCARD_SECONDS} s", advice="See that the agent runs: nap status"
            )

    def running(self, app: str) -> list[str]:
        return self.status().known_of(app)

    def status(self) -> Units:
        given = self._assignments()
        there = {unit for unit, each in given.items() if each.is_to_run}
        announced = {unit + DISCOVERY for unit, each in given.items() if each.state == "running"}
        return Units(frozenset(there | announced), frozenset(there | announced), frozenset(given))

    @contextmanager
    def logs(self, app: str) -> Iterator[Source]:
        from nap_receiver.engine.client import engine_at  # the engine's library is for those who call it
        from nap_receiver.schedulers.container_logs import ContainerLogs

        with engine_at(self._settings.engine.url) as engine:
            yield ContainerLogs(app, self._state, engine.api)

    def is_stopping(self, instance: str) -> bool:
        given = self._assignments().get(instance)
        return given is not None and not given.is_to_run

    def is_ours(self, unit: str) -> bool:
        return True

    def how_to_remove(self, app: str, unit: str) -> str:
        return f"docker rm --force $(docker ps --all --quiet --filter label=nap.app={app})"

    def dependencies(self) -> Sequence[Dependency]:
        return ()

    def versions(self) -> Mapping[str, VersionOf]:
        return {}

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        return {}

    def apps_to_renew(self) -> list[str]:
        return sorted(
            {unit.partition(".")[0] for unit in (*self._assignments(), *supervised_units.digests(self._state))}
        )

    def renew(self, work: Work) -> None:
        """Change only running instances whose assignment differs: they get new containers."""
        given, before = self._assignments(), supervised_units.digests(self._state)
        wanted = {instance.unit: self._running(instance, work) for instance in work.instances}
        adopted = {unit: replace(wanted[unit], body=body) for unit, body in before.items() if unit in wanted}
        self._assign(adopted)
        known = {unit: each for unit, each in (given | adopted).items() if each.is_to_run}
        self._assign({unit: each for unit, each in wanted.items() if unit in known and known[unit] != each})

    def _require_agent(self) -> None:
        """Wait until the agent answers, which may just be starting again. Raises `NapError` where it does not."""
        deadline = time.monotonic() + _AGENT_SECONDS
        while not is_ready(str(self._state.agent_socket)):
            if time.monotonic() > deadline:
                raise NapError(
                    "the agent of this machine, which starts instances, does not answer",
                    advice="Ask the operator of this nap to run `nap up`: it starts what does not run.",
                )
            time.sleep(_LOOK_AGAIN_SECONDS)

    def _running(self, instance: Instance, work: Work) -> Assignment:
        url = url_of(instance.release.app, self._settings)
        return Assignment("running", work.bodies[instance.key], watched_of(instance, url))

    def _change(self, instances: Sequence[str], state: DesiredState) -> None:
        """Give those of these instances that are assigned another state, where that is a later one."""
        given = self._assignments()
        changed = [unit for unit in instances if unit in given and _ORDER[given[unit].state] < _ORDER[state]]
        self._assign({unit: replace(given[unit], state=state) for unit in changed})

    def _assign(self, given: Mapping[str, Assignment]) -> None:
        from nap_receiver.store.etcd import connect  # its library is for those who write

        with connect(self._settings.etcd) as etcd:
            assign(etcd, self._settings.etcd, self._state.name, given.items())

    def _assignments(self) -> dict[str, Assignment]:
        places = self._settings.etcd
        kept = Kept(places, [place_of(places, self._state.name)])
        return assignments.assignments(kept, places, self._state.name)
