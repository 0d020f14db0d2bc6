"""Which scheduler the settings choose: nap's own, or one that a package brings."""

import re
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import SchedulerName, load
from nap_receiver.schedulers.chosen import scheduler_of
from tests.nap import ROOT

PLUGIN = """
from nap_receiver.schedulers.null import Null


class Paper(Null):
    runs_on = "a cluster"
"""
ENTRY_POINTS = "[nap.schedulers]\npaper = paper_scheduler:Paper\n"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a scheduler, installed."""
    about = tmp_path / "packages" / "paper_scheduler-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: paper-scheduler\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (about.parent / "paper_scheduler.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(about.parent)


@pytest.mark.parametrize("name", SchedulerName.own)
def test_each_scheduler_of_naps_own_is_made_from_the_settings(tmp_path: Path, name: str) -> None:
    state = State(tmp_path)
    scheduler = scheduler_of(state, load(state, {"NAP_SCHEDULER": name}).settings)
    assert type(scheduler).__name__.lower() == name
    assert scheduler.runs_on in {"this machine", "a cluster", "nothing"}


def test_an_installed_package_can_bring_a_scheduler(tmp_path: Path, plugin: None) -> None:
    state = State(tmp_path)
    settings = load(state, {"NAP_SCHEDULER": "paper"}).settings
    assert settings.is_single_machine, "unless topology says otherwise"
    assert type(scheduler_of(state, settings)).__name__ == "Paper"
    on_cluster = load(state, {"NAP_SCHEDULER": "paper", "NAP_TOPOLOGY": "cluster"}).settings
    assert not on_cluster.is_single_machine


def test_an_unknown_scheduler_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NapError, match=r'NAP_SCHEDULER: expected one of "local", "fleet", "null".*, got "paper"'):
        load(State(tmp_path), {"NAP_SCHEDULER": "paper"})


@pytest.mark.parametrize(
    ("variables", "single"),
    [
        ({}, True),
        ({"NAP_SCHEDULER": "fleet"}, False),
        ({"NAP_SCHEDULER": "null"}, True),
        ({"NAP_SCHEDULER": "null", "NAP_TOPOLOGY": "cluster"}, False),
        ({"NAP_SCHEDULER": "fleet", "NAP_TOPOLOGY": "machine"}, True),
    ],
)
def test_who_runs_etcd_is_another_question_than_what_runs_instances(
    tmp_path: Path, variables: dict[str, str], single: bool
) -> None:
    assert load(State(tmp_path), variables).settings.is_single_machine is single


def test_only_the_schedulers_and_the_settings_know_schedulers_by_name() -> None:
    named = re.compile(r"""["'](local|fleet|null)["']|\bscheduler (==|!=|in|not in)\b""")
    places = {
        path.relative_to(ROOT / "nap_receiver").as_posix()
        for path in (ROOT / "nap_receiver").rglob("*.py")
        if path.parent.name != "schedulers"
        and any(named.search(line) for line in path.read_text().splitlines() if "scheduler" in line)
    }
    assert places == {"core/settings.py"}
