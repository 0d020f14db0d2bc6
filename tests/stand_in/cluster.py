"""A cluster of one machine: the registry of units, and what fleetd does about it, in a process of its own.

A folder is the cluster. `fleet.json` says which container is its machine; without that file nothing answers there.
`units.json` is what fleet keeps in etcd. What fleetd keeps in memory is a file for each unit on the machine, so that a
machine that boots has forgotten it, as fleetd has. `errors.log` is what fleetd would write to the journal.
"""

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.stand_in.unit_file import Option, UnitFile, matches, words

CONFIGURATION = "fleet.json"
ERRORS = "errors.log"

_FLEETD_LOCK = "fleetd.lock"
_FILES = "/run/fleet/units"
_KNOWN = "/run/fleet/known"
_DOCKER_SECONDS = 30
_LATE_SECONDS = 0.2  # long enough that whoever asks at once is told that nothing has happened yet
_NOT_UP = 9
# As far as anyone can tell, fleetd starts when the machine has booted.
_REQUIRE_UP = f"systemctl is-active --quiet multi-user.target 2>/dev/null || exit {_NOT_UP}\n"
# A unit that goes away meanwhile is left out of both halves.
_LOOK = f"""
cd {_KNOWN} 2>/dev/null && set -- * && [ -e "$1" ] || exit 0
for unit; do
    shift
    {{ read -r known <"$unit"; }} 2>/dev/null || continue
    printf '%s %s\\n' "$unit" "$known"
    set -- "$@" "$unit"
done
echo
[ $# = 0 ] || systemctl show --property=LoadState,ActiveState,SubState -- "$@"
"""
_KNOW = f"""
know() {{ echo "$2" >{_KNOWN}/.draft && mv {_KNOWN}/.draft {_KNOWN}/"$1"; }}
mkdir -p {_FILES} {_KNOWN}
"""


class Away(Exception):
    """The machine is switched off, or not up yet."""


class Machine(NamedTuple):
    """What `fleet.json` says."""

    engine: str
    """The URL of the engine that the container is on."""
    container: str
    id: str
    address: str
    metadata: Mapping[str, str]

    def fits(self, requirements: Mapping[str, Sequence[str]]) -> bool:
        """Whether `MachineID=` and `MachineMetadata=` allow this machine."""
        asked: dict[str, set[str]] = {}
        for pair in requirements.get("MachineMetadata", []):
            key, _, value = pair.partition("=")
            if key and value and "=" not in value:
                asked.setdefault(key, set()).add(value)
        wanted = requirements.get("MachineID", [self.id])[0]
        return wanted in (self.id, self.id[:8]) and all(self.metadata.get(key) in asked[key] for key in asked)

    def sh(self, script: str) -> tuple[str, str]:
        """What `script` says on the machine, on both its outputs. Raises `Away`."""
        done = subprocess.run(
            ["docker", "--host", self.engine, "exec", "--interactive", self.container, "sh"],
            input=(_REQUIRE_UP + script).encode(),
            capture_output=True,
            timeout=_DOCKER_SECONDS,
        )
        complaints = done.stderr.decode()
        if done.returncode == _NOT_UP or re.search("is not running|No such container|stopped container", complaints):
            raise Away
        if done.returncode != 0:
            raise RuntimeError(f"{self.container}: {complaints}")
        return done.stdout.decode(), complaints


class Unit:
    """A unit of the registry."""

    def __init__(self, options: Sequence[Option], desired: str = "inactive", target: str = "") -> None:
        """`desired` is `inactive`, `loaded` or `launched`; `target` the machine that it is scheduled to."""
        self.options, self.desired, self.target = options, desired, target

    @property
    def file(self) -> UnitFile:
        return UnitFile(self.options)


class Loaded(NamedTuple):
    """A unit that fleetd has given to systemd, and what systemd says of it."""

    state: str
    """`loaded` or, once it was told to start, `launched`."""
    hash: str
    load: str
    active: str
    sub: str


