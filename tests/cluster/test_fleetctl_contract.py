"""What nap relies on of fleetctl, asked of its stand-in and, where there is one, of a real cluster.

Both pass the same tests, so that what nap's other tests see of the stand-in is what a cluster would have done.
"""

import hashlib
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from tests.fleet_cluster import Cluster
from tests.lone_machine import LoneMachine
from tests.nap import eventually
from tests.real_machine import Machine
from tests.stand_in import FLEETCTL

SECONDS = 60
"""How long a real cluster may take for anything but a start that never ends."""

UNIT_FIELDS = "unit,machine,active,sub,load,hash"
FILE_FIELDS = "unit,hash,dstate,state,target,desc,global"

# The moment it takes to stop is for the real fleetd, which does nothing else for 5 s when a unit that it takes away has
# ended already (it cannot "reset" what systemd has forgotten).
SLEEPS = "[Unit]\nDescription=it sleeps\n[Service]\nExecStart=/bin/sleep 1000\nExecStop=/bin/sleep 0.2\n"
SLEEPS_TOO = SLEEPS.replace("1000", "1001")
DIES = "[Service]\nExecStart=/bin/false\n"
FITS_NOWHERE = f"{SLEEPS}[X-Fleet]\nMachineMetadata=region=nowhere\n"
N1 = "[X-Fleet]\nMachineMetadata=name=n1\n"
ON_ONE_MACHINE = SLEEPS + N1


