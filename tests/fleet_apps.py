"""Apps on a cluster, as the tests look at them: in fleet, in systemd and Docker on each machine, and from outside."""

import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.schedulers.fleet import Fleet
from tests.fleet_cluster import Cluster
from tests.nap import Nap, Pushed, Pusher, answer, eventually
from tests.real_machine import Machine


def named_after(request: pytest.FixtureRequest) -> str:
    """An app's name made of the test's."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:34].rstrip("-")
    if hasattr(request.node, "callspec"):
        name += f"-{sorted(request.node.callspec.indices.values())[0]}"
    return str(name)


def an_app(nap: Nap, cluster: Cluster, request: pytest.FixtureRequest, folder: Path) -> Iterator[Pusher]:
    """Someone with an app named after the test, for a fixture to yield from; the app is gone afterwards."""
    name = named_after(request)
    remove(cluster, nap, name)
    yield Pusher(nap, name, folder)
    cluster.mend()
    remove(cluster, nap, name)


def remove(cluster: Cluster, nap: Nap, app: str) -> None:
    """Take the app away, with all that is known of it."""
    fleet = Fleet(nap.state, nap.settings)
    fleet.destroy_when_stopped(fleet.running(app))
    eventually(lambda: not containers(cluster, app), 60, f"{app} is gone")
    etcd = nap.etcd()
    for key in nap.keys(f"/nap/apps/{app}/"):
        etcd.delete(key)
    etcd.close()


def pushed(pusher: Pusher) -> Pushed:
    """Push what is committed; it is deployed."""
    done = pusher.push()
    assert done.status == 0, done.text
    return done


def wanted(cluster: Cluster, app: str) -> dict[str, str]:
    """The app's units that fleet knows of, each with its machine's id."""
    listed = cluster.fleetctl("list-unit-files", "--no-legend", "--full", "--fields", "unit,target").stdout
    rows = [line.split() for line in listed.splitlines() if line.startswith(f"{app}.")]
    return {unit: target.partition("/")[0] for unit, target in rows}


def containers(cluster: Cluster, app: str, *which: str) -> dict[str, list[str]]:
    """The app's containers by the machine that has them: all, or `which` of them in options of docker ps."""
    found = {}
    for name, machine in cluster.machines.items():
        listed = machine.docker("ps", *(which or ("--all",)), "--format", "{{.Names}}").split()
        if own := sorted(each for each in listed if each.startswith(f"{app}.")):
            found[name] = own
    return found


def loaded(cluster: Cluster, app: str) -> dict[str, list[str]]:
    """The app's units that systemd has, by machine; not those that it remembers only by name."""
    found = {}
    for name, machine in cluster.machines.items():
        listed = machine.run(
            "systemctl", "list-units", "--all", "--state=loaded", "--plain", "--no-legend", f"{app}.*"
        ).stdout
        if own := sorted(line.split()[0] for line in listed.splitlines()):
            found[name] = own
    return found


def host_of(cluster: Cluster, app: str) -> str:
    """The one machine that runs the app's one instance."""
    ((machine, _),) = containers(cluster, app).items()
    return machine


def having(cluster: Cluster, container: str) -> Machine:
    """The machine that has this container."""
    (machine,) = [
        name for name, found in containers(cluster, container.partition(".")[0]).items() if container in found
    ]
    return cluster.machines[machine]


def answered(pusher: Pusher) -> list[str]:
    """What each announced instance of the app answers; nothing for one that does not."""
    said = []
    for value in pusher.announcements().values():
        assert isinstance(value, dict)
        try:
            said.append(answer(f"http://{value['host']}:{value['port']}"))
        except (OSError, urllib.error.URLError):
            said.append("")
    return said


def only(cluster: Cluster, pusher: Pusher, release: int, count: int = 1) -> None:
    """Of the app there is this release and nothing else: on fleet, in systemd, in Docker and in etcd."""
    app = pusher.app
    apps = [f"{app}.v{release}.web.{index}" for index in range(1, count + 1)]
    units = sorted(f"{name}{kind}.service" for name in apps for kind in ("", "-discovery"))

    def all_of(places: dict[str, list[str]]) -> list[str]:
        return sorted(each for found in places.values() for each in found)

    eventually(lambda: sorted(wanted(cluster, app)) == units, 60, f"fleet has only v{release}")
    eventually(lambda: all_of(containers(cluster, app)) == apps, 60, f"the machines run only v{release}")
    eventually(lambda: all_of(loaded(cluster, app)) == units, 60, f"systemd has only v{release}")
    assert sorted(pusher.announcements()) == [f"/services/{app}/{name.removeprefix(f'{app}.')}" for name in apps]


class Visitor:
    """Asks an announced instance, picked anew each time, again and again; use it as a context manager."""

    def __init__(self, pusher: Pusher) -> None:
        self._pusher, self._done = pusher, threading.Event()
        self._thread = threading.Thread(target=self._visit)
        self.failed: list[str] = []
        self.visits = 0

    def __enter__(self) -> "Visitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _visit(self) -> None:
        while not self._done.wait(0.02):
            said = answered(self._pusher)
            self.visits += 1
            if not said or "" in said:
                self.failed.append(f"{time.strftime('%X')} {said}")


def running(cluster: Cluster, app: str) -> list[tuple[str, str]]:
    """Each machine with each container of the app that runs on it."""
    places = containers(cluster, app, "--filter=status=running")
    return [(machine, container) for machine, found in places.items() for container in found]
