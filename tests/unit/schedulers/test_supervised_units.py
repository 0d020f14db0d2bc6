"""Instances of nap 0.1, as their units name them."""

from pathlib import Path

import pytest

from nap_receiver.core.paths import State
from nap_receiver.schedulers.supervised_units import digests, forget
from tests.upgrade.record import RECORDS


@pytest.mark.parametrize("folder", ["units", "units.before"])
def test_the_digests_of_the_recorded_units_are_read(tmp_path: Path, folder: str) -> None:
    units = tmp_path / folder
    units.mkdir()
    for path in (RECORDS / "0.1.0" / "state" / "units").iterdir():
        text = path.read_text()
        (units / path.name).write_text(text.replace("NAP_BODY={body", "NAP_BODY={").replace("{", "0").replace("}", "a"))
    found = digests(State(tmp_path))
    assert sorted(found) == ["plain.v1.web.1", "shop.v6.web.1", "shop.v6.web.2", "shop.v6.worker.1"]
    assert all(found.values())


def test_they_are_forgotten_with_what_they_printed(tmp_path: Path) -> None:
    state = State(tmp_path)
    for folder in (tmp_path / "units", tmp_path / "units.before", state.program_logs / "apps"):
        folder.mkdir(parents=True)
        (folder / "shop.v6.web.1.conf").touch()
    forget(state)
    assert not [*tmp_path.glob("units*")]
    assert not (state.program_logs / "apps").exists()
    assert digests(state) == {}
