"""A receiver and three real machines under fleet: deploys, crashes, lost machines, and nothing left over."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet_apps import Visitor, an_app, answered, containers, host_of, only, pushed, running, wanted
from tests.fleet_cluster import Cluster
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _whole(cluster: Cluster) -> Iterator[None]:
    """Each test finds the cluster whole, and leaves it so."""
    yield
    cluster.mend()


@pytest.fixture
def pusher(receiver: Nap, cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    yield from an_app(receiver, cluster, request, tmp_path)


def test_address_of_the_machine_as_its_environment_names_it(cluster: Cluster, pusher: Pusher) -> None:
    machine = cluster.machines["n1"]
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push("nap", "HEAD:refs/tags/first").status == 0, "that makes its repository"
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.machine", machine.id)
    machine.write("/etc/environment", "COREOS_PRIVATE_IPV4=192.0.2.7\nCOREOS_PUBLIC_IPV4=192.0.2.8\n")
    try:
        assert pushed(pusher).url.startswith("http://192.0.2.7:")
    finally:
        machine.write("/etc/environment", "")


@pytest.mark.parametrize(
    ("setting", "value", "constraint"),
    [
        ("metadata", "region=mars", "MachineMetadata=region=mars"),
        ("machine", "0" * 32, f"MachineID={'0' * 32}"),
    ],
)
def test_placement_that_no_machine_meets(
    cluster: Cluster, pusher: Pusher, live: Pushed, setting: str, value: str, constraint: str
) -> None:
    pusher.git(f"--git-dir={pusher.bare}", "config", f"nap.{setting}", value)
    pusher.commit(index_html="two")
    refused = pusher.push()
    assert refused.status == 1
    assert refused.seconds < 15
    assert constraint in "\n".join(refused.trouble)
    for machine in cluster.machines.values():
        assert machine.address in "\n".join(refused.trouble)
    assert "building" not in refused.text
    only(cluster, pusher, 1)


def test_placement_by_metadata_and_by_machine(cluster: Cluster, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push("nap", "HEAD:refs/tags/first").status == 0, "that makes its repository"
    for name, value in (("metadata", "region=west"), ("metadata", "name=n1"), ("machine", cluster.machines["n2"].id)):
        pusher.git(f"--git-dir={pusher.bare}", "config", "nap.metadata", "")
        pusher.git(f"--git-dir={pusher.bare}", "config", f"nap.{name}", value)
        pusher.commit(index_html=value)
        there = answer(pushed(pusher).url)
        assert there == value
        machine = {"region=west": "n3", "name=n1": "n1"}.get(value, "n2")
        eventually(lambda m=machine: [*containers(cluster, pusher.app)] == [m], 30, f"on {machine}")  # type: ignore[misc]


def test_scale_spreads_over_machines_and_back(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    nap = pusher.nap
    with Visitor(pusher) as visitor:
        said = nap.run("ps:scale", pusher.app, "web=3").stdout
        assert f"=====> {pusher.app} v2 is live" in said
        only(cluster, pusher, 2, 3)
        assert sorted(containers(cluster, pusher.app)) == ["n1", "n2", "n3"]
        assert len({value["host"] for value in pusher.announcements().values()}) == 3  # type: ignore[index]
        pusher.commit(index_html="two")
        assert "web.1, web.2, web.3" in pushed(pusher).text, "counts survive deploys"
        nap.run("ps:scale", pusher.app, "web=1")
        only(cluster, pusher, 4)
    assert not visitor.failed
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.spread", "yes")
    refused = nap.run("ps:scale", pusher.app, "web=4", ok=False)
    assert refused.returncode == 1
    assert "web=4, and nap.spread (Conflicts=) asks for a machine for each" in refused.stdout
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.spread", "auto")
    nap.run("ps:scale", pusher.app, "web=4")
    only(cluster, pusher, 5, 4)


@pytest.mark.parametrize("how", ["power", "network"])
def test_lost_machine(cluster: Cluster, pusher: Pusher, live: Pushed, how: str) -> None:
    name = host_of(cluster, pusher.app)
    lost = cluster.machines[name]
    (lost.kill if how == "power" else lost.cut)()
    gone = eventually(lambda: not pusher.announcements(), 25, "its announcement ends with its lease")
    others = {machine.address for each, machine in cluster.machines.items() if each != name}
    back = eventually(lambda: answered(pusher) == ["one"], 90, "back from another machine")
    (value,) = pusher.announcements().values()
    assert value["host"] in others  # type: ignore[index]
    print(f"{how}: gone after {gone:.1f} s, back {back:.1f} s later")
    seen = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.append(json.dumps(pusher.announcements(), sort_keys=True))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        (lost.start if how == "power" else lost.join)()
        cluster.await_members()
        eventually(
            lambda: not [each for each in running(cluster, pusher.app) if each[0] == name], 60, "it stops what it ran"
        )
    finally:
        stop.set()
        watching.join()
    assert set(seen) == {json.dumps({f"/services/{pusher.app}/v1.web.1": value}, sort_keys=True)}
    assert len(running(cluster, pusher.app)) == 1
    assert answered(pusher) == ["one"]
    pusher.commit(index_html="two")
    assert answer(pushed(pusher).url) == "two"


def test_etcd_lost_and_back(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    cluster.stop_etcd()
    time.sleep(35)  # longer than fleet's time to live for agents, 30 s, and than the announcements' leases
    assert answer(live.url) == "one", "what runs, runs on"
    cluster.start_etcd()
    took = eventually(lambda: answered(pusher) == ["one"], 120, "announced again")
    print(f"etcd: announced {took:.1f} s after it was back")
    cluster.await_members()
    eventually(lambda: len(running(cluster, pusher.app)) == 1, 60, "once")
    eventually(lambda: answered(pusher) == ["one"], 60, "announced again")
    only(cluster, pusher, 1)


def test_fleetd_restarted_on_each_machine(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    for name in cluster.machines:
        cluster.restart_fleetd(name)
        took = eventually(lambda: answered(pusher) == ["one"], 90, f"announced after {name}")
        print(f"fleetd on {name}: {took:.1f} s")
    only(cluster, pusher, 1)


def test_registry_away_while_an_image_is_pulled(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    name = host_of(cluster, pusher.app)
    cluster.stop_registry()
    cluster.machines[name].kill()
    other = eventually_held_back(cluster, pusher, name)
    cluster.start_registry()
    took = eventually(lambda: answered(pusher) == ["one"], 60, "pulled and announced")
    print(f"registry: announced from {other} {took:.1f} s after it was back")


def eventually_held_back(cluster: Cluster, pusher: Pusher, lost: str) -> str:
    """The machine on which fleet starts the app again, which cannot pull its image; waits until it tried twice."""
    unit = f"{pusher.app}.v1.web.1.service"
    names = {machine.id: name for name, machine in cluster.machines.items()}

    def tried() -> bool:
        other = names.get(wanted(cluster, pusher.app)[unit], lost)
        if other == lost:
            return False
        shown = cluster.machines[other].run("systemctl", "show", "--property=NRestarts", "--value", unit, ok=False)
        return int(shown.stdout.strip() or 0) >= 2

    eventually(tried, 120, "another machine tries")
    return names[wanted(cluster, pusher.app)[unit]]


def test_cluster_that_does_not_answer(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    pusher.commit(index_html="two")
    cluster.stop_etcd()
    refused = pusher.push()
    cluster.start_etcd()
    assert refused.status == 128, "the gate let nobody in, who may do what being in etcd too"
    assert "does not answer" in "\n".join(refused.trouble)
    assert refused.seconds < 30


def test_nothing_collects_over_50_redeploys(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    started = time.monotonic()
    for release in range(2, 52):
        pusher.commit(index_html=f"number {release}")
        pushed(pusher)
    print(f"50 redeploys in {time.monotonic() - started:.0f} s")
    only(cluster, pusher, 51)
    assert not pusher.nap.keys(f"/nap/apps/{pusher.app}/exits/")
    assert not pusher.nap.keys(f"/nap/apps/{pusher.app}/lock")
    for name, machine in cluster.machines.items():
        images = machine.docker("images", "--quiet", "--no-trunc", "--filter", f"label=nap.app={pusher.app}").split()
        assert len(set(images)) <= 4, name