class Fleet(Protocol):
    """A cluster, as fleetctl reaches it."""

    @property
    def machines(self) -> list[Machine]:
        """Those that fleet lists."""

    def fleetctl(self, *words: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run fleetctl for at most `seconds`, however it ends."""


@dataclass(frozen=True)
class Played:
    """The stand-in's."""

    endpoint: str
    machines: list[Machine]

    def fleetctl(self, *words: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        return _run(str(FLEETCTL), f"--endpoint={self.endpoint}", *words, seconds=seconds)


@dataclass(frozen=True)
class Real:
    """A real one, through fleet's API or through its etcd."""

    program: Path
    flags: tuple[str, ...]
    machines: list[Machine]

    def fleetctl(self, *words: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        return _run(str(self.program), *self.flags, *words, seconds=seconds)


def _run(*words: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, text=True, capture_output=True, timeout=seconds)


@pytest.fixture(scope="module")
def played(lone_machine: LoneMachine) -> Iterator[Played]:
    endpoint = lone_machine.variables["NAP_FLEET_ENDPOINT"]
    errors = Path(endpoint.removeprefix("unix://")).with_name("errors.log")
    before = errors.read_text()
    yield Played(endpoint, [*lone_machine.machines.values()])
    assert errors.read_text() == before


@pytest.fixture(
    scope="module",
    params=[
        "stand-in",
        pytest.param("real", marks=pytest.mark.cluster),
        pytest.param("real, by etcd", marks=pytest.mark.cluster),
    ],
)
def fleet(request: pytest.FixtureRequest) -> Fleet:
    if request.param == "stand-in":
        played: Played = request.getfixturevalue("played")
        return played
    if not os.environ.get("FLEET_BIN"):
        pytest.skip("FLEET_BIN is not set: fleetctl's contract is checked on its stand-in only")
    cluster: Cluster = request.getfixturevalue("cluster")
    machines = [*cluster.machines.values()]
    by_api = ("--endpoint", f"http://{machines[0].address}:49153")
    by_etcd = ("--driver", "etcd", "--endpoint", f"http://{cluster.etcd}")
    return Real(cluster.fleet_bin / "fleetctl", by_etcd if "etcd" in request.param else by_api, machines)


@dataclass
class Units:
    """A test's own units: their files, and what the cluster has of them."""

    fleet: Fleet
    folder: Path
    mark: str = field(default_factory=lambda: f"contract-{secrets.token_hex(4)}")

    def name(self, label: str = "a") -> str:
        return f"{self.mark}.{label}.service"

    def file(self, text: str = SLEEPS, label: str = "a") -> str:
        """The path of a unit's file, written anew."""
        path = self.folder / self.name(label)
        path.write_text(text.replace("PEER", self.mark))
        return str(path)

    def fleetctl(self, *words: str, seconds: float = 60) -> tuple[int, list[str], str]:
        """The exit status, the lines of the output, and what it complains of, both without the units' mark."""
        done = self.fleet.fleetctl(*words, seconds=seconds)
        folder = f"{self.folder}/"
        output, errors = (text.replace(folder, "").replace(f"{self.mark}.", "") for text in (done.stdout, done.stderr))
        return done.returncode, output.splitlines(), errors

    def row(self, label: str = "a") -> dict[str, str]:
        """What `list-unit-files` says of a unit; nothing of one that is not there."""
        return self._row("list-unit-files", FILE_FIELDS, label)

    def state(self, label: str = "a") -> dict[str, str]:
        """What `list-units` says of a unit; nothing of one that is on no machine."""
        return self._row("list-units", UNIT_FIELDS, label)

    def machine(self, label: str = "a") -> Machine:
        """The machine that a unit is scheduled to."""
        address = self.row(label)["target"].partition("/")[2]
        return next(machine for machine in self.fleet.machines if machine.address == address)

    def await_active(self, active: str = "active", label: str = "a") -> None:
        eventually(lambda: self.state(label).get("active") == active, SECONDS, f"{label} is {active}")

    def start(self, text: str = SLEEPS, label: str = "a") -> None:
        """Have a unit started, and return when systemd says it is active."""
        assert self.fleetctl("start", "--no-block", self.file(text, label))[0] == 0
        self.await_active(label=label)

    def _row(self, command: str, fields: str, label: str) -> dict[str, str]:
        done = self.fleet.fleetctl(command, "--no-legend", "--full", "--fields", fields)
        assert (done.returncode, done.stderr) == (0, "")
        rows = [re.split(r"\t+", line) for line in done.stdout.splitlines()]
        assert all(len(row) == fields.count(",") + 1 for row in rows)
        return next((dict(zip(fields.split(","), row, strict=True)) for row in rows if row[0] == self.name(label)), {})


@pytest.fixture
def units(fleet: Fleet, tmp_path: Path) -> Iterator[Units]:
    units = Units(fleet, tmp_path)
    yield units
    fleet.fleetctl("destroy", *(file.name for file in tmp_path.iterdir()))


@pytest.fixture(scope="module")
def running(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Units]:
    """Units of which `a` runs, for tests that leave it as it is."""
    units = Units(fleet, tmp_path_factory.mktemp("running"))
    units.start()
    yield units
    fleet.fleetctl("destroy", units.name())


# submit


def test_submit_takes_a_unit_and_does_nothing_with_it(units: Units) -> None:
    assert units.fleetctl("submit", units.file()) == (0, ["Unit a.service inactive"], "")
    inactive = {"dstate": "inactive", "state": "inactive", "target": "-"}
    assert units.row().items() >= (inactive | {"desc": "it sleeps", "global": "false"}).items()
    assert units.state() == {}


def test_submit_takes_several(units: Units) -> None:
    status, lines, errors = units.fleetctl("submit", units.file(), units.file(label="b"))
    assert (status, sorted(lines), errors) == (0, ["Unit a.service inactive", "Unit b.service inactive"], "")


def test_submit_of_the_same_text_says_nothing(units: Units) -> None:
    units.fleetctl("submit", units.file())
    assert units.fleetctl("submit", units.file(f"# a comment\n{SLEEPS}")) == (0, [], "")


def test_submit_of_changed_text_changes_nothing(units: Units) -> None:
    units.fleetctl("submit", units.file())
    before = units.row()
    warning = "WARNING: Unit a.service in registry differs from local unit file a.service. Add --replace to override.\n"
    assert units.fleetctl("submit", units.file(SLEEPS_TOO)) == (0, [], warning)
    assert units.row() == before


def test_submit_can_replace(units: Units) -> None:
    units.fleetctl("submit", units.file())
    before = units.row()
    assert units.fleetctl("submit", "--replace", units.file(SLEEPS_TOO)) == (0, ["Unit a.service inactive"], "")
    assert units.row() == before | {"hash": units.row()["hash"]} != before
    same = ["Found same Unit(a.service) in Registry, nothing to do"]
    assert units.fleetctl("submit", "--replace", units.file(SLEEPS_TOO)) == (0, same, "")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (
            "submit",
            "WARNING: Unit a.service in registry differs from local unit file a.service. Add --replace to override.",
        ),
        (
            "submit --replace",
            "Warning: can not replace Unit(a.service) in state 'launched', use the appropriate command",
        ),
        (
            "start",
            "WARNING: Unit a.service in registry differs from local unit file a.service. Add --replace to override.",
        ),
    ],
    ids=["submit", "replace", "start"],
)
def test_what_is_launched_stays_as_it_is(running: Units, command: str, complaint: str) -> None:
    before = running.row()
    changed = running.file(SLEEPS_TOO)
    assert running.fleetctl(*command.split(), changed) == (0, [], f"{complaint}\n")
    assert running.row() == before


def test_submit_of_a_missing_file(units: Units) -> None:
    why = "unable to find Unit(a.service) in Registry or on filesystem"
    assert units.fleetctl("submit", str(units.folder / units.name())) == (1, [], f"Error creating units: {why}\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[Unit\nDescription=x\n", "unable to find end of section"),
        ("[Unit] x\n", "found garbage after section name : [120]"),
        ("[Unit]\nnonsense\n", "unexpected newline encountered while parsing option name"),
        ("[Unit]\nnonsense", "EOF"),
        (f"[Service]\nExecStart=/bin/true {'x' * 2048}\n", "line too long (max 2048 bytes)"),
    ],
    ids=["section", "garbage", "newline", "end", "long"],
)
def test_submit_of_bad_syntax(units: Units, text: str, why: str) -> None:
    complaint = f"Error creating units: failed getting Unit(a.service) from file: {why}\n"
    assert units.fleetctl("submit", units.file(text)) == (1, [], complaint)
    assert units.row() == {}


