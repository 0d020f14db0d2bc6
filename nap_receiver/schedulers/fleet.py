"""The fleet scheduler: a cluster of machines, driven through fleetctl. The only module that knows fleetctl.

fleetctl's exit status does not show whether a command worked (docs/design/fleet.md). So the result is read back:
running instances from their announcements, the others from fleet. fleetctl has no watch, so it is called again.
"""

import os
import re
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sh

from nap_receiver.core.errors import NapError
from nap_receiver.core.jobs import is_at_work, start_job
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.settings import Settings, load
from nap_receiver.engine.container import Body
from nap_receiver.model.release import DISCOVERY, Instance
from nap_receiver.schedulers.log_source import Source
from nap_receiver.schedulers.placement import Machine, Placement, placement_of
from nap_receiver.schedulers.scheduler import Dependency, RunsOn, Units, VersionOf, Work
from nap_receiver.schedulers.units import InstanceUnits, render

TAKING_AWAY = "take-away-units"
"""The kind of job that destroys units when they have stopped (`core.jobs`)."""

_ASK_AGAIN_SECONDS = 0.5
_SPARE_SECONDS = 5  # over the requests' own timeouts, for a program that hangs
_STOP_SPARE_SECONDS = 20  # for what the unit does when it has ended, and for fleet to notice
_ENDED = {"inactive", "failed"}


