"""Apps that were not written for nap are pushed as they are, and a visitor gets their answers."""

import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from tests.bases import import_bases
from tests.fleet_apps import pushed
from tests.machine.test_router import ask
from tests.machine.test_router_change import websocket
from tests.nap import Nap, Pusher, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the images that the apps start from")

FOLDER = Path(__file__).parent.parent / "apps"


@dataclass(frozen=True)
class PublicApp:
    """What apps.toml says of one."""

    like: str
    answers: str = ""
    says: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=lambda: ["web.1"])
    variables: dict[str, str] = field(default_factory=dict)
    ends: str = ""
    """What it prints when it is stopped."""
    chats: bool = False


APPS = msgspec.convert(tomllib.loads((FOLDER / "apps.toml").read_text()), dict[str, PublicApp])


@pytest.fixture(scope="module")
def nap_with_bases(nap: Nap) -> Nap:
    import_bases(nap.engine_url)
    return nap


@pytest.fixture
def owner(nap_with_bases: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    """Whose repository has the files of the app that the test is about."""
    name = request.node.callspec.params["name"]
    pusher = Pusher(nap_with_bases, f"public-{name}", tmp_path)
    shutil.copytree(FOLDER / name, pusher.repository, dirs_exist_ok=True)
    pusher.commit()
    yield pusher
    nap_with_bases.run("apps:destroy", pusher.app, "--confirm", pusher.app)


@pytest.mark.parametrize("name", APPS)
def test_an_app_that_was_not_written_for_nap_runs_as_it_is(nap: Nap, owner: Pusher, name: str) -> None:
    expected = APPS[name]
    if expected.variables:
        said = [f"{variable}={value}" for variable, value in expected.variables.items()]
        for words in (("apps:create", owner.app), ("config:set", owner.app, *said)):
            done = owner.ssh_command(*words)
            assert done.returncode == 0, done.stdout + done.stderr
    result = pushed(owner)
    for line in expected.says:
        assert line in result.text
    assert [row["process"] for row in json.loads(owner.ssh_command("ps", owner.app, "--json").stdout)] == (
        expected.processes
    )
    visited = f"{owner.app}.localhost"
    if expected.answers:
        eventually(lambda: expected.answers in ask(nap, visited)[1], 5, f"a visitor is answered {expected.answers}")
    if expected.chats:
        with websocket(nap, visited) as (say, heard):
            say(b"hello")
            assert heard() == b"hello"
    if expected.ends:
        assert owner.ssh_command("ps:stop", owner.app).returncode == 0
        logs = ("logs", owner.app)
        eventually(lambda: expected.ends in owner.ssh_command(*logs).stdout, 15, f"it has printed {expected.ends}")


def test_each_folder_of_an_app_is_in_the_list() -> None:
    assert sorted(APPS) == sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