@pytest.mark.parametrize(
    ("before", "length", "taken"),
    [(0, 2047, True), (0, 2048, False), (2500, 3000, True), (5000, 2100, False)],
)
def test_submit_takes_long_lines_depending_on_where_they_are(
    units: Units, before: int, length: int, taken: bool
) -> None:
    lines = [f"Documentation=man:{'x' * 80}"] * (before // 99)
    line = "Description=".ljust(length, "x")
    status, _, errors = units.fleetctl("submit", units.file("\n".join(["[Unit]", *lines, line, ""])))
    assert (status, "line too long (max 2048 bytes)" in errors) == ((0, False) if taken else (1, True))
    assert units.row().get("desc", "") == (line.partition("=")[2] if taken else "")


def test_submit_takes_a_long_value_on_several_lines(units: Units) -> None:
    value = " \\\n".join(["/bin/sleep", *["x" * 500] * 10])
    assert units.fleetctl("submit", units.file(f"[Service]\nExecStart={value}\n"))[0] == 0
    assert f"ExecStart={value}\n" in units.fleet.fleetctl("cat", units.name()).stdout


def test_submit_says_what_it_does_not_know(units: Units) -> None:
    status, lines, errors = units.fleetctl("submit", units.file(f"{SLEEPS}[X-Fleet]\nMachine=n1\n"))
    assert (status, lines) == (0, ["Unit a.service inactive"])
    warning = 'Unit a.service: unrecognized requirement in [X-Fleet] section: "Machine"'
    assert re.fullmatch(rf"[0-9/]+ [0-9:]+ WARN fleetctl\.go:\d+: {re.escape(warning)}\n", errors)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("MachineOf=b.service\nConflicts=b*", 'unresolvable requirements: peer "b.service" matches conflict "b*"'),
        ("MachineID=1\nConflicts=b*", "MachineID cannot be used with Conflicts"),
        ("MachineID=1\nMachineOf=b.service", "MachineID cannot be used with Peers"),
    ],
    ids=["peer and conflict", "machine and conflict", "machine and peer"],
)
def test_submit_of_what_contradicts_itself(units: Units, asked: str, why: str) -> None:
    complaint = f"Error creating units: {why}\n"
    assert units.fleetctl("submit", units.file(f"{SLEEPS}[X-Fleet]\n{asked}\n")) == (1, [], complaint)


def test_submit_of_a_name_that_is_none(units: Units) -> None:
    complaint = "Error creating units: invalid character ' ' in unit name\n"
    assert units.fleetctl("submit", units.file(label="a b")) == (1, [], complaint)


# start