class Fleet:
    """A `Scheduler` for a cluster."""

    runs_on: RunsOn = "a cluster"

    def __init__(self, state: State, settings: Settings) -> None:
        self._state = state
        self._all = settings
        self._settings = settings.fleet
        self._places = settings.etcd
        self._stop_seconds = settings.deploy.drain + settings.deploy.grace + _STOP_SPARE_SECONDS

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        return placement_of(app, repository, self._settings, formation, self.machines)

    def machines(self) -> list[Machine]:
        """Return the machines of the cluster."""
        rows = self._listed("list-machines", "machine,ip,metadata")
        return [
            Machine(id, ip, frozenset(each.strip() for each in metadata.split(",") if "=" in each))
            for id, ip, metadata in rows
        ]

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        for bindings in body["HostConfig"].get("PortBindings", {}).values():
            bindings[0]["HostIp"] = ""  # all of the machine's: which machine it will be is not known here
        body["Labels"]["nap.unit"] = _file(instance.unit)
        body["HostConfig"]["AutoRemove"] = True  # a unit that fleet destroys does no more than end
        return body

    def start(self, work: Work) -> None:
        texts = {_file(unit.name): unit.text for pair in self._units(work) for unit in (pair.app, pair.discovery)}
        with tempfile.TemporaryDirectory(prefix="nap-units-") as folder:
            for name, text in texts.items():
                Path(folder, name).write_text(text, encoding="utf-8", errors="surrogateescape")
            output = self._call("start", "--no-block", *(str(Path(folder, name)) for name in texts))
        if "differs from local unit file" in output:
            raise NapError(
                "the cluster already has different units of these names",
                words=output.splitlines(),
                advice="To see them: fleetctl list-unit-files. The next push uses new names.",
            )

    def require_placed(self, work: Work) -> None:
        units = self._units(work)
        targets = self._desired()
        missing = {_file(unit.name) for pair in units for unit in (pair.app, pair.discovery)} - targets.keys()
        if missing:
            raise NapError(
                f"fleet accepted {', '.join(sorted(missing))}, but no longer has it",
                advice="Somebody may have destroyed it: fleetctl list-unit-files. Then push again.",
            )
        for unit in (pair.app for pair in units if targets[_file(pair.app.name)] == "-"):
            asked = re.findall(r"^(Machine\w+=.*|Conflicts=.*)$", unit.text.partition("[X-Fleet]")[2], re.MULTILINE)
            machines = "; ".join(map(str, self.machines())) or "none"
            raise NapError(
                f"fleet finds no machine for {unit.name}: it asks for {', '.join(asked) or 'any'}; the machines are: "
                f"{machines}",
                advice="Fix its nap.metadata, nap.machine or nap.spread. To see the units: fleetctl list-unit-files",
            )

    def withdraw(self, instances: Sequence[str]) -> None:
        self._tell_to_stop(map(_discovery, instances))

    def stop(self, instances: Sequence[str]) -> None:
        if not instances:
            return
        self._tell_to_stop(_units(instances))
        # What is left to do takes as long as the instances take, and nobody waits for it.
        start_job(self._state, TAKING_AWAY, __name__, instances, "taken-away.log")

    def discard(self, instances: Sequence[str]) -> None:
        self.stop(instances)

    def destroy_when_stopped(self, instances: Sequence[str]) -> None:
        """Stop these instances, and destroy their units when they have stopped or their time is over.

        fleet removes a unit's file while the unit stops, and systemd then forgets its stop timeout (seen on fleet
        1.0.0: it reloads systemd at once after each unit that it removes).
        """
        units = _units(instances)

        def stopped() -> bool:
            cannot_yet = self._tell_to_stop(units)
            states = dict(self._listed("list-units", "unit,active"))
            return not cannot_yet and all(states.get(_file(unit), "inactive") in _ENDED for unit in units)

        deadline = time.monotonic() + self._stop_seconds
        while not stopped() and time.monotonic() < deadline:
            time.sleep(_ASK_AGAIN_SECONDS)
        self._destroy(units)

    def _tell_to_stop(self, units: Iterable[str]) -> list[str]:
        """Tell these units to stop; those that a machine was told to start and that fleet has not yet seen to run.

        Not by destroying them, which fleet's machines hear of 5 s later than of a state to be in.
        """
        rows = {unit: about for unit, *about in self._listed("list-unit-files", "unit,dstate,state,target")}
        wanted = {_file(unit): rows[_file(unit)] for unit in units if rows.get(_file(unit), [""])[0] == "launched"}
        if launched := [unit for unit, (_, state, _) in wanted.items() if state == "launched"]:
            self._call("stop", "--no-block", *launched)
        return [unit for unit, (_, state, target) in wanted.items() if state != "launched" and target != "-"]

    def running(self, app: str) -> list[str]:
        return self.status().known_of(app)

    def _units(self, work: Work) -> list[InstanceUnits]:
        return [render(each, work.bodies[each.key], self._all, work.placement) for each in work.instances]

    def status(self) -> Units:
        rows = self._listed("list-unit-files", "unit,dstate")
        states = {name.removesuffix(".service"): state for name, state in rows}
        started = frozenset(name for name, state in states.items() if state == "launched")
        return Units(frozenset(states), started, frozenset(states))

    def is_stopping(self, instance: str) -> bool:
        return is_at_work(self._state, TAKING_AWAY, instance)

    def is_ours(self, unit: str) -> bool:
        """Its text tells: where it says how its instance ended. False where there is no such unit any more."""
        try:
            text = self._call("cat", _file(unit))
        except NapError:
            if _file(unit) in self._desired():
                raise
            return False
        return self._places.exits_of(unit.partition(".")[0]) in text and self._places.url in text

    @contextmanager
    def logs(self, app: str) -> Iterator[Source]:
        from nap_receiver.schedulers.journal_logs import Journals

        if not self._settings.logs:
            raise NapError(
                "the logs are in the journals of the cluster's machines, and fleet.logs is not set",
                advice='Ask the operator to set fleet.logs, such as "ssh://root@{address}" (docs/logs.md).',
            )
        with closing(Journals(self._settings.logs, self.machines(), self._settings.request_timeout)) as journals:
            yield journals

    def apps_to_renew(self) -> list[str]:
        return []  # units are given to the cluster with each release, and stay as they are

    def renew(self, work: Work) -> None:
        pass

    def how_to_remove(self, app: str, unit: str) -> str:
        return f"fleetctl destroy {unit}.service {_discovery(unit)}.service"

    def dependencies(self) -> Sequence[Dependency]:
        return (Dependency("fleet", self._settings.endpoint, self._has_machines),)

    def _has_machines(self) -> bool:
        try:
            return bool(self.machines())
        except NapError:
            return False

    def versions(self) -> Mapping[str, VersionOf]:
        return {"fleetctl": VersionOf((self._settings.fleetctl, "--version"), "1.0.0")}

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        endpoint = self._settings.endpoint
        if not endpoint.startswith("http://") or self._settings.tunnel:
            return {}
        found: dict[str, tuple[str, ssl.SSLContext | None]] = {"fleet": (endpoint, None)}
        if self._settings.driver == "API":
            port = re.sub(r".*:(?=\d+/?$)|.*", "", endpoint).strip("/") or "80"
            found |= {f"machine {each.address}": (f"http://{each.address}:{port}", None) for each in self.machines()}
        return found

    def _destroy(self, units: Iterable[str]) -> None:
        names = [_file(unit) for unit in units]
        if not names:
            return
        try:
            self._call("destroy", *names)
        except NapError:  # also where somebody else was quicker
            if set(names) & self._desired().keys():
                raise

    def _desired(self) -> dict[str, str]:
        """Return the units of the cluster, each with the machine that should run it, or `-`."""
        return dict(self._listed("list-unit-files", "unit,target"))

    def _listed(self, command: str, fields: str) -> list[Any]:
        """Return these fields of each line."""
        output = self._call(command, "--no-legend", "--full", "--fields", fields)
        rows = [tuple(re.split(r"\t+", line.strip())) for line in output.splitlines() if line.strip()]
        bad = next((row for row in rows if len(row) != fields.count(",") + 1), None)
        if bad is not None:
            raise NapError(f"fleetctl {command} printed something unexpected: {' '.join(bad)[:200]}")
        return rows

    def _call(self, command: str, *words: str) -> str:
        """Run fleetctl and return both its outputs. Raises `NapError` with its words if it fails or hangs."""
        settings = self._settings
        options = {
            "endpoint": settings.endpoint,
            "driver": settings.driver,
            "tunnel": settings.tunnel,
            "ca-file": settings.ca,
            "cert-file": settings.certificate,
            "key-file": settings.key,
            "request-timeout": str(settings.request_timeout),
        }
        flags = [f"--{name}={value}" for name, value in options.items() if value]
        seconds = settings.request_timeout * 2 + len(words) + _SPARE_SECONDS
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEETCTL_")}
        advice = f"Check that the cluster answers: fleetctl --endpoint={settings.endpoint} list-machines"
        fleetctl = shutil.which(settings.fleetctl)
        if fleetctl is None:
            raise NapError(
                f"{settings.fleetctl} is not installed here", advice="Install it, or set fleet.fleetctl to its path."
            )
        try:
            # timeout(1), because with sh's own timeout each call takes a tenth of a second longer.
            limited = sh.Command("timeout").bake("--kill-after=1", seconds)
            done = limited(fleetctl, *flags, command, *words, _env=environment, _tty_out=False, _return_cmd=True)
        except sh.ErrorReturnCode_124 as error:
            raise NapError(f"fleetctl {command} did not end within {seconds} s", advice=advice) from error
        except sh.ErrorReturnCode as error:
            lines = (error.stderr + error.stdout).decode("utf-8", "replace").strip().splitlines()
            what = next((line for line in lines if line.startswith("Error")), f"exit status {error.exit_code}")
            more = [line for line in lines if line != what]
            raise NapError(f"fleetctl {command} failed: {what}", words=more[-10:], advice=advice) from error
        return str((done.stdout + done.stderr).decode("utf-8", "replace"))


def _units(instances: Iterable[str]) -> list[str]:
    return [unit for instance in instances for unit in (instance, _discovery(instance))]


def _discovery(instance: str) -> str:
    return instance + DISCOVERY


def _file(unit: str) -> str:
    return f"{unit}.service"


def main() -> None:
    """Remove stopped instances: `python -m nap_receiver.schedulers.fleet STATE INSTANCE…`."""
    keep_private()
    root, *instances = sys.argv[1:]
    state = state_at(root)
    settings = load(state).settings
    from nap_receiver.store.etcd import connect  # its libraries are for those who call it

    try:
        Fleet(state, settings).destroy_when_stopped(instances)
        with connect(settings.etcd) as etcd:
            for app, _, key in (instance.partition(".") for instance in instances):
                etcd.delete(f"{settings.etcd.exits_of(app)}{key}")
    except NapError as error:
        print(time.strftime("%F %T"), *instances, error)


if __name__ == "__main__":
    main()