class Cluster:
    """What a folder says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.machine = Machine(**json.loads((folder / CONFIGURATION).read_text()))

    def units(self) -> dict[str, Unit]:
        """The registry, by name."""
        with self._locked("units.lock"):
            return self._read()

    @contextmanager
    def changing(self) -> Iterator[dict[str, Unit]]:
        """The registry, to be changed by nobody else meanwhile."""
        with self._locked("units.lock"):
            units = self._read()
            yield units
            draft = self._folder / "units.draft"
            draft.write_text(json.dumps({name: vars(unit) for name, unit in sorted(units.items())}))
            draft.rename(self._folder / "units.json")

    def loaded(self) -> dict[str, Loaded]:
        """What is on the machine, by name. Raises `Away`."""
        return self._loaded_after("")

    def _loaded_after(self, tasks: str) -> dict[str, Loaded]:
        said, complaints = self.machine.sh(tasks + _LOOK)
        if complaints:
            with (self._folder / ERRORS).open("a") as log:
                log.write(complaints)
        known, _, states = said.strip().partition("\n\n")
        found = {}
        for line, block in zip(known.splitlines(), states.split("\n\n"), strict=True) if known else ():
            name, state, hash = line.split()
            facts = dict(fact.split("=", 1) for fact in block.splitlines())
            found[name] = Loaded(state, hash, facts["LoadState"], facts["ActiveState"], facts["SubState"])
        return found

    def wake(self) -> None:
        """Have fleetd look at the registry, a moment from now."""
        if os.fork():
            return
        try:  # whatever happens, this process must not go on as the command
            os.setsid()
            # Whoever called fleetctl reads until its outputs are closed.
            log = os.open(self._folder / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.closerange(3, 1024)
            time.sleep(_LATE_SECONDS)
            self._reconcile()
        except Exception:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)

    def wake_if_needed(self, units: dict[str, Unit], loaded: Mapping[str, Loaded]) -> None:
        """Have fleetd look where something is left to do; as it does by itself every 5 s."""
        self._schedule(units, there=True)
        if not self._tasks(units, loaded):
            return
        with (self._folder / _FLEETD_LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        self.wake()

    def _reconcile(self) -> None:
        with self._locked(_FLEETD_LOCK):
            tasks = ""
            while True:
                before = tasks
                try:
                    loaded = self._loaded_after(_KNOW + before)
                except Away:
                    loaded = None
                with self.changing() as units:
                    self._schedule(units, there=loaded is not None)
                tasks = "" if loaded is None else self._tasks(units, loaded)
                if tasks in ("", before):
                    return

    def _schedule(self, units: dict[str, Unit], *, there: bool) -> None:
        for _ in range(len(units) + 1):
            before = {name: unit.target for name, unit in units.items()}
            for name, unit in sorted(units.items(), key=lambda pair: not pair[1].target):
                fits = there and unit.desired != "inactive" and self._fits(name, units)
                unit.target = self.machine.id if fits else ""
            if before == {name: unit.target for name, unit in units.items()}:
                return

    def _fits(self, name: str, units: Mapping[str, Unit]) -> bool:
        here = {other: unit for other, unit in units.items() if unit.target and unit.desired != "inactive"}
        asked = units[name].file.requirements(name)
        return (
            self.machine.fits(asked)
            and all(peer in here for peer in asked.get("MachineOf", []))
            and not any(
                _conflict(name, asked, other, unit.file.requirements(other))
                for other, unit in here.items()
                if other != name
            )
        )

    def _tasks(self, units: Mapping[str, Unit], loaded: Mapping[str, Loaded]) -> str:
        """The commands that make what is loaded what is wanted, in fleetd's order; empty for none."""
        here = {name: unit for name, unit in units.items() if unit.target}
        hashes = {name: unit.file.hash for name, unit in here.items()}
        unload = [name for name, unit in loaded.items() if unit.hash != hashes.get(name)]
        load = [name for name in here if name not in loaded or name in unload]
        states = {name: "loaded" if name in load else loaded[name].state for name in here}
        change = {state: [n for n in here if here[n].desired == state != states[n]] for state in ("loaded", "launched")}
        tasks = []
        if unload:
            names = shlex.join(unload)
            tasks += [
                f"(cd {_KNOWN} && rm -f -- {names})",
                f"systemctl stop --no-block -- {names}",
                f"systemctl disable --quiet --runtime --no-reload -- {names}",
                f"systemctl reset-failed -- {names} 2>/dev/null",  # complains of those that are not loaded
                f"(cd {_FILES} && rm -f -- {names})",
            ]
        for name in load:
            file = shlex.quote(f"{_FILES}/{name}")
            installed = any(section == "Install" for section, _, _ in here[name].options)
            tasks += [
                f"know {shlex.quote(name)} 'loaded {hashes[name]}'",
                f"printf %s {shlex.quote(here[name].file.text)} >{file}",
                f"systemctl {'enable' if installed else 'link'} --quiet --runtime --force --no-reload -- {file}",
            ]
        if unload or load:
            tasks.append("systemctl daemon-reload")
        for state, command in (("loaded", "stop"), ("launched", "start")):
            tasks += [f"know {shlex.quote(name)} '{state} {hashes[name]}'" for name in change[state]]
            if change[state]:
                tasks.append(f"systemctl {command} --no-block -- {shlex.join(change[state])}")
        return "\n".join(tasks)

    def _read(self) -> dict[str, Unit]:
        try:
            text = (self._folder / "units.json").read_text()
        except FileNotFoundError:
            return {}
        return {
            name: Unit(
                [(section, key, value) for section, key, value in told["options"]], told["desired"], told["target"]
            )
            for name, told in json.loads(text).items()
        }

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._folder / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _conflict(one: str, of_one: dict[str, list[str]], other: str, of_other: dict[str, list[str]]) -> bool:
    return any(matches(pattern, other) for pattern in words(of_one, "Conflicts")) or any(
        matches(pattern, one) for pattern in words(of_other, "Conflicts")
    )