def test_start_tells_where_it_runs(units: Units) -> None:
    units.fleetctl("submit", units.file())
    status, lines, errors = units.fleetctl("start", units.name())
    row, state = units.row(), units.state()
    id, _, address = row["target"].partition("/")
    assert (status, lines, errors) == (0, [f"Unit a.service launched on {id[:8]}.../{address}"], "")
    assert row.items() >= {"dstate": "launched", "state": "launched"}.items()
    running = {"active": "active", "sub": "running", "load": "loaded"}
    assert state == running | {"unit": units.name(), "machine": row["target"], "hash": row["hash"]}
    assert units.machine().run("systemctl", "is-active", units.name()).stdout == "active\n"


def test_start_submits_files(units: Units) -> None:
    status, lines, errors = units.fleetctl("start", units.file(), units.file(label="b"))
    assert (status, errors) == (0, "")
    assert sorted(line.partition(" on ")[0] for line in lines) == [
        "Unit a.service inactive",
        "Unit a.service launched",
        "Unit b.service inactive",
        "Unit b.service launched",
    ]


def test_start_without_waiting(units: Units) -> None:
    units.fleetctl("submit", units.file(), units.file(label="b"))
    status, lines, errors = units.fleetctl("start", "--no-block", units.name(), units.name("b"))
    assert (status, errors) == (0, "")
    assert lines == ["Triggered unit a.service start", "Triggered unit b.service start"] * 2
    assert {units.row(label)["dstate"] for label in "ab"} == {"launched"}
    units.await_active()
    units.await_active(label="b")


def test_starts_side_by_side(units: Units) -> None:
    files = [units.file(label=label) for label in "abcdef"]
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda file: units.fleetctl("start", "--no-block", file), files))
    assert [status for status, _, _ in done] == [0] * len(files)
    for label in "abcdef":
        units.await_active(label=label)


def test_start_of_what_is_not_there(units: Units) -> None:
    why = "unable to find Unit(a.service) in Registry or on filesystem"
    assert units.fleetctl("start", units.name()) == (1, [], f"Error creating units: {why}\n")


def test_start_of_what_dies_at_once(units: Units) -> None:
    status, lines, errors = units.fleetctl("start", units.file(DIES))
    assert (status, lines[1].partition(" on ")[0]) == (1, "Unit a.service launched")
    why = "Failed to find an active unit a.service within 2s, err: Failed to fetch states within 2s"
    assert errors == f"Error waiting for units: {why}\nError waiting for systemd unit states, err: {why}\n"
    assert (units.row()["state"], units.state()["active"]) == ("launched", "failed")


def test_start_fails_for_what_takes_its_time_and_runs_then(units: Units) -> None:
    status, _, errors = units.fleetctl("start", units.file(f"{SLEEPS}ExecStartPre=/bin/sleep 4\n"))
    assert (status, "Failed to find an active unit" in errors) == (1, True)
    assert units.state()["active"] == "activating"
    units.await_active()


def test_start_of_what_fits_nowhere_never_ends(units: Units) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        units.fleetctl("start", units.file(FITS_NOWHERE), seconds=3)
    assert units.row().items() >= {"dstate": "launched", "state": "inactive", "target": "-"}.items()
    assert units.state() == {}
    assert units.fleetctl("start", units.name()) == (0, [], "")


def test_start_can_give_up(units: Units) -> None:
    status, lines, errors = units.fleetctl("start", "--block-attempts", "1", units.file(FITS_NOWHERE))
    assert (status, lines) == (1, ["Unit a.service inactive"])
    why = "timed out waiting for unit a.service to report state launched"
    assert errors == f"Error waiting for units: {why}\nError waiting for unit states, exit status: {why}\n"
    assert units.row()["dstate"] == "launched"


def test_a_crash_lasts_until_the_unit_is_stopped_and_started(units: Units) -> None:
    units.start()
    units.machine().run("systemctl", "kill", "--signal=KILL", units.name())
    units.await_active("failed")
    assert units.fleetctl("start", units.name()) == (0, [], "")
    assert (units.row()["state"], units.state()["active"]) == ("launched", "failed")
    assert units.fleetctl("stop", units.name())[0] == 0
    assert units.fleetctl("start", "--no-block", units.name())[0] == 0
    units.await_active()


# stop, unload, destroy


