"""A single-machine nap of the tests' own, and people who push to it."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nap_receiver.errors import NapError
from nap_receiver.local import Local
from tests.cluster import FOLDER, Cluster, down, running, up
from tests.fleet_apps import named_after, pushed
from tests.lone_machine import LoneMachine, boot_alone, remove
from tests.machine import HTTPD, Nap, Pushed, Pusher

ROOT = Path(__file__).resolve().parent.parent


def free_address() -> str:
    """A loopback address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def fresh_nap(folder: Path, **settings: str) -> Nap:
    """A nap that is not up yet, with ports of its own."""
    variables = {
        "NAP_ETCD_ADDRESS": free_address(),
        "NAP_REGISTRY_ADDRESS": free_address(),
        "NAP_SSH_ADDRESS": free_address(),
        "NAP_ROUTER_HTTP": free_address(),
        "NAP_DEPLOY_DRAIN": "1",
        "NAP_DEPLOY_GRACE": "5",
        **settings,
    }
    return Nap(folder, variables)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A temporary folder with a path short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def nap(short_folder: Path) -> Iterator[Nap]:
    """One nap for all tests; each test has an app of its own on it."""
    nap = fresh_nap(short_folder / "state")
    print(nap.run("up").stdout, file=sys.stderr)
    nap.import_busybox()
    yield nap
    nap.run("down")


@pytest.fixture(scope="session")
def cluster(short_folder: Path) -> Iterator[Cluster]:
    """The cluster that `make cluster` left running, else one of the tests' own."""
    if not os.environ.get("FLEET_BIN"):
        pytest.skip("FLEET_BIN is not set, so nothing ran on a real fleet; `make cluster` says where fleet comes from")
    if found := running(FOLDER):
        found.mend()
        yield found
        return
    folder = short_folder / "cluster"
    yield up(folder, Path(os.environ["FLEET_BIN"]))
    down(folder)


@pytest.fixture(scope="session")
def lone_machine(short_folder: Path) -> Iterator[LoneMachine]:
    """One machine, where the stand-in plays fleetctl."""
    machine = boot_alone(short_folder / "alone")
    yield machine
    remove(machine)


@pytest.fixture(scope="session", params=["stand-in", pytest.param("real", marks=pytest.mark.cluster)])
def either(request: pytest.FixtureRequest) -> Cluster:
    """That machine, and the real cluster: what passes on the one passes on the other."""
    found: Cluster = request.getfixturevalue("lone_machine" if request.param == "stand-in" else "cluster")
    return found


@pytest.fixture(scope="session")
def receiver(cluster: Cluster, short_folder: Path) -> Iterator[Nap]:
    """A nap whose scheduler is that cluster's fleet."""
    yield from receiver_on(cluster, short_folder / "receiver")


@pytest.fixture(scope="session")
def either_receiver(either: Cluster, short_folder: Path) -> Iterator[Nap]:
    """A nap whose scheduler is the fleet of either."""
    yield from receiver_on(either, short_folder / f"receiver-{len(either.machines)}")


def receiver_on(cluster: Cluster, folder: Path) -> Iterator[Nap]:
    """A nap for a fixture to yield from."""
    nap = fresh_nap(folder, **cluster.variables)
    print(nap.run("up").stdout, file=sys.stderr)
    nap.import_busybox()
    yield nap
    nap.run("down")


@pytest.fixture
def pusher(nap: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    """Someone with a key, and an app named after the test; nothing of it runs afterwards, for the next test's sake."""
    pusher = Pusher(nap, named_after(request), tmp_path)
    yield pusher
    with suppress(NapError):  # the test may have ended the scheduler
        local = Local(nap.state)
        running = local.running(pusher.app)
        local.stop([name for unit in running for name in (f"{unit}-discovery", unit)])


@pytest.fixture
def hello(nap: Nap, tmp_path: Path) -> Iterator[Pusher]:
    """Someone with the app that the documentation's examples are about; it is gone afterwards."""
    yield Pusher(nap, "hello", tmp_path)
    nap.run("apps:destroy", "hello", "--confirm", "hello", ok=False)


@pytest.fixture
def live(pusher: Pusher) -> Pushed:
    """The app's v1, up and announced."""
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    return pushed(pusher)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("NAP_", "GIT_", "GL_")):
            monkeypatch.delenv(name)
