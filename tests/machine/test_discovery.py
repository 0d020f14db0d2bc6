"""Announcements: there while the instance answers, gone when it does not, written again whatever etcd loses."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import closing

from nap_receiver.core.templates import TEMPLATES
from nap_receiver.store.assignments import boot_of_the_machine, lease_of
from tests.nap import HTTPD, Nap, Pusher, answer, eventually, runs


def container(nap: Nap, pusher: Pusher) -> str:
    (name,) = nap.containers(pusher.app)
    return name


def url(pusher: Pusher) -> str:
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    return f"http://{value['host']}:{value['port']}"


def test_killed_instance_is_withdrawn_and_comes_back(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="back")
    assert pusher.push().status == 0
    for _ in range(3):
        nap.docker("kill", container(nap, pusher))
        eventually(lambda: not pusher.announcements(), 2, "withdrawn after the container died")
        eventually(pusher.announcements, 10, "announced again")
        assert answer(url(pusher)) == "back"


def test_crashing_instance_is_not_announced_before_it_answers(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=runs("sleep 2; exec httpd -f -p 8080 -h /etc"))
    process = pusher.start_push()
    eventually(lambda: nap.containers(pusher.app), 20, "the instance runs")
    assert not pusher.announcements(), "it does not listen yet"
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert pusher.announcements()


def test_healthcheck_decides_where_the_image_has_one(nap: Nap, pusher: Pusher) -> None:
    check = "HEALTHCHECK --interval=1s --timeout=1s --retries=1 CMD test -e /healthy\nCMD"
    start = "(sleep 1; touch /healthy) & exec httpd -f -p 8080 -h /etc"
    pusher.commit(Dockerfile=runs(start).replace("CMD", check))
    assert pusher.push().status == 0
    name = container(nap, pusher)
    before = nap.docker("inspect", "--format", "{{.State.StartedAt}}", name)
    nap.docker("exec", name, "rm", "/healthy")
    eventually(lambda: not pusher.announcements(), 5, "withdrawn when unhealthy")
    eventually(pusher.announcements, 15, "started anew, and announced again when healthy")
    assert nap.docker("inspect", "--format", "{{.State.StartedAt}}", name) != before


def test_healthcheck_with_a_long_interval_is_asked_when_the_container_is_up(nap: Nap, pusher: Pusher) -> None:
    check = 'HEALTHCHECK --interval=5m CMD test -e "/health y" && test "$NAP_RELEASE" = v1\n'
    start = "(sleep 2; touch '/health y') & exec httpd -f -p 8080 -h /etc"
    pusher.commit(Dockerfile=runs(start).replace("CMD", f"{check}CMD"))
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert pushed.seconds < 30, "long before the interval is over"
    told = nap.keys(f"/nap/apps/{pusher.app}/checks/")
    assert not [key for key in told if key.endswith("-answer")], "what it was answered before it passed is forgotten"


def test_keys_that_etcd_lost_are_written_again(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    before = pusher.announcements()
    etcd = nap.etcd()
    (key,) = before
    written = etcd.get(key)
    assert written
    etcd.delete(key)
    eventually(lambda: (now := etcd.get(key)) and now.revision > written.revision, 10, "announced again")
    etcd.close()
    assert pusher.announcements() == before


def test_leases_that_etcd_lost_are_granted_again(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    before = pusher.announcements()
    etcd = nap.etcd()
    _, about = etcd._client.get(next(iter(before)))
    etcd._client.revoke_lease(about.lease_id)
    etcd.close()
    eventually(lambda: pusher.announcements() == before, 15, "announced again")


def test_the_announcement_is_not_left_to_a_lease_that_nobody_keeps(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    (key,) = pusher.announcements()

    def lease() -> int:
        etcd = nap.etcd()
        entry = etcd.get(key)
        etcd.close()
        assert entry, "it is announced all the time"
        return entry.lease

    before = lease()
    etcd = nap.etcd()
    etcd.revoke(before)
    etcd.close()
    eventually(pusher.announcements, 10, "written again, under a new lease")
    assert lease() != before


def wait_for_another_agent(nap: Nap, before: int) -> None:
    eventually(lambda: nap.process("agent") not in {0, before} and nap.answers("agent"), 20, "the next agent answers")


def test_a_killed_agent_leaves_what_serves_announced(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    before = pusher.announcements()
    for _ in range(3):
        killed = nap.process("agent")
        os.kill(killed, signal.SIGKILL)
        wait_for_another_agent(nap, killed)
        assert pusher.announcements() == before
    nap.docker("kill", container(nap, pusher))
    eventually(lambda: not pusher.announcements(), 2, "the next one withdraws it")
    eventually(pusher.announcements, 10, "announced again")


def test_what_died_while_there_was_no_agent_is_withdrawn_by_the_next(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="again")
    assert pusher.push().status == 0
    (before,) = pusher.announcements().values()
    nap.supervisor.call("stopProcess", "agent", True)
    nap.docker("stop", "--time", "0", container(nap, pusher))
    assert pusher.announcements(), "nobody was there"
    nap.supervisor.call("startProcess", "agent", False)
    eventually(lambda: [*pusher.announcements().values()] not in ([], [before]), 10, "it runs again, and is announced")
    assert answer(url(pusher)) == "again"


def test_etcd_that_lost_all_its_data_has_the_announcements_again(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="still here")
    assert pusher.push().status == 0
    before = pusher.announcements()
    nap.supervisor.call("stopProcess", "etcd")
    shutil.rmtree(nap.state.root / "etcd" / "data")
    nap.supervisor.call("startProcess", "etcd")
    eventually(lambda: nap.answers("etcd"), 20, "etcd is back")
    eventually(lambda: pusher.announcements() == before, 20, "announced again")
    assert answer(url(pusher)) == "still here"
    pusher.commit(index_html="and deploys")
    refused = pusher.push()
    assert refused.status == 128, "nobody becomes the owner of what somebody else has pushed"
    assert refused.trouble[0].startswith(f"app {pusher.app} has a repository here but no users")
    assert refused.trouble[1].endswith(f"nap access:add {pusher.app} {pusher.user} owner")
    nap.run("access:add", pusher.app, pusher.user, "owner")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "and deploys"


def test_what_others_write_beside_announcements_is_left_out(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    first = pusher.push()
    etcd, place = nap.etcd(), f"/services/{pusher.app}"
    etcd.put(f"{place}/other", {"host": "10.0.0.1", "port": 1, "ports": {}})
    etcd.put(f"{place}/v9.web.1", {"host": "10.0.0.1"})
    etcd.put(f"/nap/apps/{pusher.app}/up/other", {})
    etcd.put(f"{place}/v1.web.2", ["no object"])
    etcd._client.put(f"{place}/junk", "notjson")
    rows = json.loads(nap.run("ps", pusher.app, "--json").stdout)
    assert [(row["process"], row["address"]) for row in rows] == [("web.1", first.url)]
    assert f"{pusher.app} v1 already runs" in pusher.push().text
    pusher.commit(index_html="two")
    began = time.monotonic()
    second = pusher.push()
    assert answer(second.url) == "two"
    assert not second.trouble
    assert time.monotonic() - began < 15, "nobody waits for them to go"
    for key in ("junk", "other", "v9.web.1", "v1.web.2"):
        etcd.delete(f"{place}/{key}")
    etcd.close()


def test_announcements_of_before_the_machine_was_booted_lead_nobody_anywhere(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="here")
    assert pusher.push().status == 0
    (key,) = pusher.announcements()
    place = lease_of(nap.settings.etcd, nap.state.name)
    with closing(nap.etcd()) as etcd:
        nap.supervisor.call("stopProcess", "agent", True)
        try:
            (lease,) = nap.keys(place).values()
            assert isinstance(lease, dict)
            etcd.put(place, lease | {"boot": "another"}, lease=lease["id"])
            nap.supervisor.call("stopProcess", "router", True)
            nap.supervisor.call("startProcess", "router", False)
            eventually(lambda: key not in pusher.announcements(), 10, "the router withdraws what it does not trust")
        finally:
            nap.supervisor.call("startProcess", "agent", False)
    eventually(pusher.announcements, 15, "the agent announces it again")
    (again,) = nap.keys(place).values()
    assert isinstance(again, dict)
    assert (again["id"] != lease["id"], again["boot"]) == (True, boot_of_the_machine())
    assert answer(url(pusher)) == "here"


def test_told_to_stop_when_the_engine_has_just_gone(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    key = f"/services/{pusher.app}/beside"
    environment = {
        "PATH": os.environ["PATH"],
        "DOCKER_HOST": nap.engine_url,
        "ETCDCTL_ENDPOINTS": nap.settings.etcd.url,
        "NAP_CONTAINER": container(nap, pusher),
        "NAP_KEY": key,
        "NAP_PORT": "8080/tcp",
        "NAP_FACTS": '"app": "beside"',
        "NAP_HOST": "127.0.0.1",
        "NAP_LEASE": "60",
    }
    for delay in (0.0, 0.005, 0.01, 0.02):
        announcer = subprocess.Popen(["sh", str(TEMPLATES / "announce.sh")], env=environment, start_new_session=True)
        eventually(lambda: nap.keys(key), 10, "announced")
        (events,) = subprocess.check_output(["pgrep", "-g", str(announcer.pid), "-x", "docker"], text=True).split()
        os.kill(int(events), signal.SIGKILL)
        time.sleep(delay)
        announcer.terminate()
        announcer.wait(timeout=10)
        assert not nap.keys(key), f"stopped {delay} s after the engine was lost"
