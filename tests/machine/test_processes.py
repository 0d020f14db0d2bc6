"""Process types: what the Procfile names, how many of each, what they may use, and what runs once beside them."""

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.fleet_apps import pushed
from tests.nap import ROOT, Nap, Pushed, Pusher, answer, eventually

BASE = "FROM nap/busybox\nCOPY . /www\nWORKDIR /www\nEXPOSE 8080\n"
WEB = "web: exec httpd -f -p $PORT -h /www\n"


def commit(pusher: Pusher, procfile: str, **files: str) -> str:
    (pusher.repository / "app.json").unlink(missing_ok=True)
    if "app_json" in files:
        (pusher.repository / "app.json").write_text(files.pop("app_json"))
    return pusher.commit(Dockerfile=BASE, Procfile=procfile, **files)


def environment(nap: Nap, container: str) -> dict[str, str]:
    """The environment that a container was given."""
    lines = json.loads(nap.docker("inspect", "--format", "{{json .Config.Env}}", container))
    return dict(line.split("=", 1) for line in lines)


def processes(pusher: Pusher) -> dict[str, str]:
    """The state of each instance, as `ps` tells it."""
    rows = json.loads(pusher.ssh_command("ps", pusher.app, "--json").stdout)
    return {row["process"]: row["state"] for row in rows}


def test_web_is_announced_and_others_run(nap: Nap, pusher: Pusher) -> None:
    commit(pusher, WEB + "worker: echo working; exec sleep 1000\n", index_html="one")
    done = pushed(pusher)
    assert answer(done.url) == "one"
    assert "-----> Starting v1: web.1, worker.1" in done.lines
    assert "       worker.1 is up" in done.lines
    assert [key.rpartition("/")[2] for key in pusher.announcements()] == ["v1.web.1"]
    assert processes(pusher) == {"web.1": "running", "worker.1": "running"}
    web, worker = (environment(nap, name) for name in nap.containers(pusher.app))
    assert web["PORT"] == "8080"
    assert "PORT" not in worker
    assert "working" in nap.docker("logs", nap.containers(pusher.app)[1])
    again = pusher.push()
    assert f"=====> {pusher.app} v1 already runs" in again.text


def test_counts_stay_when_the_next_commit_comes(nap: Nap, pusher: Pusher) -> None:
    formation = {"formation": {"web": {"quantity": 1}, "worker": {"quantity": 2}}}
    commit(pusher, WEB + "worker: exec sleep 1000\n", app_json=json.dumps(formation))
    pushed(pusher)
    assert sorted(processes(pusher)) == ["web.1", "worker.1", "worker.2"]
    assert pusher.ssh_command("ps:scale", pusher.app, "web=2", "worker=0").returncode == 0
    commit(pusher, WEB + "worker: exec sleep 1001\n", app_json=json.dumps(formation))
    pushed(pusher)
    assert sorted(processes(pusher)) == ["web.1", "web.2"]
    counts = json.loads(pusher.ssh_command("ps:scale", pusher.app, "--json").stdout)
    assert counts == [{"process": "web", "count": 2}, {"process": "worker", "count": 0}]
    commit(pusher, WEB)
    pushed(pusher)
    refused = pusher.ssh_command("ps:scale", pusher.app, "worker=1")
    assert f" !     {pusher.app} has no process type worker; there are: web" in refused.stdout


