"""Which scheduler runs: nap's own, one that a package brings, and the one that runs nothing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import SchedulerName, load
from nap_receiver.schedulers.chosen import scheduler_of
from tests.conftest import fresh_nap
from tests.nap import ROOT, Nap, Pusher

PLUGIN = """
from nap_receiver.schedulers.null import Null


class Paper(Null):
    runs_on = "a cluster"
"""
ENTRY_POINTS = "[nap.schedulers]\npaper = paper_scheduler:Paper\n"
WORKER = "FROM nap/busybox\nCOPY . /app\n"


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


@pytest.fixture
def nothing_runs(nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap whose scheduler is null, with the engine of the shared one."""
    own = fresh_nap(short_folder / "null", NAP_ENGINE_URL=nap.engine_url, NAP_SCHEDULER="null")
    own.run("up")
    yield own
    own.run("down")
    shutil.rmtree(own.folder)


@pytest.mark.machine
def test_null_builds_pushes_and_records_a_release_and_runs_nothing(nothing_runs: Nap, tmp_path: Path) -> None:
    nap, pusher = nothing_runs, Pusher(nothing_runs, "paper", tmp_path)
    pusher.commit(Dockerfile=WORKER, Procfile="web: sh -c 'echo it runs'\nrelease: exit 1\n")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert re.search(r"=====> paper v1 is released \(\d+\.\d s\)", pushed.text)
    (image,) = re.findall(r"Image: (\S+@sha256:[0-9a-f]{64})", pushed.text)
    assert nap.docker("pull", "--quiet", image).strip() == image
    assert nap.containers("paper") == []
    assert "scheduler" not in nap.run("status").stdout
    assert nap.run("ps", "paper").stdout.splitlines()[-1] == (
        "paper is released, and nap runs nothing here. Its image: releases:info paper"
    )
    assert image in nap.run("releases:info", "paper").stdout
    assert nap.run("logs", "paper", ok=False).stderr.startswith(" !     nap runs no instance of paper")

    pusher.commit(index_html="two")
    assert "v2 is released" in pusher.push().text
    assert nap.run("rollback", "paper").returncode == 0
    assert "v3" in nap.run("releases", "paper").stdout
    doctor = nap.run("doctor", ok=False)
    assert doctor.returncode == 0, doctor.stdout
    assert nap.run("apps:destroy", "paper", "--confirm", "paper").returncode == 0
