"""A single-machine nap of the tests' own, and people who push to it."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import serves
from nap_receiver.core.installed import path_of
from nap_receiver.core.settings import EtcdAddress, EtcdSettings
from nap_receiver.schedulers.local import Local
from nap_receiver.store.etcd import Etcd, connect
from tests.fleet_apps import named_after, pushed
from tests.fleet_cluster import FOLDER, Cluster, down, running, up
from tests.lone_machine import LoneMachine, boot_alone, remove
from tests.nap import HTTPD, Nap, Pushed, Pusher, eventually

ROOT = Path(__file__).resolve().parent.parent
pytest.register_assert_rewrite("tests.etcd_contract")


# A shell that starts this in the background has it ignore Ctrl-C, and so would everything that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_PORTS = itertools.count(random.randrange(10_000, 20_000))


def free_address() -> str:
    """A loopback address that nothing listens on, of a port that no connection gets for its own end (ip(7))."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", next(_PORTS))) as listener:
            return f"127.0.0.1:{listener.getsockname()[1]}"


def fresh_nap(folder: Path, **settings: str) -> Nap:
    """A nap that is not up yet, with ports of its own."""
    variables = {
        "NAP_REGISTRY_ADDRESS": free_address(),
        "NAP_SSH_ADDRESS": free_address(),
        "NAP_ROUTER_HTTP": free_address(),
        "NAP_DEPLOY_DRAIN": "1",
        "NAP_DEPLOY_GRACE": "5",
        **settings,
    }
    return Nap(folder, variables)


_LONGEST = (
    "doctor clients failures public_apps turns router_change fleet_units domains logs gitolite run docs deploy "
    "retention tenant_values hostile big_context tenants_apart certs apps config"
)
"""The files that take more than a minute, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests outside `unit/` with `machine`, and begin with the files that take longest.

    One worker would still have such a file when the others are idle. After the listed files come the files with most
    tests, and the fast tests come last.
    """
    listed = [f"test_{name}.py" for name in _LONGEST.split()]
    machine = [item for item in items if not item.path.is_relative_to(ROOT / "tests" / "unit")]
    for item in machine:
        item.add_marker("machine")
    tests = Counter(item.path for item in machine)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.name
        return listed.index(name) if item.path in tests and name in listed else len(listed), -tests[item.path]

    items.sort(key=place)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A temporary folder with a path short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    folder.chmod(0o755)  # as /var/lib is, so that what is private in it is so by itself
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


@pytest.fixture
def own_nap(nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap that no other test has used, with the engine of the shared one."""
    own = fresh_nap(short_folder / "own", NAP_ENGINE_URL=nap.engine_url, NAP_DEPLOY_DRAIN="0", NAP_DEPLOY_GRACE="1")
    own.run("up")
    yield own
    own.run("down")
    shutil.rmtree(own.folder)


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


@pytest.fixture(scope="session")
def places(short_folder: Path) -> Iterator[EtcdSettings]:
    """An etcd of the tests' own, which has nothing but what they write."""
    address, peer = free_address(), f"http://{free_address()}"
    words = [
        path_of("etcd"),
        f"--data-dir={short_folder / 'etcd'}",
        f"--listen-client-urls=http://{address}",
        f"--advertise-client-urls=http://{address}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]
    etcd = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: serves(f"http://{address}/health"), 10, "etcd answers")
        yield EtcdSettings(EtcdAddress(address))
    finally:
        etcd.terminate()
        etcd.wait()


@pytest.fixture
def etcd(places: EtcdSettings) -> Iterator[Etcd]:
    """A connection to it."""
    with connect(places) as etcd:
        yield etcd


@pytest.fixture
def pusher(nap: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    """Someone with a key, and an app named after the test; nothing of it runs afterwards, for the next test's sake."""
    pusher = Pusher(nap, named_after(request), tmp_path)
    yield pusher
    with suppress(NapError):  # the test may have ended etcd
        local = Local(nap.state, nap.settings)
        local.stop(local.running(pusher.app))


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
