"""What need not be kept goes by itself, and a build that would fill the disk does not begin."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fresh_nap
from tests.fleet_apps import pushed
from tests.machine.test_failures import push_to_hook
from tests.nap import HTTPD, Nap, Pusher, answer, eventually, runs


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
    nap.docker("rmi", "--force", f"{watched.repository_of_images}:{three}")  # its last container is kept
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


def test_the_image_of_a_first_push_that_failed_goes_with_the_first_that_is_live(watched: Watched) -> None:
    failed = watched.commit(Dockerfile=runs("exit 3"))
    assert watched.push().status == 1
    assert watched.in_the_registry() == {failed}
    commit, _ = watched.deployed(Dockerfile=HTTPD)
    assert watched.in_the_registry() == {commit}
    eventually(lambda: watched.on_the_engine() == {commit}, 10, "the engine has no other")


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
    assert "some images of old releases were not removed: the registry at" in trouble
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


def test_a_killed_collection_is_mended_by_the_next_push(forgetful: Nap, watched: Watched) -> None:
    forgetful.supervisor.call("stopProcess", "registry")
    (forgetful.state.run / "registry.collecting").touch()
    watched.deployed(Dockerfile=HTTPD, index_html="here")
    assert forgetful.answers("registry")
    assert not (forgetful.state.run / "registry.collecting").exists()


def test_too_little_disk_begins_no_build(forgetful: Nap, watched: Watched) -> None:
    watched.deployed(Dockerfile=HTTPD, index_html="one")
    commit = watched.commit(index_html="two")
    refused = push_to_hook(forgetful, watched, watched.bare, {"NAP_DEPLOY_FREE_SPACE": str(1 << 50)})
    place = re.escape(str(forgetful.state.root / "engine"))
    told = rf"where the engine keeps images \({place}\): [\d.]+ GB needed, [\d.]+ GB free, [\d.]+ GB missing"
    assert re.search(told, refused.trouble[0]), refused.text
    assert "docker system df" in refused.trouble[1]
    assert "building" not in refused.text
    assert commit not in watched.on_the_engine()
