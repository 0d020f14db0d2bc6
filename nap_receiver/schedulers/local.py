"""The local scheduler: this machine, through a supervisord of its own, driven over XML-RPC.

A unit is a configuration file of one program in the state directory. supervisord reads all units when it starts, so the
instances run again after a reboot. To remove a unit, its file is deleted first; then its program is stopped and
forgotten. So a scheduler that is killed in between starts without it.
"""

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nap_receiver.core.drafts import put
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.core.supervision import Fault, Refused, Supervisor
from nap_receiver.engine.container import Body
from nap_receiver.model.release import DISCOVERY, Instance
from nap_receiver.schedulers.log_source import Source
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.scheduler import Dependency, RunsOn, Units, VersionOf, Work
from nap_receiver.schedulers.units import Unit, render

_ALIVE = {"STARTING", "RUNNING", "BACKOFF"}
_GONE = (Fault.BAD_NAME, Fault.NOT_RUNNING)
_LOOK_AGAIN_SECONDS = 0.05
_THERE = (Fault.BAD_NAME, Fault.ALREADY_ADDED)  # another deploy reads the folder too, and may be quicker


class Local:
    """A `Scheduler` for the machine of this state directory."""

    runs_on: RunsOn = "this machine"

    def __init__(self, state: State, settings: Settings) -> None:
        self._state, self._settings = state, settings
        self._supervisor = Supervisor(state.run / "scheduler.sock", "the local scheduler")

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        return Placement()

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        return body

    def start(self, work: Work) -> None:
        wanted = self._units(work)
        for unit in wanted:
            self._write(unit)
        added = self._reread()
        for name in (unit.name for unit in wanted if unit.name not in added):
            self._supervisor.unless((Fault.ALREADY_STARTED,), "startProcess", name, False)

    def require_placed(self, work: Work) -> None:
        pass  # there is one machine, this one

    def withdraw(self, instances: Sequence[str]) -> None:
        units = [instance + DISCOVERY for instance in instances]
        self._remove_files(units)
        for unit in units:
            self._end(unit, wait=True)

    def stop(self, instances: Sequence[str]) -> None:
        units = self.status().names  # what was stopped before keeps its log until something starts: `logs` shows it
        self._remove_files(instances)
        for instance in instances:
            if instance in units:
                self._end(instance, wait=False)

    def discard(self, instances: Sequence[str]) -> None:
        self._remove_files(instances)  # first, so that nothing of them starts again whatever fails below
        self.withdraw(instances)
        for instance in instances:
            self._supervisor.unless(_GONE, "signalProcess", instance, "USR1")
            self._end(instance, wait=True)

    def running(self, app: str) -> list[str]:
        return self.status().known_of(app)

    def status(self) -> Units:
        files = {path.stem for path in self._state.units.glob("*.conf")}
        states = {each["name"]: each["statename"] for each in self._supervisor.call("getAllProcessInfo")}
        alive = {name for name, state in states.items() if state in _ALIVE}
        return Units(frozenset(files | alive), frozenset(files & alive), frozenset(files | states.keys()))

    @contextmanager
    def logs(self, app: str) -> Iterator[Source]:
        from nap_receiver.engine.client import engine_at  # the engine's library is for those who call it
        from nap_receiver.schedulers.container_logs import Containers

        with engine_at(self._settings.engine.url) as engine:
            yield Containers(app, self._state, engine.api)

    def is_stopping(self, instance: str) -> bool:
        return False  # a unit that is stopping is no unit of `status` any more

    def is_ours(self, unit: str) -> bool:
        return True

    def how_to_remove(self, app: str, unit: str) -> str:
        return f"nap down, then rm {self._state.units}/{app}.*"

    def dependencies(self) -> Sequence[Dependency]:
        return ()

    def versions(self) -> Mapping[str, VersionOf]:
        return {}

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        return {}

    def apps_to_renew(self) -> list[str]:
        return sorted({path.name.partition(".")[0] for path in self._state.units.glob("*.conf")})

    def renew(self, work: Work, seconds: float) -> None:
        """Restart only units whose text has changed."""
        existing = [unit for unit in reversed(self._units(work)) if self._file(unit.name).exists()]
        changed = [unit for unit in existing if self._text(unit.name) != unit.text]
        for unit in changed:
            self._write(unit)
        if not changed:
            return
        self._supervisor.call("reloadConfig")
        patient = Supervisor(self._supervisor.path, "the local scheduler", seconds)
        for unit in changed:
            patient.remove(unit.name)
        for unit in changed:
            patient.unless(_THERE, "addProcessGroup", unit.name)

    def _units(self, work: Work) -> list[Unit]:
        """Return the units of these instances, each app unit first."""
        machine, url = self._state.name, self._settings.engine.url
        both = (render(each, work.bodies[each.key], self._settings, machine, url) for each in work.instances)
        return [unit for pair in both for unit in (pair.app, pair.discovery)]

    def _file(self, unit: str) -> Path:
        return self._state.units / f"{unit}.conf"

    def _text(self, unit: str) -> str:
        return self._file(unit).read_text(encoding="utf-8", errors="surrogateescape")

    def _write(self, unit: Unit) -> None:
        put(self._file(unit.name), unit.text, 0o600)

    def _remove_files(self, units: Iterable[str]) -> None:
        for unit in units:
            self._file(unit).unlink(missing_ok=True)

    def _end(self, unit: str, *, wait: bool) -> None:
        """Stop a unit whose file is gone; with `wait`, also wait for its end and forget it.

        A program that has just exited cannot be stopped, and supervisord may start it again before it is removed; then
        it can be stopped.
        """
        while True:
            stopping = self._supervisor.unless(_GONE, "stopProcess", unit, wait)
            if (not wait and (stopping or self._is_stopping(unit))) or self._forgotten(unit):
                return
            if self._is_stopping(unit):
                time.sleep(_LOOK_AGAIN_SECONDS)  # told to stop before; supervisord has no way to wait for it

    def _is_stopping(self, unit: str) -> bool:
        processes = self._supervisor.call("getAllProcessInfo")
        return any(each["name"] == unit and each["statename"] == "STOPPING" for each in processes)

    def _forgotten(self, unit: str) -> bool:
        """Remove the log of `unit` if supervisord no longer has it; return whether that is so."""
        try:
            self._supervisor.call("removeProcessGroup", unit)
        except Refused as refused:
            return refused.fault == Fault.BAD_NAME
        for log in (self._state.program_logs / "apps").glob(f"{unit}.log*"):
            log.unlink(missing_ok=True)
        return True

    def _reread(self) -> set[str]:
        """Make supervisord start new units of the folder, and forget removed and stopped ones; return the new ones."""
        [[added, _changed, removed]] = self._supervisor.call("reloadConfig")
        for group in removed:
            self._forgotten(group)
        for group in added:
            self._supervisor.unless(_THERE, "addProcessGroup", group)
        return set(added)
