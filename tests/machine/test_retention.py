"""What need not be kept goes by itself, and a build that would fill the disk does not begin."""

import fcntl
import os
import re
import subprocess
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
from nap_receiver.model.release import Outcome, Release
from nap_receiver.model.retention_policy import before, require_kept, sort_out
from tests.conftest import fresh_nap
from tests.fleet_apps import pushed
from tests.machine.test_failures import push_to_hook
from tests.nap import HTTPD, Nap, Pusher, answer, eventually, runs

LIVE, FAILED = Outcome("live"), Outcome("failed", "why")
Usage = namedtuple("Usage", ("total", "used", "free"))


def history(*releases: tuple[str, Outcome | None]) -> list[tuple[Release, Outcome | None]]:
    """Releases of these images; `a+1` is image a with configuration 1, `a<2` the same as v2 again."""
    return [(release(number, text), outcome) for number, (text, outcome) in enumerate(releases, 1)]


def release(number: int, text: str) -> Release:
    about: dict[str, Any] = {"app": "x", "commit": "", "ports": [], "has_healthcheck": False, "formation": {"web": 1}}
    what, _, again = text.partition("<")
    image, _, config = what.partition("+")
    return Release(
        image=image, number=number, by="", why="", config=int(config or 0), rollback_to=int(again or 0), **about
    )


def live(words: str) -> list[tuple[Release, Outcome | None]]:
    """The same, each of which was live."""
    return history(*((text, LIVE) for text in words.split()))


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
        "hello: 1.0 GB of free disk are needed where the engine keeps images (/engine), and 312 MB are there: "
        "712 MB are missing"
    )
    assert said == ["hello: the disk is nearly full; removing images of old releases first", "removed"]
    engine.api.base_url = "http://192.0.2.1:2375"  # elsewhere; its disk cannot be seen
    with pytest.raises(NapError, match=f"where nap keeps its state \\({tmp_path}\\)"):
        require_space(on_a_cluster(deploy(1 << 30)), engine)


def on_a_cluster(deploy: Any) -> Any:
    """The same on a cluster, whose registry is not nap's own."""
    deploy.settings = msgspec.structs.replace(deploy.settings, scheduler="fleet")
    return deploy


@pytest.fixture(scope="module")
def forgetful(short_folder: Path) -> Iterator[Nap]:
    """A nap with an engine of its own that keeps the images of two releases."""
    folder = short_folder / "forgets"
    variables = {"NAP_DEPLOY_KEEP_RELEASES": "2", "NAP_DEPLOY_DRAIN": "0", "NAP_DEPLOY_GRACE": "1"}
    nap = fresh_nap(folder, NAP_ENGINE_URL=f"unix://{folder}/run/docker.sock", **variables)
    nap.run("up")
    nap.import_busybox()
    yield nap
    nap.run("down")


class Watched(Pusher):
    """A pusher who looks where the app's images are."""

    def deployed(self, **files: str) -> tuple[str, str]:
        """Push these files; the commit, and the image of its release."""
        commit = self.commit(**files)
        pushed(self)
        return commit, self.image()

    def image(self) -> str:
        """The current release's."""
        root = f"/nap/apps/{self.app}"
        number = self.nap.keys(f"{root}/current")[f"{root}/current"]
        release: Any = self.nap.keys(f"{root}/releases/")[f"{root}/releases/{number:08}"]
        return str(release["image"])

    def on_the_engine(self) -> set[str]:
        """The commits that it has tags of."""
        listed = self.nap.docker("images", "--format", "{{.Repository}} {{.Tag}}").splitlines()
        return {line.split()[1] for line in listed if line.startswith(self.repository_of_images + " ")}

    @property
    def repository_of_images(self) -> str:
        return f"{self.nap.settings.registry.address}/{self.app}"

    def in_the_registry(self) -> set[str]:
        """The commits that it has tags of."""
        return set(self.nap.asked_registry(f"{self.app}/tags/list").json()["tags"] or [])

    def has(self, image: str) -> bool:
        """Whether the registry has this image, by its digest."""
        path = f"{self.app}/manifests/{image.partition('@')[2]}"
        status = self.nap.asked_registry(
            path, Accept="application/vnd.docker.distribution.manifest.v2+json"
        ).status_code
        assert status in {200, 404}
        return status == 200


