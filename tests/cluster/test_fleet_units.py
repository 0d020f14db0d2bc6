"""nap's units under fleet: always on one machine with the stand-in for fleetctl, and on a real cluster where there is
one.

systemd, Docker, etcd and the registry are real on both.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import receiver_on
from tests.fleet_apps import Visitor, an_app, answered, having, host_of, only, pushed, wanted
from tests.fleet_cluster import Cluster
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, read_until, rest, runs


@pytest.fixture
def pusher(either: Cluster, either_receiver: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    yield from an_app(either_receiver, either, request, tmp_path)


def uptime() -> float:
    """Seconds since the computer started, which its containers see as well."""
    return float(Path("/proc/uptime").read_text().split()[0])


def test_push_prints_an_address_that_answers(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    assert answer(live.url) == "one"
    host = either.machines[host_of(either, pusher.app)]
    assert live.url.startswith(f"http://{host.address}:"), "fleet's public IP"
    (value,) = pusher.announcements().values()
    assert value == value | {"app": pusher.app, "release": 1, "process": "web", "instance": "web.1"}  # type: ignore[operator]
    again = pusher.push()
    assert (again.status, again.url) == (0, live.url)


@pytest.mark.long
def test_redeploys_without_a_moment_without_an_instance(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    with Visitor(pusher) as visitor:
        for release in range(2, 5):
            pusher.commit(index_html=f"number {release}")
            assert answer(pushed(pusher).url) == f"number {release}"
        eventually(lambda: len(wanted(either, pusher.app)) == 2, 10, "the old one is retired")
    assert visitor.visits > 50
    assert not visitor.failed
    only(either, pusher, 4)


def test_failed_redeploy_leaves_nothing_on_any_machine(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    with Visitor(pusher) as visitor:
        pusher.commit(Dockerfile=runs("echo no database >&2; cut -d ' ' -f 1 /proc/uptime >&2; exit 3"))
        failed = pusher.push()
        told = uptime()
        assert failed.status == 1
        assert f"{pusher.app} v2 web.1 exited with status 3 before it answered on port 8080" in failed.trouble
        exited = float(failed.lines[failed.lines.index("       no database") + 1])
        print(f"told {told - exited:.1f} s after its first exit")
        assert told - exited < 8, "before it has exited a third time"
    assert not visitor.failed
    only(either, pusher, 1)
    eventually(lambda: not pusher.nap.keys(f"/nap/apps/{pusher.app}/exits/"), 20, "and no word of it")


def test_a_port_that_nobody_named_is_found_on_its_machine(either: Cluster, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE 8080\n", ""), index_html="one")
    done = pushed(pusher)
    assert f"{pusher.app} v1 web listens on 8080; nap expected 5000. The image names no port" in done.trouble[0]
    assert f"=====> {pusher.app} v2 is live" in done.text
    assert answer(done.url) == "one"
    only(either, pusher, 2)


def test_silent_release_is_told_with_its_last_words(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "6")
    pusher.commit(Dockerfile=runs("echo I am up but deaf; exec sleep 1000"))
    failed = pusher.push()
    assert failed.status == 1
    assert "did not answer on port 8080 within 6 s" in "\n".join(failed.trouble), failed.text
    assert "       I am up but deaf" in failed.lines, failed.text
    only(either, pusher, 1)


def test_image_that_cannot_be_pulled_is_told(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = either.machines["n1"]
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.machine", machine.id)
    machine.run("iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "REJECT")
    try:
        pusher.commit(index_html="two")
        failed = pusher.push()
    finally:
        machine.run("iptables", "-D", "OUTPUT", "-p", "tcp", "--dport", "5000", "-j", "REJECT")
    assert failed.status == 1
    assert "could not start: " in "\n".join(failed.trouble), failed.text
    assert either.registry in "\n".join(failed.trouble), failed.text
    only(either, pusher, 1)


@pytest.mark.long
def test_killed_instance_comes_back_ten_times(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = either.machines[host_of(either, pusher.app)]
    took = []
    for _ in range(10):
        machine.docker("kill", f"{pusher.app}.v1.web.1")
        eventually(lambda: not pusher.announcements(), 2, "withdrawn")
        took.append(eventually(lambda: answered(pusher) == ["one"], 10, "back and announced"))
    print("back after", [f"{seconds:.1f}" for seconds in took])
    only(either, pusher, 1)


@pytest.mark.long
def test_what_crashes_at_once_again_and_again_is_held_back(either: Cluster, pusher: Pusher) -> None:
    needs = f"wget -q -O /dev/null http://{either.registry}/v2/ || exit 4; exec httpd -f -p 8080 -h /etc"
    pusher.commit(Dockerfile=runs(needs))
    pushed(pusher)
    machine = either.machines[host_of(either, pusher.app)]
    unit = f"{pusher.app}.v1.web.1"

    def restarts() -> int:
        return int(machine.run("systemctl", "show", "--property=NRestarts", "--value", unit).stdout)

    either.stop_registry()
    machine.docker("kill", unit)
    eventually(lambda: restarts() >= 3, 30, "it is tried again")
    before = restarts()
    time.sleep(6)
    assert restarts() - before <= 1, "and each time later"
    either.start_registry()
    took = eventually(lambda: answered(pusher), 40, "and not given up")
    print(f"back {took:.1f} s after what it needs")


def test_docker_restarted_on_the_machine(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    machine = either.machines[host_of(either, pusher.app)]
    for verb in (["restart"], ["kill", "--signal=KILL"]):
        machine.run("systemctl", *verb, "docker")
        eventually(lambda: not pusher.announcements(), 20, "withdrawn")
        took = eventually(lambda: answered(pusher) == ["one"], 60, "announced again")
        print(f"docker {verb[0]}: {took:.1f} s")
    only(either, pusher, 1)


@pytest.mark.long
def test_two_receivers_take_turns(
    either: Cluster, either_receiver: Nap, pusher: Pusher, short_folder: Path, tmp_path: Path
) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE", "RUN echo begin; sleep 6\nEXPOSE"), index_html="one")
    for other in receiver_on(either, short_folder / f"other-{len(either.machines)}"):
        (tmp_path / "other").mkdir()
        colleague = Pusher(other, pusher.app, tmp_path / "other")
        first = pusher.start_push()
        eventually(lambda: either_receiver.keys(f"/nap/apps/{pusher.app}/lock"), 20, "the first deploys")
        colleague.commit(Dockerfile=HTTPD, index_html="two")
        second = pushed(colleague)
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 0, said
        assert re.match(rf"-----> waiting: {pusher.user} has been deploying [0-9a-f]{{7}} since ", second.lines[0])
        assert f"{pusher.app} v1 is live" in said
        assert f"=====> {pusher.app} v2 is live" in second.text
        assert answer(second.url) == "two"

        colleague.commit(Dockerfile=HTTPD.replace("EXPOSE", "RUN sleep 60\nEXPOSE"))
        killed = colleague.start_push()
        eventually(lambda: either_receiver.keys(f"/nap/apps/{pusher.app}/lock"), 20, "the other deploys")
        os.kill(colleague.deploying(), signal.SIGKILL)
        killed_at = time.monotonic()
        pusher.commit(Dockerfile=HTTPD, index_html="three")
        third = pusher.start_push()
        read_until(third, f"-----> {pusher.app}: building")
        assert time.monotonic() - killed_at < 10 + 2, "what git and ssh take comes on top"
        assert f"{pusher.app} v3 is live" in rest(third)
        assert answered(pusher) == ["three"]
        assert killed.wait(timeout=20) == 1


def test_variables_reach_the_app_unchanged(either: Cluster, either_receiver: Nap, pusher: Pusher, live: Pushed) -> None:
    values = {
        "LINES": 'one\ntwo $HOME %h "quoted" it\'s\n',
        "LONG": "é" * 30000,
        "PATH": "/bin",
        "DOCKER_HOST": "tcp://evil:1",
        "LD_PRELOAD": "/evil.so",
    }
    done = either_receiver.run("config:set", pusher.app, *(f"{name}={value}" for name, value in values.items()))
    assert f"=====> {pusher.app} v2 is live" in done.stdout
    machine = having(either, f"{pusher.app}.v2.web.1")
    listed = machine.docker("inspect", "--format", "{{json .Config.Env}}", f"{pusher.app}.v2.web.1")
    found = dict(variable.split("=", 1) for variable in json.loads(listed))
    assert {name: found.get(name) for name in values} == values
    assert "quoted" not in machine.run("systemctl", "cat", f"{pusher.app}.v2.web.1").stdout
    machine.docker("kill", f"{pusher.app}.v2.web.1")
    eventually(lambda: not pusher.announcements(), 5, "withdrawn")
    eventually(lambda: answered(pusher) == ["one"], 20, "and started again with them")


def test_process_types_and_checks(either: Cluster, pusher: Pusher) -> None:
    start = "exec httpd -f -p $PORT -h /www"
    procfile = f"web: {start}\nworker: echo at work; exec sleep 1000\nrelease: echo migrated by $NAP_PROCESS\n"
    path = {"path": "/health", "attempts": 2, "wait": 1, "timeout": 1, "content": "all is\nwell"}
    path["httpHeaders"] = [{"name": "X-Asked", "value": 'by "nap"'}]
    warns = {"path": "/nowhere", "attempts": 1, "warn": True, "onFailure": {"command": "touch /www/told"}}
    alive = {"command": ["sh", "-c", "test 'a  b' = \"a  b\" && test -e /www/Dockerfile"], "wait": 1, "attempts": 2}
    checks = json.dumps({"healthchecks": {"web": [path, warns], "worker": [alive]}})
    (pusher.repository / "health").write_text("all is\nwell\n")
    (pusher.repository / "app.json").write_text(checks)
    pusher.commit(Dockerfile=HTTPD, Procfile=procfile, index_html="one")
    first = pushed(pusher)
    assert first.lines.index("       migrated by release.1") < first.lines.index("-----> Starting v1: web.1, worker.1")
    assert answer(first.url) == "one"
    up = f"/nap/apps/{pusher.app}/up/v1.worker.1"
    assert list(pusher.nap.keys(f"/nap/apps/{pusher.app}/up/")) == [up]
    assert list(pusher.announcements()) == [f"/services/{pusher.app}/v1.web.1"]

    assert "web.1: its check (http 8080 /nowhere) failed once; this check only warns" in first.text

    web, worker = (f"{pusher.app}.v1.{process}.1" for process in ("web", "worker"))
    having(either, web).docker("exec", web, "test", "-e", "/www/told")
    having(either, web).docker("exec", web, "rm", "/www/health")
    eventually(lambda: not pusher.announcements(), 10, "the web is withdrawn")
    eventually(pusher.announcements, 20, "it is started anew, and announced")
    having(either, worker).docker("exec", worker, "rm", "/www/Dockerfile")
    eventually(lambda: not pusher.nap.keys(up), 10, "the worker is no good")
    eventually(lambda: pusher.nap.keys(up), 20, "it is started anew, and good")

    (pusher.repository / "health").write_text("all is\nill\n")
    pusher.commit(index_html="two")
    failed = pusher.push()
    assert failed.status == 1
    check = 'http 8080 /health, "all is well" in the answer'
    assert f" !     {pusher.app} v2 web.1: its check ({check}) failed 2 times" in failed.lines
    assert any("/health: 200 OK, without that content: all is" in line for line in failed.lines), failed.text
    assert answered(pusher) == ["one"]


def test_limits(either: Cluster, pusher: Pusher, live: Pushed) -> None:
    limited = pusher.ssh_command("resource:limit", pusher.app, "--memory=64m", "--cpu=0.5")
    assert limited.returncode == 0, limited.stdout + limited.stderr
    machine = having(either, f"{pusher.app}.v2.web.1")
    shape = "{{.HostConfig.Memory}} {{.HostConfig.CpuQuota}}"
    assert machine.docker("inspect", "-f", shape, f"{pusher.app}.v2.web.1") == f"{64 << 20} 50000"
