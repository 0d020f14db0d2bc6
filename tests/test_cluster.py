"""A receiver and three real machines under fleet: deploys, crashes, lost machines, and nothing left over."""

import json
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.machine import HTTPD, Nap, Pushed, Pusher, answer, eventually, runs

pytestmark = [pytest.mark.machine, pytest.mark.cluster]


@pytest.fixture(autouse=True)
def _whole(cluster: Cluster) -> Iterator[None]:
    """Each test finds the cluster whole, and leaves it so."""
    yield
    cluster.mend()


@pytest.fixture
def pusher(receiver: Nap, cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    """Someone with an app named after the test; the app is gone afterwards."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:34].rstrip("-")
    if hasattr(request.node, "callspec"):
        name += f"-{sorted(request.node.callspec.indices.values())[0]}"
    remove(cluster, receiver, name)
    yield Pusher(receiver, name, tmp_path)
    cluster.mend()
    remove(cluster, receiver, name)


def remove(cluster: Cluster, receiver: Nap, app: str) -> None:
    """Take the app away, with all that is known of it."""
    if units := sorted(wanted(cluster, app)):
        cluster.fleetctl("destroy", *units)
    eventually(lambda: not containers(cluster, app), 60, f"{app} is gone")
    etcd = receiver.etcd()
    for key in receiver.keys(f"/nap/apps/{app}/"):
        etcd.delete(key)
    etcd.close()


@pytest.fixture
def live(pusher: Pusher) -> Pushed:
    """The app's v1, up and announced."""
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    return pushed(pusher)


def pushed(pusher: Pusher) -> Pushed:
    """Push what is committed; it is deployed."""
    done = pusher.push()
    assert done.status == 0, done.text
    return done


def wanted(cluster: Cluster, app: str) -> dict[str, str]:
    """The app's units that fleet knows of, each with its machine's id."""
    listed = cluster.fleetctl("list-unit-files", "--no-legend", "--full", "--fields", "unit,target").stdout
    return {unit: target for unit, target in map(str.split, listed.splitlines()) if unit.startswith(f"{app}.")}


def containers(cluster: Cluster, app: str) -> dict[str, list[str]]:
    """The app's containers, running or not, by the machine that has them."""
    found = {}
    for name, machine in cluster.machines.items():
        listed = machine.docker("ps", "--all", "--format", "{{.Names}}").split()
        if own := sorted(each for each in listed if each.startswith(f"{app}.")):
            found[name] = own
    return found


def loaded(cluster: Cluster, app: str) -> dict[str, list[str]]:
    """The app's units that systemd knows of, by machine."""
    found = {}
    for name, machine in cluster.machines.items():
        listed = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", f"{app}.*").stdout
        if own := sorted(line.split()[0] for line in listed.splitlines()):
            found[name] = own
    return found


def host_of(cluster: Cluster, app: str) -> str:
    """The one machine that runs the app's one instance."""
    ((machine, _),) = containers(cluster, app).items()
    return machine


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


def test_push_prints_an_address_that_answers(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    assert answer(live.url) == "one"
    host = cluster.machines[host_of(cluster, pusher.app)]
    assert live.url.startswith(f"http://{host.address}:"), "fleet's public IP"
    (value,) = pusher.announcements().values()
    assert value == value | {"app": pusher.app, "release": 1, "process": "web", "instance": "web.1"}  # type: ignore[operator]
    again = pusher.push()
    assert (again.status, again.url) == (0, live.url)


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


def test_redeploys_without_a_moment_without_an_instance(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    with Visitor(pusher) as visitor:
        for release in range(2, 5):
            pusher.commit(index_html=f"number {release}")
            assert answer(pushed(pusher).url) == f"number {release}"
        eventually(lambda: len(wanted(cluster, pusher.app)) == 2, 10, "the old one is retired")
    assert visitor.visits > 50
    assert not visitor.failed
    only(cluster, pusher, 4)


def test_failed_redeploy_leaves_nothing_on_any_machine(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    with Visitor(pusher) as visitor:
        pusher.commit(Dockerfile=runs("echo no database >&2; exit 3"))
        failed = pusher.push()
        assert failed.status == 1
        assert f"{pusher.app} v2 web.1 exited with status 3 before it answered on port 8080" in failed.trouble
        assert "       no database" in failed.lines
    assert not visitor.failed
    only(cluster, pusher, 1)
    assert not pusher.nap.keys(f"/nap/apps/{pusher.app}/exits/")


def test_silent_release_is_told_with_its_last_words(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "6")
    pusher.commit(Dockerfile=runs("echo I am up but deaf; exec sleep 1000"))
    failed = pusher.push()
    assert failed.status == 1
    assert "did not answer on port 8080 within 6 s" in "\n".join(failed.trouble), failed.text
    assert "       I am up but deaf" in failed.lines, failed.text
    only(cluster, pusher, 1)


def test_image_that_cannot_be_pulled_is_told(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = cluster.machines["n1"]
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.machine", machine.id)
    machine.run("iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "REJECT")
    try:
        pusher.commit(index_html="two")
        failed = pusher.push()
    finally:
        machine.run("iptables", "-D", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "REJECT")
    assert failed.status == 1
    assert "could not start: " in "\n".join(failed.trouble), failed.text
    assert cluster.registry in "\n".join(failed.trouble), failed.text
    only(cluster, pusher, 1)


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


def test_killed_instance_comes_back_ten_times(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = cluster.machines[host_of(cluster, pusher.app)]
    took = []
    for _ in range(10):
        machine.docker("kill", f"{pusher.app}.v1.web.1")
        eventually(lambda: not pusher.announcements(), 2, "withdrawn")
        took.append(eventually(lambda: answered(pusher) == ["one"], 10, "back and announced"))
    print("back after", [f"{seconds:.1f}" for seconds in took])
    only(cluster, pusher, 1)


def test_what_crashes_at_once_again_and_again_is_held_back(cluster: Cluster, pusher: Pusher) -> None:
    needs = f"wget -q -O /dev/null http://{cluster.registry}/v2/ || exit 4; exec httpd -f -p 8080 -h /etc"
    pusher.commit(Dockerfile=runs(needs))
    pushed(pusher)
    machine = cluster.machines[host_of(cluster, pusher.app)]
    unit = f"{pusher.app}.v1.web.1"

    def restarts() -> int:
        return int(machine.run("systemctl", "show", "--property=NRestarts", "--value", unit).stdout)

    cluster.stop_registry()
    machine.docker("kill", unit)
    eventually(lambda: restarts() >= 3, 30, "it is tried again")
    before = restarts()
    time.sleep(6)
    assert restarts() - before <= 1, "and each time later"
    cluster.start_registry()
    took = eventually(lambda: answered(pusher), 40, "and not given up")
    print(f"back {took:.1f} s after what it needs")


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


def running(cluster: Cluster, app: str) -> list[tuple[str, str]]:
    """Each machine with each container of the app that runs on it."""
    found = []
    for name, machine in cluster.machines.items():
        listed = machine.docker("ps", "--format", "{{.Names}}").split()
        found += [(name, each) for each in listed if each.startswith(f"{app}.")]
    return found


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


def test_docker_restarted_on_the_machine(cluster: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = cluster.machines[host_of(cluster, pusher.app)]
    for verb in (["restart"], ["kill", "--signal=KILL"]):
        machine.run("systemctl", *verb, "docker")
        eventually(lambda: not pusher.announcements(), 20, "withdrawn")
        took = eventually(lambda: answered(pusher) == ["one"], 60, "announced again")
        print(f"docker {verb[0]}: {took:.1f} s")
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
    assert refused.status == 1
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