def test_a_worker_that_ends_fails_the_whole_release(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    commit(pusher, WEB + "worker: echo no queue; exit 4\n")
    done = pusher.push()
    assert done.status == 1
    assert f"{pusher.app} v2 worker.1 exited with status 4 before it was up" in done.text
    assert "       no queue" in done.lines
    assert answer(live.url) == "one"
    assert nap.leftovers(pusher.app, 2) == []
    assert not nap.keys(f"/nap/apps/{pusher.app}/up/")


def test_an_app_of_workers_alone(nap: Nap, pusher: Pusher) -> None:
    commit(pusher, "Web: exec sleep 1000\n")
    done = pushed(pusher)
    assert f"=====> {pusher.app} v1 is live" in done.text
    assert any("Web is not the process type web" in line for line in done.trouble)
    assert "       It has no process type web, so it has no address." in done.lines
    assert "http://" not in done.text
    assert "already runs" in pusher.push().text
    name = nap.containers(pusher.app)[0]
    nap.docker("kill", name)
    eventually(lambda: processes(pusher) == {"Web.1": "unhealthy"}, 5, "it is missed")
    eventually(lambda: processes(pusher) == {"Web.1": "running"}, 20, "it is back")
    assert "is reached at" not in pusher.ssh_command("ps", pusher.app).stdout
    opened = pusher.ssh_command("open", pusher.app)
    assert (opened.returncode, opened.stdout) == (1, "")
    assert f"{pusher.app} has no process type web" in opened.stderr


def test_the_release_command_runs_first_and_can_fail_the_deploy(nap: Nap, pusher: Pusher) -> None:
    assert nap.run("config:set", pusher.app, "COLOUR=green", ok=False).returncode == 1  # there is no app yet
    commit(pusher, WEB + "release: echo migrating $NAP_RELEASE $COLOUR\n", index_html="one")
    done = pushed(pusher)
    ran, started = done.lines.index("       migrating v1"), done.lines.index("-----> Starting v1: web.1")
    assert ran < started
    configured = pusher.ssh_command("config:set", pusher.app, "COLOUR=green")
    assert "       migrating v2 green" in configured.stdout.splitlines()
    assert "migrating" not in pusher.ssh_command("ps:restart", pusher.app).stdout
    commit(pusher, WEB + "release: echo cannot migrate; exit 5\n")
    failed = pusher.push()
    assert failed.status == 1
    assert f" !     {pusher.app}: the release command exited with status 5" in failed.lines
    assert "       cannot migrate" in failed.lines
    assert "Starting v4" not in failed.text
    assert [name for name in nap.containers(pusher.app) if ".v4." in name or ".release." in name] == []
    assert processes(pusher) == {"web.1": "running"}


def test_postdeploy_runs_once_after_the_first_release(pusher: Pusher) -> None:
    scripts = json.dumps({"scripts": {"postdeploy": "echo seeded by $NAP_PROCESS"}, "addons": []})
    commit(pusher, WEB, app_json=scripts, index_html="one")
    first = pushed(pusher)
    assert first.lines.index("       seeded by postdeploy.1") > first.lines.index(f"       {first.url}")
    assert " !     app.json: nap ignores addons" in first.lines
    commit(pusher, WEB, app_json=scripts, index_html="two")
    assert "seeded" not in pushed(pusher).text


def test_stopped_and_started(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    stopped = pusher.ssh_command("ps:stop", pusher.app)
    assert stopped.returncode == 0, stopped.stdout
    assert not pusher.announcements()
    eventually(lambda: nap.containers(pusher.app) == [], 15, "nothing of it runs")
    assert f"{pusher.app} is stopped" in pusher.ssh_command("ps", pusher.app).stdout
    assert f"{pusher.app} is already stopped" in pusher.ssh_command("ps:stop", pusher.app).stdout
    configured = pusher.ssh_command("config:set", pusher.app, "A=1")
    assert f"v3 is live, and stopped: ps:start {pusher.app} starts it" in configured.stdout
    assert nap.containers(pusher.app) == []
    started = pusher.ssh_command("ps:start", pusher.app)
    assert answer(started.stdout.split()[-1]) == "one"
    assert pusher.ssh_command("ps:stop", pusher.app).returncode == 0
    assert answer(pushed(pusher).url) == "one"  # a push starts it too
    scaled = pusher.ssh_command("ps:scale", pusher.app, "web=0")
    assert f"is live, and scaled to 0: ps:scale {pusher.app} web=1 starts it" in scaled.stdout
    told = pusher.ssh_command("ps", pusher.app).stdout
    assert told == f"{pusher.app} has no instance: it is scaled to 0. To start one: ps:scale {pusher.app} web=1\n"


def test_limits_are_docker_s(nap: Nap, pusher: Pusher) -> None:
    commit(pusher, WEB + "worker: exec sleep 1000\n")
    pushed(pusher)
    done = pusher.ssh_command("resource:limit", pusher.app, "--memory", "64", "--cpu", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert pusher.ssh_command("resource:limit", pusher.app, "-p", "worker", "--memory=128m").returncode == 0
    listed = json.loads(pusher.ssh_command("resource:limit", pusher.app, "--json").stdout)
    assert listed == [
        {"process": "web", "memory": 64 << 20, "cpu": 0.5},
        {"process": "worker", "memory": 128 << 20, "cpu": 0.5},
        {"process": "run", "memory": 64 << 20, "cpu": 0.5},
    ]
    shape = "{{.HostConfig.Memory}} {{.HostConfig.CpuQuota}} {{.HostConfig.CpuPeriod}}"
    found = [nap.docker("inspect", "-f", shape, name) for name in nap.containers(pusher.app) if ".v3." in name]
    assert found == [f"{64 << 20} 50000 100000", f"{128 << 20} 50000 100000"]
    assert pusher.ssh_command("resource:limit", pusher.app, "-p", "run", "--memory=96m").returncode == 0
    listed = json.loads(pusher.ssh_command("resource:limit", pusher.app, "--json").stdout)
    assert listed[2:] == [{"process": "run", "memory": 96 << 20, "cpu": 0.5}]
    limit = "'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null'"
    assert pusher.ssh_command("run", pusher.app, "sh", "-c", limit).stdout.strip() == str(96 << 20)
    before = pusher.ssh_command("releases", pusher.app, "--json").stdout
    large = pusher.ssh_command("resource:limit", pusher.app, "--memory=5g")
    assert large.returncode == 1
    assert f" !     --memory: expected {4 << 30}b or less, got {5 << 30}b; nothing was changed" in large.stdout
    many = pusher.ssh_command("resource:limit", pusher.app, "--cpu=1024")
    assert many.returncode == 1
    assert f" !     --cpu: expected {os.cpu_count()} or less, the processors of this machine, got 1024" in many.stdout
    assert "no process type db" in pusher.ssh_command("resource:limit", pusher.app, "-p", "db", "--cpu=1").stdout
    assert pusher.ssh_command("releases", pusher.app, "--json").stdout == before
    for words in (("--memory=5k",), ("--memory=much",), ("--cpu=-1",), ("--cpu", "a"), ("-p", "a.b", "--cpu=1")):
        refused = pusher.ssh_command("resource:limit", pusher.app, *words)
        assert refused.returncode == 2
        assert refused.stderr.startswith(" !     ")
    assert processes(pusher) == {"web.1": "running", "worker.1": "running"}


@pytest.mark.parametrize(
    ("status", "state", "event", "says"),
    [
        (137, "false 64", "oom", "it used more memory than 64"),
        (137, "false 64", "", "no error of the engine"),
        (137, "false 0", "oom", "no error of the engine"),
        (1, "false 64", "oom", "no error of the engine"),
        (1, "true 64", "", "it used more memory than 64"),
    ],
)
def test_an_engine_that_tells_late_of_the_memory_is_waited_for(
    tmp_path: Path, status: int, state: str, event: str, says: str
) -> None:
    # No engine is late at will.
    engine = f"""#!/bin/sh
case "$*" in
    *OOMKilled*) echo {state} ;;
    *State.Error*) echo no error of the engine ;;
    inspect*) echo it used more memory than 64 ;;
    events*) echo {event} ;;
esac
"""
    told = tmp_path / "told"
    etcd = f"#!/bin/sh\ncase $* in *grant*) echo lease 1 ;; *) cat >{told} ;; esac\n"
    for name, text in {"docker": engine, "etcdctl": etcd}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    known = {"NAP_CONTAINER": "c", "NAP_EXIT_KEY": "/k", "NAP_STATUS": str(status), "NAP_OUTPUT": ""}
    script = ROOT / "unit_templates" / "report_exit.sh"
    subprocess.run(["sh", str(script)], env={"PATH": f"{tmp_path}:/bin:/usr/bin", **known}, check=True)
    assert base64.b64decode(json.loads(told.read_text())["error"]).decode() == f"{says}\n"


def test_who_uses_more_memory_than_allowed_is_told(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    assert pusher.ssh_command("resource:limit", pusher.app, "--memory=16m").returncode == 0
    eater = "web: sh -c 'x=a; while :; do x=$x$x; done'\n"
    commit(pusher, eater)
    done = pusher.push()
    assert done.status == 1
    assert done.trouble[0] == f"{pusher.app} v3 web.1: it used more memory than the {16 << 20} bytes that it may"