def test_stop_keeps_a_unit_where_it_is(units: Units) -> None:
    units.start()
    id, _, address = units.row()["target"].partition("/")
    told = [f"Unit a.service loaded on {id[:8]}.../{address}"]
    assert units.fleetctl("stop", units.name()) == (0, told, "Successfully stopped units [a.service].\n")
    units.await_active("inactive")
    assert units.row().items() >= {"dstate": "loaded", "state": "loaded", "target": f"{id}/{address}"}.items()
    assert units.fleetctl("stop", units.name()) == (0, [], "Successfully stopped units [].\n")


def test_what_fails_to_stop_has_stopped(units: Units) -> None:
    units.start(f"{SLEEPS}ExecStop=/bin/false\n")
    machine = units.machine()
    assert units.fleetctl("stop", units.name())[0] == 0
    units.await_active("failed")
    assert units.row()["state"] == "loaded"
    units.fleetctl("destroy", units.name())
    _await_shown("not-found inactive", machine, units.name())


def test_stop_ends_before_the_unit_has_stopped(units: Units) -> None:
    units.start(f"{SLEEPS}ExecStop=/bin/sleep 1000\n")
    assert units.fleetctl("stop", units.name())[0] == 0
    units.await_active("deactivating")
    assert units.row()["state"] == "loaded"
    units.machine().run("systemctl", "kill", "--signal=KILL", units.name())


def test_stop_and_unload_without_waiting(units: Units) -> None:
    units.start()
    done = units.fleetctl("stop", "--no-block", units.name())
    assert done == (0, ["Triggered unit a.service stop"], "Successfully stopped units [a.service].\n")
    units.await_active("inactive")
    done = units.fleetctl("unload", "--no-block", units.name())
    assert done == (0, ["Triggered unit a.service unload"], "Successfully unloaded units [a.service].\n")
    eventually(lambda: not units.state(), SECONDS, "no machine has it")


def test_stop_ends_where_a_unit_runs_nowhere(units: Units) -> None:
    for label in "ac":
        units.start(label=label)
    units.fleetctl("submit", units.file(label="b"))
    names = [units.name(label) for label in "abc"]
    assert units.fleetctl("stop", *names) == (1, [], "Unable to stop unit b.service in state inactive\n")
    assert [units.row(label)["dstate"] for label in "abc"] == ["loaded", "inactive", "launched"]


@pytest.mark.parametrize("command", ["stop", "unload", "destroy"])
def test_units_that_are_not_there(units: Units, command: str) -> None:
    assert units.fleetctl(command, units.name()) == (0, [], "Units not found in registry\n")


@pytest.mark.parametrize("command", ["submit", "start", "stop", "unload", "destroy"])
def test_no_units_at_all(units: Units, command: str) -> None:
    assert units.fleetctl(command) == (0, [], "No units given\n")


def test_unload_takes_a_unit_from_its_machine(units: Units) -> None:
    units.start()
    machine = units.machine()
    done = units.fleetctl("unload", units.name())
    assert done == (0, ["Unit a.service inactive"], "Successfully unloaded units [a.service].\n")
    assert units.row().items() >= {"dstate": "inactive", "state": "inactive", "target": "-"}.items()
    eventually(lambda: not units.state(), SECONDS, "no machine has it")
    _await_shown("not-found inactive", machine, units.name())
    assert units.fleetctl("unload", units.name()) == (0, [], "Successfully unloaded units [].\n")


def test_unload_leaves_what_is_pending(units: Units) -> None:
    units.fleetctl("start", "--no-block", units.file(FITS_NOWHERE))
    assert units.fleetctl("unload", units.name()) == (0, [], "Successfully unloaded units [].\n")
    assert units.row()["dstate"] == "launched"


def test_destroy_ends_what_runs(units: Units) -> None:
    units.start()
    units.fleetctl("submit", units.file(label="b"))
    machine = units.machine()
    done = units.fleetctl("destroy", units.name(), units.name("none"), units.name("b"))
    assert done == (0, ["Destroyed a.service", "Destroyed b.service"], "")
    assert (units.row(), units.row("b")) == ({}, {})
    eventually(lambda: not units.state(), SECONDS, "no machine has it")
    _await_shown("not-found inactive", machine, units.name())


def test_destroy_frees_a_name(units: Units) -> None:
    units.start()
    before = units.row()["hash"]
    units.fleetctl("destroy", units.name())
    assert units.fleetctl("start", "--no-block", units.file(SLEEPS_TOO))[0] == 0
    assert units.row()["hash"] != before
    eventually(lambda: units.state().get("hash") == units.row()["hash"], SECONDS, "the new text is on a machine")
    units.await_active()