@pytest.fixture
def watched(forgetful: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    return Watched(
        forgetful, request.node.originalname.removeprefix("test_")[:12].strip("_").replace("_", "-"), tmp_path
    )


def kilobytes(folder: Path) -> int:
    done = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.mark.machine
def test_images_of_old_releases_go(forgetful: Nap, watched: Watched) -> None:
    nap, registry = forgetful, forgetful.state.root / "registry"
    one, image_one = watched.deployed(Dockerfile=HTTPD, index_html="one")
    (watched.repository / "big").write_bytes(os.urandom(4_000_000))
    two, image_two = watched.deployed(index_html="two")
    nap.docker("tag", image_two, "elsewhere:2")
    filled = kilobytes(registry)

    watched.git("reset", "--quiet", "--hard", one)
    again = watched.push("--force", "nap", "HEAD:refs/heads/master")
    assert again.status == 0, again.text
    assert watched.image() == image_one, "v3 has the image of v1"
    three, image_three = watched.deployed(index_html="three")  # v4; the last two are v3 and v4
    eventually(lambda: watched.on_the_engine() == {one, three}, 10, "the engine has the last two")
    eventually(lambda: kilobytes(registry) < filled - 3800, 10, "its 4 MB are free")
    eventually(lambda: nap.answers("registry"), 5, "the registry serves")
    assert watched.in_the_registry() == {one, three}
    assert [watched.has(each) for each in (image_one, image_two, image_three)] == [True, False, True]
    assert nap.docker("images", "--quiet", "elsewhere:2"), "what has another name stays under that"

    four, image_four = watched.deployed(index_html="four")  # v5
    eventually(lambda: watched.on_the_engine() == {three, four}, 10, "the engine has the last two")
    assert watched.in_the_registry() == {three, four}
    assert [watched.has(each) for each in (image_one, image_three, image_four)] == [False, True, True]
    eventually(lambda: len(nap.containers(watched.app)) == 1, 15, "v4 has stopped")
    nap.docker("rmi", f"{watched.repository_of_images}:{three}")
    assert watched.on_the_engine() == {four}
    assert watched.ssh_command("rollback", watched.app).returncode == 0
    (announced,) = watched.announcements().values()
    assert isinstance(announced, dict)
    assert answer(f"http://127.0.0.1:{announced['port']}") == "three", "it came back from the registry"

    refused = watched.ssh_command("rollback", watched.app, "v2")
    assert refused.returncode == 1
    assert "v2 is too old to go back to: the images of the last 2 releases are kept" in refused.stdout

    watched.git("reset", "--quiet", "--hard", two)  # what was forgotten and freed comes back with a push
    back = watched.push("--force", "nap", "HEAD:refs/heads/master")
    assert answer(back.url) == "two"
    nap.docker("rmi", "elsewhere:2")
    assert watched.has(watched.image())
    assert not (nap.state.deploy_logs / "removed.log").read_text()


@pytest.mark.machine
def test_the_image_of_a_first_push_that_failed_goes_with_the_first_that_is_live(watched: Watched) -> None:
    failed = watched.commit(Dockerfile=runs("exit 3"))
    assert watched.push().status == 1
    assert watched.in_the_registry() == {failed}
    commit, _ = watched.deployed(Dockerfile=HTTPD)
    assert watched.in_the_registry() == {commit}
    eventually(lambda: watched.on_the_engine() == {commit}, 10, "the engine has no other")


@pytest.mark.machine
def test_the_oldest_records_go_with_all_that_only_they_name(forgetful: Nap, watched: Watched) -> None:
    few = Nap(forgetful.folder, forgetful.variables | {"NAP_LIMITS_RELEASES": "2"})
    root = f"/nap/apps/{watched.app}"
    watched.deployed(Dockerfile=HTTPD)
    watched.commit(Dockerfile=runs("exit 3"))
    assert watched.push().status == 1
    record: Any = few.keys(f"{root}/releases/")[f"{root}/releases/{2:08}"]
    assert watched.has(record["image"])
    few.run("ps:stop", watched.app)
    for number in range(3):
        few.run("config:set", watched.app, f"A={number}")
    few.run("rollback", watched.app)
    assert few.run("config:get", watched.app, "A").stdout == "1\n"
    kept = (1, 5, 6, 7)  # what v1 printed is kept until something starts
    assert list(few.keys(f"{root}/releases/")) == [f"{root}/releases/{number:08}" for number in kept]
    assert list(few.keys(f"{root}/outcomes/")) == [f"{root}/outcomes/{number:08}" for number in kept]
    assert list(few.keys(f"{root}/configs/")) == [f"{root}/configs/{number:08}" for number in (2, 3)]
    assert watched.git("ls-remote", "nap", "refs/nap/*").split()[1::2] == [f"refs/nap/v{number}" for number in kept]
    assert not watched.has(record["image"])
    assert watched.has(watched.image())


@pytest.mark.machine
def test_a_registry_that_deletes_nothing_fails_no_deploy(forgetful: Nap, watched: Watched) -> None:
    configuration = forgetful.state.run / "registry.yml"
    text = configuration.read_text()
    images = [watched.deployed(Dockerfile=HTTPD, index_html=str(number))[1] for number in range(2)]

    def restart(configured: str) -> None:
        configuration.write_text(configured)
        forgetful.supervisor.call("stopProcess", "registry")
        forgetful.supervisor.call("startProcess", "registry")
        eventually(lambda: forgetful.answers("registry"), 10, "the registry answers")

    restart(text.replace("enabled: true", "enabled: false"))
    watched.commit(index_html="three")
    told = pushed(watched)
    assert answer(told.url) == "three"
    (trouble,) = told.trouble
    assert "images of old releases are not all removed: the registry at" in trouble
    assert "405 Method Not Allowed; the next deploy tries again" in trouble
    assert watched.has(images[0])
    restart(text)
    logs = forgetful.state.deploy_logs / watched.app
    for number in range(100, 220):
        (logs / f"20000101T000{number}-1a2b3c4.log").touch()
    watched.deployed(index_html="four")
    assert [watched.has(image) for image in images] == [False, False]
    kept = sorted(path.name for path in logs.iterdir())
    assert len(kept) == 100
    assert kept[0] == "20000101T000124-1a2b3c4.log", "of 124, the last hundred"


@pytest.mark.machine
def test_a_killed_collection_is_mended_by_the_next_push(forgetful: Nap, watched: Watched) -> None:
    forgetful.supervisor.call("stopProcess", "registry")
    (forgetful.state.run / "registry.collecting").touch()
    watched.deployed(Dockerfile=HTTPD, index_html="here")
    assert forgetful.answers("registry")
    assert not (forgetful.state.run / "registry.collecting").exists()


@pytest.mark.machine
def test_too_little_disk_begins_no_build(forgetful: Nap, watched: Watched) -> None:
    watched.deployed(Dockerfile=HTTPD, index_html="one")
    commit = watched.commit(index_html="two")
    refused = push_to_hook(forgetful, watched, watched.bare, {"NAP_DEPLOY_FREE_SPACE": str(1 << 50)})
    place = re.escape(str(forgetful.state.root / "engine"))
    told = rf"needed where the engine keeps images \({place}\), and [\d.]+ GB are there: [\d.]+ GB are missing"
    assert re.search(told, refused.trouble[0]), refused.text
    assert "docker system df" in refused.trouble[1]
    assert "building" not in refused.text
    assert commit not in watched.on_the_engine()
