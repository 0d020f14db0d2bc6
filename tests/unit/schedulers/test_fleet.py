"""What the fleet scheduler says when fleetctl does not do as it should; when it does, see test_fleet_units."""

from pathlib import Path

import msgspec
import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import FleetSettings, SchedulerName, Settings
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.fleet import Fleet
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.scheduler import Work
from tests.releases import RELEASE


def fleet(folder: Path, script: str) -> Fleet:
    """A fleet whose fleetctl is this shell script."""
    program = folder / "fleetctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Fleet(
        State(folder),
        Settings(scheduler=SchedulerName("fleet"), fleet=FleetSettings(fleetctl=str(program), request_timeout=1)),
    )


def work() -> Work:
    release = msgspec.structs.replace(RELEASE, app="shop", number=1)
    return Work((Instance(release, "web", 1),), {"v1.web.1": "d1ge57"}, Placement())


def test_machines_and_their_metadata(tmp_path: Path) -> None:
    rows = "printf 'aa\\t\\t10.0.0.1\\tregion=east, disk=ssd\\nbb\\t\\t10.0.0.2\\t-\\n'"
    [first, second] = fleet(tmp_path, rows).machines()
    assert (first.id, first.address, first.metadata) == ("aa", "10.0.0.1", frozenset({"region=east", "disk=ssd"}))
    assert (second.id, second.address, second.metadata) == ("bb", "10.0.0.2", frozenset())


def test_its_words_are_passed_on(tmp_path: Path) -> None:
    script = "echo 'Error retrieving list of active machines (refused)' >&2; echo 'Possible issues:' >&2; exit 1"
    with pytest.raises(NapError) as failed:
        fleet(tmp_path, script).machines()
    assert str(failed.value) == "fleetctl list-machines failed: Error retrieving list of active machines (refused)"
    assert failed.value.words == ["Possible issues:"]
    assert failed.value.advice == [
        "Check that the cluster answers: fleetctl --endpoint=unix:///var/run/fleet.sock list-machines"
    ]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    nowhere = Settings(fleet=FleetSettings(fleetctl="no-such-fleetctl"))
    with pytest.raises(NapError, match="no-such-fleetctl is not installed here") as failed:
        Fleet(State(tmp_path), nowhere).machines()
    assert "fleet.fleetctl" in failed.value.advice[0]


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_receiver.schedulers.fleet._SPARE_SECONDS", -5)  # of the six that this call would have
    with pytest.raises(NapError, match=r"fleetctl list-machines did not end within 1 s"):
        fleet(tmp_path, "exec sleep 60").machines()


def test_an_answer_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(NapError, match="printed something unexpected: what is this"):
        fleet(tmp_path, "echo what is this").machines()


def test_units_that_the_cluster_does_not_have(tmp_path: Path) -> None:
    only_one = fleet(tmp_path, "printf 'shop.v1.web.1.service\\t-\\n'")
    with pytest.raises(NapError, match=r"fleet accepted shop.v1.web.1-discovery.service, but no longer has it"):
        only_one.require_placed(work())


def test_other_units_of_the_same_names(tmp_path: Path) -> None:
    warning = "WARNING: Unit a.service in registry differs from local unit file a.service. Add --replace to override."
    with pytest.raises(NapError, match="the cluster already has different units of these names") as failed:
        fleet(tmp_path, f"echo '{warning}' >&2").start(work())
    assert failed.value.words == [warning]


def test_options_reach_it_and_those_of_the_environment_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETCTL_ENDPOINT", "http://elsewhere")
    told = fleet(tmp_path, f'echo "$FLEETCTL_ENDPOINT$@" >{tmp_path}/told')
    assert told.machines() == []
    flags = "--endpoint=unix:///var/run/fleet.sock --driver=API --request-timeout=1"
    assert (tmp_path / "told").read_text() == f"{flags} list-machines --no-legend --full --fields machine,ip,metadata\n"
