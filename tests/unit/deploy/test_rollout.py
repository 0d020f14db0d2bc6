"""From an image to a release that serves, and back where that fails; with an etcd and a scheduler in memory."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from dulwich.repo import Repo

from nap_receiver.core.channel import Channel
from nap_receiver.core.deadline import deadline
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import DeploySettings, EtcdSettings, Settings
from nap_receiver.deploy import operations
from nap_receiver.deploy.rollout import App, under_way
from nap_receiver.deploy.rollout import release as roll_out
from nap_receiver.model.release import Instance, Outcome
from nap_receiver.schedulers.placement import Placement
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.lock import cancel
from tests.fakes import FakeEtcd, FakeScheduler
from tests.releases import RELEASE

DRAFT = msgspec.structs.replace(RELEASE, app="shop", formation={"web": 2, "worker": 1})


@dataclass
class Place:
    """An app, and what its deploys work with."""

    app: App
    etcd: FakeEtcd
    scheduler: FakeScheduler
    said: Path

    def deploy(self, commit: str = "a" * 40) -> None:
        draft = msgspec.structs.replace(DRAFT, commit=commit, image=f"r/shop@sha256:{commit}")
        with under_way(self.app, commit[:7], f"deploying {commit[:7]}") as deploy:
            roll_out(draft, Placement(), deploy)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.etcd, self.app.settings.etcd, "shop")

    @property
    def text(self) -> str:
        return self.said.read_text()

    def announced(self) -> list[str]:
        places = self.app.settings.etcd
        keys = self.etcd.keys_below(places.announcements_of("shop")) + self.etcd.keys_below(places.up_of("shop"))
        return [key.rpartition("/")[2] for key in keys]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    etcd, settings = FakeEtcd(), Settings(etcd=EtcdSettings(), deploy=DeploySettings(answer_timeout=1))
    scheduler = FakeScheduler(etcd, settings.etcd)

    @contextmanager
    def connected(settings: EtcdSettings) -> Iterator[FakeEtcd]:
        yield etcd

    monkeypatch.setattr("nap_receiver.deploy.rollout.connect", connected)
    monkeypatch.setattr("nap_receiver.deploy.rollout.scheduler_of", lambda state, settings: scheduler)
    repository = tmp_path / "shop.git"
    Repo.init_bare(str(repository), mkdir=True)
    said = tmp_path / "said"
    with said.open("w") as file, Channel(file.fileno()) as channel:
        app = App("shop", repository, "ann", State(tmp_path / "state"), settings, channel)
        yield Place(app, etcd, scheduler, said)


def test_a_release_is_live_once_all_of_its_instances_are_good(place: Place) -> None:
    place.deploy()
    current = place.ledger.current()
    assert current and (current.name, current.commit) == ("v1", "a" * 40)
    assert place.announced() == ["v1.web.1", "v1.web.2", "v1.worker.1"]
    assert place.ledger.history()[0][1] == Outcome("live")
    assert re.search(r"=====> shop v1 is live \(\d+\.\d s\)\n", place.text)
    assert "http://10.0.0.1:32001" in place.text
    assert place.etcd.get(f"{place.ledger.root}/lock") is None


def test_the_release_before_is_withdrawn_then_stopped(place: Place) -> None:
    place.deploy()
    place.scheduler.calls.clear()
    place.deploy("b" * 40)
    before = ["shop.v1.web.1", "shop.v1.web.2", "shop.v1.worker.1"]
    after = ["shop.v2.web.1", "shop.v2.web.2", "shop.v2.worker.1"]
    assert place.scheduler.calls == [("start", after), ("withdraw", before), ("stop", before)]
    assert place.announced() == ["v2.web.1", "v2.web.2", "v2.worker.1"]


def test_a_release_whose_instance_exits_is_taken_away_and_the_one_before_serves(place: Place) -> None:
    place.deploy()
    place.scheduler.outcome = lambda instance: "exits" if instance.process == "worker" else "good"
    with pytest.raises(NapError, match=r"shop v2 worker\.1 exited with status 3 before it was up") as failed:
        place.deploy("b" * 40)
    assert failed.value.words == ["it failed"]
    current = place.ledger.current()
    assert current and current.name == "v1"
    assert place.announced() == ["v1.web.1", "v1.web.2", "v1.worker.1"]
    assert place.scheduler.running("shop") == ["shop.v1.web.1", "shop.v1.web.2", "shop.v1.worker.1"]
    last, ended = place.ledger.history()[-1]
    assert (last.name, ended and ended.state) == ("v2", "failed")


def test_a_release_that_never_answers_is_taken_away_after_its_time(place: Place) -> None:
    place.scheduler.outcome = lambda instance: "silent" if instance.process == "web" else "good"
    with pytest.raises(NapError, match=r"shop v1 web\.1") as failed:
        place.deploy()
    assert "it waited" in failed.value.words
    assert place.ledger.current() is None
    assert place.scheduler.running("shop") == []
    assert place.announced() == []


def test_a_deploy_that_is_cancelled_leaves_nothing(place: Place) -> None:
    place.scheduler.outcome = lambda instance: "silent"
    settings = msgspec.structs.replace(place.app.settings, deploy=DeploySettings(answer_timeout=60))
    place.app = replace(place.app, settings=settings)
    root = place.ledger.root
    threading.Timer(0.3, cancel, [place.etcd, root, "bob", 10]).start()
    with pytest.raises(NapError, match="bob cancelled it"):
        place.deploy()
    assert place.scheduler.running("shop") == []
    assert place.etcd.get(f"{root}/lock") is None


def test_being_told_to_end_while_it_takes_away_changes_nothing(place: Place) -> None:
    place.scheduler.outcome = lambda instance: "exits"
    discard = place.scheduler.discard

    def interrupted(instances: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGALRM)
        discard(instances)

    place.scheduler.discard = interrupted  # type: ignore[method-assign,assignment]
    with pytest.raises(NapError, match="exited with status 3"), deadline(60, "the deploy", ""):
        place.deploy()
    assert place.scheduler.running("shop") == []
    assert place.ledger.history()[-1][1] is not None


def test_what_a_killed_deploy_left_is_taken_away_by_the_next(place: Place) -> None:
    place.deploy()
    left = place.ledger.write(msgspec.structs.replace(DRAFT, commit="b" * 40), place.ledger.next_number([]))
    place.scheduler.started["shop.v2.web.1"] = Instance(left, "web", 1)
    place.deploy("c" * 40)
    assert "Removing v2, whose deploy was killed" in place.text
    assert [ended and ended.state for _, ended in place.ledger.history()] == ["live", "failed", "live"]
    assert all(unit.startswith("shop.v3.") for unit in place.scheduler.running("shop"))


def test_scaling_restarting_stopping_starting_and_going_back_are_releases(place: Place) -> None:
    place.deploy()
    place.deploy("b" * 40)
    operations.scale(place.app, {"web": 1, "worker": 0})
    assert place.announced() == ["v3.web.1"]
    operations.restart(place.app)
    assert place.announced() == ["v4.web.1"]
    operations.stop(place.app)
    assert (place.announced(), place.scheduler.running("shop")) == ([], [])
    operations.start(place.app)
    assert len(place.announced()) == 1
    operations.rollback(place.app, None)
    current = place.ledger.current()
    assert current and current.commit == "a" * 40
    assert current.formation == {"web": 1, "worker": 0}, "the counts are the app's own, not a release's"
