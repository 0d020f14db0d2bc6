"""Which images and releases are kept, and when a build has too little disk to begin."""

import fcntl
import os
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import DeploySettings, Settings
from nap_receiver.deploy import image_pruning
from nap_receiver.deploy.image_pruning import registry_in_use, require_space
from nap_receiver.deploy.rollout import App
from nap_receiver.model.release import Outcome
from nap_receiver.model.retention_policy import before, require_kept, sort_out
from tests.releases import FAILED, LIVE, history, live

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.mark.parametrize(
    ("releases", "keep", "running", "images", "going", "spared"),
    [
        ([], 2, [], "", [], []),
        ([("a", LIVE)], 1, ["x.v1.web.1"], "a", [], []),
        ([("a", LIVE), ("b", LIVE), ("c", LIVE)], 2, [], "bc", [1], []),
        ([("a", LIVE), ("b", LIVE), ("a", LIVE)], 2, [], "ab", [1], []),
        ([("a", LIVE), ("b", FAILED), ("c", LIVE), ("d", FAILED), ("e", LIVE)], 2, [], "cde", [1, 2], []),
        ([("a", LIVE), ("b", None), ("c", LIVE), ("d", LIVE)], 2, [], "bcd", [1], [2]),
        ([("a", LIVE), ("b", LIVE), ("c", LIVE)], 1, ["x.v2.web.1", "x.v3.web.1"], "bc", [1], [2]),
        ([("a", LIVE), ("b", LIVE), ("c", LIVE), ("c", LIVE), ("c", LIVE)], 2, [], "bc", [1, 3], [2]),
        ([("a", LIVE), ("b", LIVE), ("c", LIVE), ("c", LIVE)], 1, [], "c", [1, 2, 3], []),
        ([("a", FAILED), ("b", LIVE), ("b", LIVE)], 10, [], "b", [1], []),
    ],
    ids=["none", "one", "old", "shared", "failed", "unfinished", "running", "rollback", "no rollback wanted", "first"],
)
def test_which_images_stay(
    releases: list[tuple[str, Outcome | None]],
    keep: int,
    running: list[str],
    images: str,
    going: list[int],
    spared: list[int],
) -> None:
    found = sort_out(history(*releases), keep, running)
    assert found.images == set(images)
    assert [release.number for release in found.going] == going
    assert [release.number for release in found.spared] == spared


@pytest.mark.parametrize(
    ("releases", "target"),
    [
        ("a", None),
        ("a a a", None),
        ("a b", 1),
        ("a b b+1", 2),
        ("a b b+1 b+1 b+1", 2),
        ("a b a", 2),
        ("a b b+1 b<2", 1),
        ("a b c b<2 b<2", 1),
        ("a b b<2 a<1", None),
        ("a b c b<2 d", 4),
        ("a b c b<2 b+1", 4),
    ],
)
def test_what_a_rollback_goes_back_to(releases: str, target: int | None) -> None:
    found = before([release for release, _ in live(releases)])
    assert (found.number if found else None) == target


@pytest.mark.parametrize(
    ("releases", "keep", "images"),
    [
        ("a b b+1 b+1 b+1", 2, "b"),
        ("a b c b<2 b<2 b<2 b<2", 3, "abc"),
        ("a b c b<2", 2, "bc"),
        ("a b c b<2 b<2 b<2 b<2", 2, "bc"),
    ],
    ids=["configuration", "further back", "further back, but gone", "gone for good"],
)
def test_what_a_rollback_goes_back_to_stays(releases: str, keep: int, images: str) -> None:
    history = live(releases)
    assert sort_out(history, keep).images == set(images)
    target = before([release for release, _ in history])
    assert target
    if target.image in images:
        require_kept(target, history, keep)
    else:
        with pytest.raises(NapError, match="v1 is too old to go back to"):
            require_kept(target, history, keep)


def test_nothing_is_removed_while_something_is_built(tmp_path: Path) -> None:
    state = State(tmp_path)
    with (
        Path(os.devnull).open("w") as nobody,
        Channel(nobody.fileno()) as channel,
        registry_in_use(app := App("x", tmp_path, "someone", state, Settings(), channel)),
        registry_in_use(app),
        pytest.raises(NapError, match="waiting for builds to end"),
        image_pruning._locked(state, fcntl.LOCK_EX, 0.1),
    ):
        pass
    with image_pruning._locked(state, fcntl.LOCK_EX, 0.1):
        pass


def test_refusal_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextmanager
    def waiting(what: str) -> Iterator[None]:
        yield

    def deploy(needed: int) -> Any:
        settings = Settings(deploy=DeploySettings(free_space=needed))
        channel = SimpleNamespace(step=said.append, waiting=waiting)
        return SimpleNamespace(
            app=SimpleNamespace(name="hello", state=State(tmp_path)), settings=settings, channel=channel
        )

    engine: Any = SimpleNamespace(
        api=SimpleNamespace(base_url="http+docker://localhost", info=lambda: {"DockerRootDir": "/engine"})
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 312 << 20))
    monkeypatch.setattr(image_pruning, "keep_recent", lambda deploy, wait: said.append("removed"))
    require_space(deploy(0), engine)
    require_space(deploy(312 << 20), engine)
    assert said == []
    with pytest.raises(NapError) as refused:
        require_space(deploy(1 << 30), engine)
    assert str(refused.value) == (
        "hello: not enough disk space where the engine keeps images (/engine): 1.0 GB needed, 312 MB free, "
        "712 MB missing"
    )
    assert said == ["hello: the disk is nearly full; removing images of old releases first", "removed"]
    engine.api.base_url = "http://192.0.2.1:2375"  # elsewhere; its disk cannot be seen
    with pytest.raises(NapError, match=f"where nap keeps its state \\({tmp_path}\\)"):
        require_space(on_a_cluster(deploy(1 << 30)), engine)


def on_a_cluster(deploy: Any) -> Any:
    """The same on a cluster, whose registry is not nap's own."""
    deploy.settings = msgspec.structs.replace(deploy.settings, scheduler="fleet")
    return deploy