def test_destroy_cuts_a_stop_short(units: Units) -> None:
    """It takes the unit's file away meanwhile, and with it what systemd would have run next, if not all of it."""
    ran = {}
    for label in "ab":
        said = f"/tmp/{units.mark}.{label}"
        stop = f"ExecStop=/bin/sh -c 'sleep 1; echo stop >{said}'\nExecStopPost=/bin/sh -c 'echo post >>{said}'\n"
        units.start(f"[Service]\nExecStart=/bin/sleep 1000\n{stop}", label)
        machine = units.machine(label)
        if label == "b":
            units.fleetctl("stop", "--no-block", units.name("b"))
            units.await_active("inactive", "b")
        units.fleetctl("destroy", units.name(label))
        _await_shown("not-found inactive", machine, units.name(label))
        ran[label] = machine.run("sh", "-c", f"cat {said}; rm -f {said}", ok=False).stdout.split()
    assert "post" not in ran["a"]
    assert ran["b"] == ["stop", "post"]


# list-units, list-unit-files, list-machines, cat


def test_lists_are_columns_with_tabs(units: Units) -> None:
    units.fleetctl("submit", units.file("[Service]\nExecStart=/bin/true\n"), units.file(label="long" * 10))
    listed = units.fleet.fleetctl("list-unit-files", "--fields=unit,desc").stdout.splitlines()
    assert re.fullmatch(r"UNIT\t+DESC", listed[0])
    rows = [line for line in listed if line.startswith(units.mark)]
    assert [re.sub("\t+", " ", row) for row in rows] == [f"{units.name()} -", f"{units.name('long' * 10)} it sleeps"]
    before_last = {len(row.rpartition("\t")[0].expandtabs(8) + "\t".expandtabs(8)) // 8 for row in rows}
    assert len(before_last) == 1


def test_lists_are_short_unless_told(running: Units) -> None:
    row = running.row()
    id, _, address = row["target"].partition("/")
    place = f"{id[:8]}.../{address}"
    lists = {
        "list-machines": [f"{id[:8]}...", address],
        "list-unit-files": [running.name(), row["hash"][:7], "launched", "launched", place],
        "list-units": [running.name(), place, "active", "running"],
    }
    for command, expected in lists.items():
        lines = running.fleet.fleetctl(command, "--no-legend").stdout.splitlines()
        assert expected in [re.split(r"\t+", line)[: len(expected)] for line in lines]


@pytest.mark.parametrize("command", ["list-units", "list-unit-files", "list-machines"])
def test_lists_know_their_fields(fleet: Fleet, command: str) -> None:
    done = fleet.fleetctl(command, "--fields", "frob")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", 'Invalid key in output format: "frob"\n')


def test_list_machines(fleet: Fleet) -> None:
    done = fleet.fleetctl("list-machines", "--no-legend", "--full", "--fields", "machine,ip,metadata")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {tuple(re.split(r"\t+", line)) for line in done.stdout.splitlines()}
    expected = {(machine.run("cat", "/etc/machine-id").stdout.strip(), machine.address) for machine in fleet.machines}
    assert {row[:2] for row in rows} == expected
    assert all(re.fullmatch(r"name=n\d,region=\w+", row[2]) for row in rows)


def test_cat_shows_what_fleet_has_understood(units: Units) -> None:
    text = (
        "# a comment\n[Unit]\n Description =  it sleeps \n\n[X-Fleet]\nMachineMetadata=name=n1\n; another\n"
        "[Service]\nExecStart=/bin/sleep \\\n   1000\nEnvironment=\n[Unit]\nAfter=docker.service\n"
    )
    assert units.fleetctl("submit", units.file(text))[0] == 0
    shown = units.fleet.fleetctl("cat", units.name())
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "[Unit]\nDescription=it sleeps\nAfter=docker.service\n\n[X-Fleet]\nMachineMetadata=name=n1\n\n"
        "[Service]\nExecStart=/bin/sleep \\\n   1000\nEnvironment=\n"
    )
    assert units.row()["hash"] == hashlib.sha1(shown.stdout.encode()).hexdigest()


def test_cat_of_what_is_not_there(units: Units) -> None:
    assert units.fleetctl("cat", units.name()) == (1, [], "Unit a.service not found\n")


# [X-Fleet]


