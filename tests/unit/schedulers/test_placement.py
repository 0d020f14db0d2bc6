"""Where an app may run: what its repository and the settings ask for, against the machines there are."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import FleetSettings, MachineId, MachineMetadata
from nap_receiver.schedulers.placement import Machine, Placement, placement_of
from tests.repositories import Repository

N1 = Machine("1" * 32, "10.0.0.1", frozenset({"region=east", "disk=ssd"}))
N2 = Machine("2" * 32, "10.0.0.2", frozenset({"region=east"}))
N3 = Machine("3" * 32, "10.0.0.3", frozenset({"region=west"}))
MACHINES = [N1, N2, N3]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "shop.git")


SETTINGS = FleetSettings()


def placed(
    repository: Repository, asked: Mapping[str, str] = {}, web: int = 1, settings: FleetSettings = SETTINGS
) -> Placement:
    """Where `web` instances of an app may run whose git config asks for this."""
    for name, value in asked.items():
        repository.git("config", f"nap.{name}", value)
    return placement_of("shop", repository.path, settings, {"web": web}, lambda: MACHINES)


def test_nothing_asked(repository: Repository) -> None:
    assert placed(repository) == Placement()


def test_a_machine_has_all_names_asked_for_and_one_value_of_each() -> None:
    assert Placement(("region=east", "disk=ssd")).suits(N1)
    assert not Placement(("region=east", "disk=ssd")).suits(N2)
    assert Placement(("region=east", "region=west")).suits(N3)
    assert not Placement(("region=east",), N3.id).suits(N3)
    assert Placement(machine=N3.id).suits(N3)


def test_the_repository_overrides_the_settings(repository: Repository) -> None:
    settings = FleetSettings(metadata=MachineMetadata("region=west"), machine=MachineId(N3.id), spread="yes")
    assert placed(repository, settings=settings) == Placement(("region=west",), N3.id, frozenset({"web"}))
    assert placed(
        repository, {"metadata": "region=east,disk=ssd", "machine": "", "spread": "no"}, settings=settings
    ) == Placement(("region=east", "disk=ssd"))


@pytest.mark.parametrize(
    ("web", "spread", "expected"),
    [(1, "auto", False), (2, "auto", True), (3, "auto", True), (4, "auto", False), (1, "yes", True), (3, "no", False)],
)
def test_instances_are_spread_where_there_are_machines_enough(
    repository: Repository, web: int, spread: str, expected: bool
) -> None:
    assert placed(repository, {"spread": spread}, web).spread == (frozenset({"web"}) if expected else frozenset())


def test_only_fitting_machines_count(repository: Repository) -> None:
    assert placed(repository, {"metadata": "region=east"}, 3).spread == frozenset()


@pytest.mark.parametrize(
    ("asked", "constraint"),
    [
        ({"metadata": "region=mars"}, "MachineMetadata=region=mars"),
        ({"metadata": "region=west,disk=ssd"}, "MachineMetadata=region=west and MachineMetadata=disk=ssd"),
        ({"machine": "4" * 32}, f"MachineID={'4' * 32}"),
        ({"metadata": "region=west", "machine": N1.id}, f"MachineMetadata=region=west and MachineID={N1.id}"),
    ],
)
def test_what_no_machine_fits_is_refused_with_the_constraint_and_the_machines(
    repository: Repository, asked: dict[str, str], constraint: str
) -> None:
    with pytest.raises(NapError) as refused:
        placed(repository, asked)
    assert str(refused.value) == (
        f"shop fits on no machine: it asks for {constraint}; the machines are: 11111111 10.0.0.1 (disk=ssd, "
        "region=east); 22222222 10.0.0.2 (region=east); 33333333 10.0.0.3 (region=west)"
    )
    assert refused.value.advice


def test_more_instances_than_machines_of_their_own_is_refused(repository: Repository) -> None:
    with pytest.raises(NapError, match=r"shop does not fit: web=3, and nap.spread \(Conflicts=\).* of which 2 will do"):
        placed(repository, {"spread": "yes", "metadata": "region=east"}, 3)


def test_a_cluster_without_machines(repository: Repository) -> None:
    with pytest.raises(NapError, match="it asks for one at all; the machines are: none") as refused:
        placement_of("shop", repository.path, FleetSettings(), {"web": 2}, list)
    assert "fleetctl list-machines" in refused.value.advice[0]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("metadata", "east", 'fleet metadata, such as "region=east,disk=ssd"'),
        ("metadata", "a=b\nMachineID=x", "fleet metadata"),
        ("machine", "n1", "a machine's id, as"),
        ("spread", "maybe", '"auto", "yes" or "no"'),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_place(
    repository: Repository, name: str, value: str, expected: str
) -> None:
    with pytest.raises(NapError) as refused:
        placed(repository, {name: value})
    assert str(refused.value).startswith(f"{repository.path}/config: nap.{name}: expected {expected}")