def test_where_units_may_run(units: Units) -> None:
    id = units.fleet.machines[0].run("cat", "/etc/machine-id").stdout.strip()
    asked = {
        "MachineMetadata=name=n1": True,
        "MachineMetadata=name=n1\nMachineMetadata=name=n0": True,
        'MachineMetadata="name=n1" "name=n0"': True,
        "MachineMetadata=name=n1\nMachineMetadata=region=nowhere": False,
        "MachineMetadata=frob=n1": False,
        f"MachineID={id}": True,
        f"MachineID={id[:8]}": True,
        f"MachineID={id[:-1]}": False,
        "Conflicts=PEER.none.service": True,
        "MachineOf=PEER.none.service": False,
    }
    files = [units.file(f"{SLEEPS}[X-Fleet]\n{each}\n", str(number)) for number, each in enumerate(asked)]
    units.fleetctl("start", "--no-block", *files)
    units.start()  # when this one has a machine, all have been looked at
    assert {each: units.row(str(number))["target"] != "-" for number, each in enumerate(asked)} == asked


def test_a_conflict_is_waited_out(units: Units) -> None:
    asks = f"{ON_ONE_MACHINE}Conflicts=PEER.%s*.service\n"
    units.fleetctl("start", "--no-block", units.file(ON_ONE_MACHINE), units.file(asks % "[d-e]", "b"))
    units.await_active()
    units.await_active(label="b")
    units.fleetctl("start", "--no-block", units.file(asks % "a", "c"), units.file(ON_ONE_MACHINE, "d"))
    units.start(label="other")
    for label in "cd":
        assert units.row(label).items() >= {"dstate": "launched", "state": "inactive", "target": "-"}.items()
    units.fleetctl("destroy", units.name("a"), units.name("b"))
    units.await_active(label="c")
    units.await_active(label="d")


def test_a_unit_goes_where_its_peer_is(units: Units) -> None:
    units.fleetctl("start", "--no-block", units.file(f"{SLEEPS}[X-Fleet]\nMachineOf=PEER.a.service\n", "b"))
    units.start(label="other")
    assert units.row("b")["target"] == "-"
    units.start()
    units.await_active(label="b")
    assert units.row("b")["target"] == units.row()["target"]
    units.fleetctl("destroy", units.name())
    eventually(lambda: not units.state("b"), SECONDS, "no machine has it")
    assert units.row("b").items() >= {"dstate": "launched", "state": "inactive", "target": "-"}.items()


def test_what_is_bound_comes_back_only_if_it_is_wanted(units: Units) -> None:
    app = f"{SLEEPS}Restart=always\nRestartSec=1\n{N1}"
    bound = "[Unit]\nBindsTo=PEER.%s.service\nAfter=PEER.%s.service\n" + ON_ONE_MACHINE
    files = [
        units.file(app),
        units.file(bound % ("a", "a"), "bound"),
        units.file(f"[Unit]\nWants=PEER.wanted.service\n{app}", "b"),
        units.file(bound % ("b", "b"), "wanted"),
    ]
    units.fleetctl("start", "--no-block", *files)
    for label in ("a", "b", "bound", "wanted"):
        units.await_active(label=label)
    machine = units.machine()
    machine.run("systemctl", "kill", "--signal=KILL", units.name("a"), units.name("b"))
    for label in "ab":
        _await_shown("1 active", machine, units.name(label), "NRestarts,ActiveState")
    eventually(lambda: not machine.run("systemctl", "list-jobs", "--no-legend").stdout, SECONDS, "nothing is queued")
    active = [_shown(machine, units.name(label), "ActiveState") for label in ("bound", "wanted")]
    assert active == ["inactive", "active"]


# fleetctl itself


def test_an_unknown_command_is_no_failure(fleet: Fleet) -> None:
    done = fleet.fleetctl("frob")
    unknown = 'unknown command "frob" for "fleetctl"'
    told = f"Error: {unknown}\nRun 'fleetctl --help' for usage.\ncannot execute cmdFleet: {unknown}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "", told)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["list-units", "--frob"], "unknown flag: --frob"),
        (["list-units", "--fields"], "flag needs an argument: --fields"),
        (["list-units", "-x"], "unknown shorthand flag: 'x' in -x"),
        (["submit", "--no-block", "a"], "unknown flag: --no-block"),
        (
            ["list-units", "--request-timeout=soon"],
            'invalid argument "soon" for --request-timeout=soon: strconv.ParseFloat: parsing "soon": invalid syntax',
        ),
    ],
)
def test_a_misunderstood_flag_is_no_failure(fleet: Fleet, words: list[str], why: str) -> None:
    done = fleet.fleetctl(*words)
    assert (done.returncode, done.stderr) == (0, f"Error: {why}\n\ncannot execute cmdFleet: {why}\n")
    assert done.stdout.startswith(f"NAME:\n\t{words[0]} - ")


def test_version(fleet: Fleet) -> None:
    done = fleet.fleetctl("version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"fleetctl version v1\.0\.0\S*\n", done.stdout)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--driver=frob"], 'unrecognized driver "frob"'),
        (["--driver=API", "--endpoint=/nowhere"], "URL scheme undefined"),
        (["--driver=API", "--endpoint=unix://no/where"], 'unable to connect to host "no" with scheme "unix"'),
        (["--ca-file=/nowhere"], "open /nowhere: no such file or directory"),
        (["--cert-file", "/nowhere", "--key-file", "/there"], "open /nowhere: no such file or directory"),
    ],
)
def test_a_client_that_cannot_be(fleet: Fleet, flags: list[str], why: str) -> None:
    done = fleet.fleetctl(*flags, "list-units")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Unable to initialize client: {why}\n")


_NO_LIST = "Error retrieving list of units from repository: WHY\n"
_NO_UNIT = "Error creating units: error retrieving Unit(a.service) from Registry: WHY\n"
_NO_MACHINES = (
    "Error retrieving list of active machines from fleet API (WHY)\nPossible issues:\n"
    "  etcd is unhealthy and/or lost quorum\n  connection cannot be established to any etcd servers\n"
)


@pytest.mark.parametrize(
    ("command", "asked", "told"),
    [
        ("list-units", "state", _NO_LIST),
        ("list-unit-files", "units", _NO_LIST),
        ("list-machines", "machines", _NO_MACHINES),
        ("submit a", "units/a.service", _NO_UNIT),
        ("start --no-block a", "units/a.service", _NO_UNIT),
        ("stop a", "units", "WHY\n"),
        ("unload a", "units", "WHY\n"),
        ("destroy a", "units", "WHY\n"),
        ("cat a", "units/a.service", "Error retrieving Unit a.service: WHY\n"),
    ],
)
@pytest.mark.parametrize("endpoint", ["unix:///nowhere/fleet.sock", "http://127.0.0.1:9"])
def test_nothing_answers(fleet: Fleet, endpoint: str, command: str, asked: str, told: str) -> None:
    host, why = {
        "unix:///nowhere/fleet.sock": ("domain-sock", "unix /nowhere/fleet.sock: connect: no such file or directory"),
        "http://127.0.0.1:9": ("127.0.0.1:9", "tcp 127.0.0.1:9: connect: connection refused"),
    }[endpoint]
    done = fleet.fleetctl("--driver=API", f"--endpoint={endpoint}", *command.split())
    why = f'Get "http://{host}/fleet/v1/{asked}?alt=json": dial {why}'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told.replace("WHY", why))


def test_no_etcd_answers(fleet: Fleet) -> None:
    done = fleet.fleetctl("--driver", "etcd", "--endpoint", "http://127.0.0.1:9", "list-unit-files")
    assert (done.returncode, done.stdout) == (1, "")
    why = "error #0: dial tcp 127.0.0.1:9: connect: connection refused"
    why = f"client: etcd cluster is unavailable or misconfigured; {why}"
    assert done.stderr.endswith(f"Error retrieving list of units from repository: {why}\n\n")


def test_flags_of_the_environment(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETCTL_CA_FILE", "/nowhere")
    assert fleet.fleetctl("list-machines").returncode == 1
    assert fleet.fleetctl("--ca-file=", "list-machines").returncode == 0


def _await_shown(words: str, machine: Machine, unit: str, properties: str = "LoadState,ActiveState") -> None:
    """Return when systemd on `machine` says this of a unit."""
    eventually(lambda: _shown(machine, unit, properties) == words, SECONDS, f"{unit} is {words}")


def _shown(machine: Machine, unit: str, properties: str) -> str:
    return " ".join(machine.run("systemctl", "show", "--value", f"--property={properties}", unit).stdout.split())
