"""`nap doctor`: what is damaged behind nap's back is told, changed by nobody before `--fix`, and well after it."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest

from nap_receiver import doctor
from nap_receiver.checkup.finding import Finding, ok, problem
from nap_receiver.checkup.inventory import Inventory
from nap_receiver.doctor import CHECKS
from nap_receiver.state import State
from tests.cluster import Cluster
from tests.conftest import fresh_nap
from tests.fleet_apps import an_app, answered, containers, loaded, pushed, wanted
from tests.machine import COMMAND, HTTPD, Nap, Pusher, answer, eventually, runs

pytestmark = pytest.mark.machine

WORKS = "web: exec httpd -f -p 8080 -h /www\nworker: exec sleep 1000\n"


@dataclass(frozen=True)
class Patient:
    """A nap of these tests' own, and its app `hello`, which all of them damage and have mended."""

    nap: Nap
    pusher: Pusher
    others: dict[str, str]
    """More variables for the doctor."""

    def doctor(self, *words: str) -> "Told":
        """What `nap doctor` tells."""
        nap = Nap(self.nap.folder, self.nap.variables | self.others)
        done = nap.run("doctor", "--json", *words, ok=False)
        assert done.returncode in {0, 1}, done.stderr
        assert done.stderr == ""
        return Told(done.returncode, json.loads(done.stdout))

    def under(self, **variables: str) -> "Patient":
        """The same, looked at by a doctor with these variables."""
        return Patient(self.nap, self.pusher, variables)

    def all_there_is(self) -> dict[str, Any]:
        """All that a doctor could change."""
        nap, root = self.nap, self.nap.state.root
        folders = ("units", "logs", "programs/apps", "repositories")
        files = [path for folder in folders for path in (root / folder).rglob("*")]
        known = {each["name"]: each["pid"] for each in nap.scheduler.call("getAllProcessInfo")}
        known |= {each["name"]: each["pid"] for each in nap.supervisor.call("getAllProcessInfo")}
        return {
            "keys": {} if not nap.process("etcd") else raw_keys(nap),
            "files": sorted((str(path), path.stat().st_mtime if path.suffix == ".conf" else 0) for path in files),
            "processes": known,
            "containers": set(nap.docker("ps", "--all", "--format", "{{.ID}} {{.Names}} {{.State}}").split("\n")),
            "images": set(nap.docker("images", "--all", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}").split("\n")),
        }

    def is_told_and_mended(self, *problems: tuple[str, str]) -> "Told":
        """These problems (a check, and how what is told of it begins) are told, left as they are, and mended."""
        before = self.all_there_is()
        told = self.doctor()
        assert told.begin_with(problems, "problem"), told.rows
        assert told.status == 1
        assert all(row["advice"] for row in told.rows if row["state"] != "ok"), told.rows
        assert self.all_there_is() == before
        mended = self.doctor("--fix")
        assert mended.of("problem", "failed") == []
        assert mended.begin_with(problems, "mended"), mended.rows
        assert mended.status == 0
        again = self.doctor()
        assert again.of("problem", "failed", "mended") == []
        assert again.status == 0
        return mended


@dataclass(frozen=True)
class Told:
    """What a doctor tells, and its exit status."""

    status: int
    rows: list[dict[str, str]]

    def of(self, *states: str) -> list[tuple[str, str]]:
        """The check and the sentence of each finding in one of these states."""
        return [(row["check"], row["about"]) for row in self.rows if row["state"] in states]

    def begin_with(self, problems: Sequence[tuple[str, str]], state: str) -> bool:
        """Whether the findings in this state are these, of each of which the beginning is given."""
        found = self.of(state)
        return len(found) == len(problems) and all(
            check == named and about.startswith(begin)
            for (check, about), (named, begin) in zip(found, problems, strict=True)
        )

    def well(self, check: str) -> str:
        """What is well, by a check."""
        return next(row["about"] for row in self.rows if row["state"] == "ok" and row["check"] == check)


@pytest.fixture(scope="module")
def sick(nap: Nap, short_folder: Path) -> Iterator[Patient]:
    """That nap; it shares the engine with the other tests' nap, which must not be touched."""
    own = fresh_nap(short_folder / "sick", NAP_ENGINE_URL=nap.engine_url, NAP_DEPLOY_DRAIN="0", NAP_DEPLOY_GRACE="1")
    own.run("up")
    folder = short_folder / "sick-pusher"
    folder.mkdir()
    pusher = Pusher(own, "hello", folder)
    pusher.commit(Dockerfile=HTTPD, Procfile=WORKS, index_html="one")
    pushed(pusher)
    yield Patient(own, pusher, {})
    own.run("down")


@pytest.fixture
def patient(sick: Patient) -> Iterator[Patient]:
    """Its app answers after each test."""
    yield sick
    assert answer(url(sick)) in {"one", "two"}


def url(patient: Patient) -> str:
    """Where the app answers."""
    (announced,) = patient.pusher.announcements().values()
    assert isinstance(announced, dict)
    return f"http://{announced['host']}:{announced['port']}"


def etcdctl(nap: Nap, *words: str, stdin: str = "") -> str:
    environment = os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": nap.settings.etcd.url}
    return subprocess.run(
        ["etcdctl", *words], env=environment, input=stdin, text=True, capture_output=True, check=True, timeout=20
    ).stdout


def raw_keys(nap: Nap) -> list[tuple[str, str]]:
    """All that is in etcd, JSON or not, but for what no doctor could have written."""
    lines = etcdctl(nap, "get", "--prefix", "/").splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def alive(nap: Nap, prefix: str) -> list[str]:
    """The units of such a name that the scheduler has processes of."""
    known = nap.scheduler.call("getAllProcessInfo")
    return [each["name"] for each in known if each["name"].startswith(prefix) and each["pid"]]


def a_container(nap: Nap, name: str, label: str) -> str:
    """Run one by hand that looks like one of `hello`'s; its id."""
    labels = ["--label=nap.app=hello", f"--label=nap.instance={label}"]
    return nap.docker("run", "--detach", "--init", f"--name={name}", *labels, "nap/busybox", "sleep", "1000")


def test_all_is_well(patient: Patient) -> None:
    before = patient.all_there_is()
    told = patient.doctor()
    assert [row["check"] for row in told.rows] == [check.__name__ for check in CHECKS]
    assert {row["state"] for row in told.rows} == {"ok"}
    assert told.status == 0
    assert told.well("announcements") == "2, each with its container"
    assert told.well("programs").startswith("engine, etcd, registry, gate, scheduler")
    assert patient.doctor("--fix").rows == told.rows
    assert patient.all_there_is() == before
    lines = patient.nap.run("doctor").stdout.splitlines()
    assert len(lines) == len(CHECKS)
    assert lines[3] == "ok      announcements: 2, each with its container"


def test_announcements_without_a_container(patient: Patient) -> None:
    nap = patient.nap
    there = next(iter(patient.pusher.announcements().values()))
    for key in ("/services/hello/v1.web.9", "/nap/apps/hello/up/v1.worker.9", "/services/ghost/v2.web.1"):
        etcdctl(nap, "put", key, stdin=json.dumps(there))
    etcdctl(nap, "put", "/services/theirs/of-another-program", stdin="no JSON")
    etcdctl(nap, "put", "/services/hello/empty", "")
    etcdctl(nap, "put", "/services/hello/half", '{"host": "10.0.')
    told = [
        "hello: v1.worker.9 is announced (/nap/apps/hello/up/v1.worker.9)",
        "ghost: v2.web.1 is announced (/services/ghost/v2.web.1)",
        "hello: empty is announced (/services/hello/empty)",
        "hello: half is announced (/services/hello/half)",
        "hello: v1.web.9 is announced (/services/hello/v1.web.9)",
    ]
    patient.is_told_and_mended(*(("announcements", f"{each} and has no container that runs") for each in told))
    assert len(patient.pusher.announcements()) == 1
    assert "no JSON" in etcdctl(nap, "get", "/services/theirs/of-another-program")
    assert not (nap.state.deploy_logs / "ghost").exists()
    assert nap.keys("/nap/apps/ghost/") == {}


def test_an_announcement_without_a_lease(patient: Patient) -> None:
    nap, key = patient.nap, "/services/hello/v1.web.1"
    as_it_was = etcdctl(nap, "get", "--print-value-only", key).strip()
    etcdctl(nap, "put", key, stdin=as_it_was)
    told = f"hello: v1.web.1 is announced ({key}) without a lease, and would be when it has ended"
    mended = patient.is_told_and_mended(("announcements", told))
    assert "It is announced anew." in [row["advice"] for row in mended.rows]
    assert json.loads(etcdctl(nap, "get", "--write-out=json", key))["kvs"][0]["lease"]


def test_an_instance_that_is_not_announced(patient: Patient) -> None:
    patient.nap.scheduler.call("stopProcess", "hello.v1.web.1-discovery", True)
    patient.is_told_and_mended(("instances", "hello: of v1, web.1 not kept running and announced"))
    assert answer(url(patient)) == "one"


def test_a_release_that_does_not_run_at_all(patient: Patient) -> None:
    nap = patient.nap
    for path in nap.state.units.glob("hello.*"):
        path.unlink()
    nap.scheduler.call("reloadConfig")
    for each in nap.scheduler.call("getAllProcessInfo"):
        nap.scheduler.remove(each["name"])
    eventually(lambda: not nap.containers("hello"), 20, "nothing of it runs")
    for log in (nap.state.program_logs / "apps").iterdir():
        log.unlink()
    mended = patient.is_told_and_mended(("instances", "hello: v1 is the current release, and nothing of it runs"))
    assert "Started: web.1, worker.1." in [row["advice"] for row in mended.rows]
    assert answer(url(patient)) == "one"


def test_units_of_no_release(patient: Patient) -> None:
    nap = patient.nap
    for name in ("hello.v99.web.1", "hello.v98.worker.2-discovery", "ghost.v1.web.1"):
        (nap.state.units / f"{name}.conf").write_text(f"[program:{name}]\ncommand=sleep 1000\n")
    (nap.state.units / "theirs.conf").write_text("[program:theirs]\ncommand=sleep 1000\n")
    [[added, *_]] = nap.scheduler.call("reloadConfig")
    for name in set(added) - {"ghost.v1.web.1"}:
        nap.scheduler.call("addProcessGroup", name)
    patient.is_told_and_mended(
        ("units", "ghost: v1.web.1 has a unit, but etcd knows of no such app"),
        ("units", "hello: v98.worker.2 has a unit, but v1 is the current release"),
        ("units", "hello: v99.web.1 has a unit, but v1 is the current release"),
    )
    assert sorted(path.name.partition("-")[0] for path in nap.state.units.iterdir()) == [
        "hello.v1.web.1",
        "hello.v1.web.1.conf",
        "hello.v1.worker.1",
        "hello.v1.worker.1.conf",
        "theirs.conf",
    ]
    (nap.state.units / "theirs.conf").unlink()


def test_an_app_that_etcd_has_lost_is_left_alone(patient: Patient) -> None:
    nap, places = patient.nap, patient.nap.settings.etcd
    kept = {key: value for key, value in nap.keys("/nap/").items() if "/up/" not in key}
    address, bare = url(patient), patient.pusher.bare
    for key in kept:
        etcdctl(nap, "del", key)
    told = patient.doctor("--fix")
    assert {check for check, _ in told.of("problem")} == {"units"}
    assert told.of("failed", "mended") == []
    assert told.status == 1
    etcdctl(nap, "put", places.access_of("other"), stdin='{"repository": "other", "users": {}}')
    moved = bare.rename(bare.with_name("elsewhere"))  # as with a repository that is not nap's own
    assert {check for check, _ in patient.doctor("--fix").of("problem")} == {"units"}
    assert answer(address) == "one"
    moved.rename(bare)
    etcdctl(nap, "del", places.access_of("other"))
    for key, value in kept.items():
        etcdctl(nap, "put", key, stdin=json.dumps(value))


def test_what_serves_stays_while_the_current_release_does_not(patient: Patient) -> None:
    nap = patient.nap
    root = "/nap/apps/hello"
    (release,) = nap.keys(f"{root}/releases/").values()
    assert isinstance(release, dict)
    broken = release | {"number": 7, "image": f"{nap.settings.registry.address}/hello@sha256:{'0' * 64}"}
    etcdctl(nap, "put", f"{root}/releases/00000007", stdin=json.dumps(broken))
    etcdctl(nap, "put", f"{root}/outcomes/00000007", stdin='{"state": "live"}')
    etcdctl(nap, "put", f"{root}/current", stdin="7")
    patient.pusher.git(f"--git-dir={patient.pusher.bare}", "config", "nap.timeout", "3")
    told = patient.doctor("--fix")
    assert [check for check, _ in told.of("failed")] == ["instances"]
    assert [about for _, about in told.of("problem")] == [
        "hello: v1.web.1 has a unit, but v7 is the current release",
        "hello: v1.worker.1 has a unit, but v7 is the current release",
    ]
    assert answer(url(patient)) == "one"
    etcdctl(nap, "put", f"{root}/current", stdin="1")
    etcdctl(nap, "del", f"{root}/releases/00000007")
    etcdctl(nap, "del", f"{root}/outcomes/00000007")
    assert {check for check, _ in patient.doctor("--fix").of("mended")} == {"units"}
    eventually(lambda: not alive(nap, "hello.v7."), 10, "what was tried has ended")
    etcdctl(nap, "del", "--prefix", f"{root}/exits/")
    patient.pusher.git(f"--git-dir={patient.pusher.bare}", "config", "--unset", "nap.timeout")


def test_containers_of_no_unit(patient: Patient) -> None:
    nap = patient.nap
    mine, others = nap.state.name, "0" * 8
    a_container(nap, f"hello.v99.web.1.{mine}", "web.1")
    a_container(nap, f"hello.v1.run.5.{mine}", "run.5")
    theirs = [a_container(nap, name, "web.1") for name in (f"hello.v99.web.1.{others}", "hello.v99.web.1")]
    labels = ["--label=nap.app=hello", "--label=nap.instance=run.6"]
    attended = subprocess.Popen(
        ["docker", "run", "--rm", "--init", f"--name=hello.v1.run.6.{mine}", *labels, "nap/busybox", "sleep", "1000"],
        env=os.environ | {"DOCKER_HOST": nap.engine_url},
    )
    eventually(lambda: any(".run.6." in name for name in nap.containers("hello")), 20, "somebody's task runs")
    told = patient.doctor()
    assert sorted(told.of("problem")) == [
        ("containers", f"hello: the container hello.v1.run.5.{mine} has no unit, and nobody waits for its end"),
        ("containers", f"hello: the container hello.v99.web.1.{mine} has no unit, and nobody waits for its end"),
    ]
    patient.is_told_and_mended(*told.of("problem"))
    assert f"hello.v1.run.6.{mine}" in nap.containers("hello")
    assert nap.docker("inspect", "--format", "{{.State.Running}}", *theirs) == "true\ntrue"
    nap.docker("rm", "--force", *theirs, f"hello.v1.run.6.{mine}")
    attended.wait()


def test_a_deploy_that_was_killed(patient: Patient) -> None:
    nap, pusher = patient.nap, patient.pusher
    pusher.commit(Dockerfile=runs("exec sleep 1000"), Procfile="web: exec sleep 1000\n")
    process = pusher.start_push()
    eventually(lambda: len(nap.containers("hello")) == 3, 30, "the new instance runs")
    (new,) = [name.split(".")[1] for name in nap.containers("hello") if ".v1." not in name]
    told = patient.doctor("--fix")
    assert told.of("problem", "mended", "failed") == [], "what is being deployed is left alone"
    assert told.well("units").endswith("; not looked at while somebody changes them: hello")
    os.kill(pusher.deploying(), signal.SIGKILL)
    process.communicate(timeout=20)
    eventually(lambda: not nap.keys("/nap/apps/hello/lock"), 15, "its lock is gone")
    assert nap.leftovers("hello", int(new[1:]))
    patient.is_told_and_mended(("releases", f"hello: {new} never finished: its deploy was killed"))
    assert nap.leftovers("hello", int(new[1:])) == []


def test_images_of_old_releases(patient: Patient) -> None:
    nap, pusher = patient.nap, patient.pusher
    registry = nap.settings.registry.address
    pusher.commit(Dockerfile=HTTPD, Procfile=WORKS, index_html="two")
    pushed(pusher)
    eventually(lambda: not alive(nap, "hello.v1."), 15, "the old release is gone")
    for name in ("hello.v1.web.1", "hello.v1.worker.1"):
        nap.scheduler.remove(name)  # as the next deploy has it forgotten
        for log in (nap.state.program_logs / "apps").glob(f"{name}*"):
            log.unlink()
    nap.docker("tag", "nap/busybox", f"{registry}/base:1")
    nap.docker("push", "--quiet", f"{registry}/base:1")
    frugal = patient.under(NAP_DEPLOY_KEEP_RELEASES="1")
    kept = "hello: images of releases that no longer need be kept (deploy.keep_releases is"
    frugal.is_told_and_mended(("images", f"{kept} 1): "))
    nap.docker("tag", "nap/busybox", f"{registry}/hello:by-hand")
    patient.is_told_and_mended(("images", f"{kept} 10): 1 on the engine"))
    listed = nap.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert len([name for name in listed if name.startswith(f"{registry}/hello:")]) == 1
    assert len(tags(nap, "hello")) == 1
    assert tags(nap, "base") == ["1"]


def tags(nap: Nap, repository: str) -> list[str]:
    """What the registry has of a repository."""
    url = f"http://{nap.settings.registry.address}/v2/{repository}/tags/list"
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.loads(reply.read())["tags"] or []


def test_images_and_logs_of_an_app_that_is_gone(patient: Patient, tmp_path: Path) -> None:
    nap, state = patient.nap, patient.nap.state
    other = Pusher(nap, "gone", tmp_path)
    other.commit(Dockerfile=HTTPD, index_html="gone")
    pushed(other)
    shutil.rmtree(other.bare)  # as a destroy that was killed may leave it
    for path in state.units.glob("gone.*"):
        path.unlink()
    nap.scheduler.call("reloadConfig")
    for name in ("gone.v1.web.1-discovery", "gone.v1.web.1"):
        nap.scheduler.remove(name)
    etcdctl(nap, "del", "--prefix", "/nap/apps/gone/")
    etcdctl(nap, "del", nap.settings.etcd.access_of("gone"))
    eventually(lambda: not nap.containers("gone"), 15, "nothing of it runs")
    nap.docker("tag", "nap/busybox", f"{nap.settings.registry.address}/base:1")
    nap.docker("push", "--quiet", f"{nap.settings.registry.address}/base:1")
    for number in range(100, 220):
        (state.deploy_logs / "hello" / f"20000101T000{number}-1a2b3c4.log").touch()
    (state.program_logs / "apps" / "hello.v77.web.1.log").touch()
    told = patient.doctor()
    gone = "gone: images of an app that is gone: 1 on the engine and 1 in the registry"
    assert ("images", gone) in told.of("problem"), told.rows
    assert [check for check, _ in told.of("problem")] == ["images", "logs", "logs", "logs", "logs"]
    patient.is_told_and_mended(*told.of("problem"))
    named = f"{nap.settings.registry.address}/gone"
    eventually(lambda: named not in nap.docker("images", "--format", "{{.Repository}}"), 10, "no image of it is left")
    assert tags(nap, "gone") == []
    assert tags(nap, "base") == ["1"]
    assert not (state.deploy_logs / "gone").exists()
    assert len(list((state.deploy_logs / "hello").iterdir())) <= 101


def test_what_a_stopped_app_has_printed_is_no_leftover(patient: Patient) -> None:
    nap = patient.nap
    nap.run("ps:stop", "hello")
    log = nap.state.program_logs / "apps" / "hello.v1.web.1.log"
    eventually(lambda: not nap.containers("hello"), 15, "it is stopped")
    log.touch()
    assert not patient.doctor().of("problem")
    nap.run("ps:start", "hello")
    assert [check for check, _ in patient.doctor().of("problem")] == ["logs"]
    log.unlink()


class Late(http.server.BaseHTTPRequestHandler):
    """A registry whose clock is late."""

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", formatdate(time() - 60, usegmt=True))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_what_only_the_operator_can_mend(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\necho git version 2.20.1\n")
    (tmp_path / "git").chmod(0o755)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = patient.under(
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            NAP_DEPLOY_FREE_SPACE=str(1 << 60),
            NAP_REGISTRY_ADDRESS=f"127.0.0.1:{server.server_port}",
        ).doctor("--fix")
        server.shutdown()
    problems = [(check, about) for check, about in told.of("problem") if check in {"versions", "clocks", "disk"}]
    old, late, full = problems
    assert old == ("versions", "git 2.20.1 is too old: nap needs 2.32 or newer")
    clock = rf"the clock of registry \(http://127.0.0.1:{server.server_port}/v2/\)"
    where = rf"{clock} is (58|59|60) s behind this machine's"
    assert re.fullmatch(where, late[1])
    assert told.well("clocks") == "within 5 s of this machine's: etcd"
    assert "of free disk are needed where the engine keeps images" in full[1]
    assert full[1].endswith("GB are missing")
    assert told.status == 1


def test_programs_that_are_away(patient: Patient) -> None:
    nap = patient.nap
    etcd, registry = nap.settings.etcd.address, nap.settings.registry.address
    nap.supervisor.call("stopProcess", "etcd", True)
    nap.supervisor.call("stopProcess", "registry", True)
    told = patient.doctor()
    assert told.of("problem") == [
        ("programs", f"etcd does not answer at {etcd} (stopped)"),
        ("programs", f"registry does not answer at {registry} (stopped)"),
    ]
    assert ("announcements", "not looked at: etcd does not run") in told.of("failed")
    assert told.well("disk")
    assert nap.process("etcd") == 0
    mended = patient.doctor("--fix")
    assert mended.of("mended")[:2] == told.of("problem")
    assert mended.status == 0
    assert patient.doctor().status == 0


def test_a_nap_that_is_down(patient: Patient) -> None:
    patient.nap.run("down")
    told = patient.doctor()
    assert told.of("problem") == [("programs", "nap is down")]
    assert ("announcements", "not looked at: nap is down") in told.of("failed")
    assert told.status == 1
    assert patient.nap.run("status", ok=False).returncode == 1
    assert patient.doctor("--fix").status == 0
    assert patient.doctor().status == 0


def test_more_than_one_answer_of_etcd_s_library_holds(patient: Patient) -> None:
    nap, root = patient.nap, patient.nap.settings.etcd.root_of("hello")
    for number in range(90, 95):
        etcdctl(nap, "put", f"{root}/configs/{number:08}", stdin=json.dumps({"LONG": "x" * 1_000_000}))
    told = patient.doctor()
    etcdctl(nap, "del", f"{root}/configs/00000090", f"{root}/configs/00000095")
    assert told.of("problem", "failed") == []


def test_only_what_is_seen_twice_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def passing(there: Inventory) -> Iterator[Finding]:
        looks.append(there)
        if len(looks) == 1:
            yield problem("a moment", "something that is over at once", "wait")
        yield ok("all")

    def broken(there: Inventory) -> Iterator[Finding]:
        yield ok("half")
        raise KeyError("nap")

    monkeypatch.setattr(doctor, "CHECKS", (passing, broken, passing))
    told = [(each.check, each.state, each.about) for each in doctor.examine(State(tmp_path), "me", fix=False)]
    assert told == [
        ("passing", "ok", "all"),
        ("broken", "ok", "half"),
        ("broken", "failed", "not looked at, for nap itself failed: KeyError: 'nap'"),
        ("passing", "ok", "all"),
    ]
    assert looks[0] is not looks[1]


def test_nothing_is_mended_of_an_app_that_somebody_else_has(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(there: Inventory) -> Iterator[Finding]:
        yield problem("it", "hello: it is wrong", "mend it", app="hello", mend=lambda deploy: "mended")

    monkeypatch.setattr(doctor, "CHECKS", (wrong,))
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    state, key = patient.nap.state, "/nap/apps/hello/lock"
    turn = {"who": "alice", "what": "1a2b3c4", "doing": "deploying 1a2b3c4", "since": 0.0, "host": "x", "log": ""}
    etcdctl(patient.nap, "put", key, stdin=json.dumps(turn))
    (refused,) = doctor.examine(state, "me", fix=True)
    assert refused.state == "failed"
    assert refused.advice.startswith("Not mended: nothing is done: alice has been deploying 1a2b3c4 since")
    etcdctl(patient.nap, "del", key)
    (done,) = doctor.examine(state, "me", fix=True)
    assert (done.state, done.advice) == ("mended", "mended")


def test_on_a_cluster_what_fleet_and_etcd_tell(patient: Patient, tmp_path: Path) -> None:
    fleetctl = tmp_path / "fleetctl"
    ((_, number),) = patient.nap.keys("/nap/apps/hello/current").items()
    current = [f"hello.v{number}.{label}{kind}" for label in ("web.1", "worker.1") for kind in ("", "-discovery")]
    units = [*current, "hello.v99.web.1", "stranger.v1.web.1", "lost.v1.web.1"]
    rows = "".join(rf"{name}.service\tlaunched\n" for name in units)
    ours = f"{patient.nap.settings.etcd.url} /nap/apps/lost/exits/"
    fleetctl.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *list-unit-files*) printf "{rows}";; *"cat lost"*) echo "{ours}";; *--version*) echo 1.0.0;;'
        "*list-machines*) printf 'aa\\t127.0.0.1\\t-\\n';; esac\n"
    )
    fleetctl.chmod(0o755)
    told = patient.under(NAP_SCHEDULER="fleet", NAP_FLEET_FLEETCTL=str(fleetctl)).doctor()
    assert [about for check, about in told.of("problem") if check != "logs"] == [
        f"hello: v99.web.1 has a unit, but v{number} is the current release",
        "lost: v1.web.1 has a unit, but etcd knows of no such app",
    ]
    where = "each with whoever began it; the others are on the cluster's machines"
    assert told.well("containers") == f"0 one-off commands, {where}"


@dataclass(frozen=True)
class ClusterPatient(Patient):
    """A nap whose scheduler is a cluster's fleet, and an app there."""

    cluster: Cluster

    def all_there_is(self) -> dict[str, Any]:
        nap, app = self.nap, self.pusher.app
        return {
            "keys": raw_keys(nap),
            "units": self.cluster.fleetctl("list-unit-files", "--full", "--fields=unit,hash,dstate").stdout,
            "containers": containers(self.cluster, app),
            "one-offs": nap.docker("ps", "--all", "--format", "{{.ID}} {{.Names}} {{.State}}"),
        }

    def has_only(self, *labels: str) -> bool:
        """Whether of the app's first release these instances have containers, and no others."""
        app = self.pusher.app
        found = [name for names in containers(self.cluster, app).values() for name in names]
        return sorted(found) == [f"{app}.v1.{label}" for label in labels]

    def put(self, name: str, folder: Path) -> None:
        """Have fleet run a unit of this name by hand, to which its namesake in nap does not belong."""
        unit = folder / f"{name}.service"
        unit.write_text("[Service]\nExecStart=/bin/sleep 1000\nExecStopPost=/bin/false\n")
        self.cluster.fleetctl("start", "--no-block", str(unit))
        eventually(lambda: unit.name in str(loaded(self.cluster, name.partition(".")[0])), 20, f"{name} runs")

    def has_only_v1(self) -> None:
        """Of the app there is its first release in fleet and on the machines, and nothing else."""
        app = self.pusher.app
        instances = [f"{app}.v1.{label}" for label in ("web.1", "worker.1")]
        units = sorted(f"{name}{kind}.service" for name in instances for kind in ("", "-discovery"))
        eventually(lambda: sorted(wanted(self.cluster, app)) == units, 60, "fleet has only v1")
        eventually(lambda: self.has_only("web.1", "worker.1"), 60, "the machines run only v1")


@pytest.fixture
def far(
    either: Cluster, either_receiver: Nap, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[ClusterPatient]:
    """That app, up; and nothing is wrong there."""
    for pusher in an_app(either_receiver, either, request, tmp_path):
        pusher.commit(Dockerfile=HTTPD, Procfile=WORKS, index_html="one")
        pushed(pusher)
        patient = ClusterPatient(either_receiver, pusher, {}, either)
        assert patient.doctor("--fix").of("problem", "failed") == []  # other tests may have left something
        yield patient


def test_on_a_cluster_units_that_somebody_destroyed(far: ClusterPatient) -> None:
    app, cluster = far.pusher.app, far.cluster
    cluster.fleetctl("destroy", f"{app}.v1.web.1.service")
    eventually(lambda: not far.pusher.announcements() and far.has_only("worker.1"), 60, "it has ended")
    mended = far.is_told_and_mended(("instances", f"{app}: of v1, web.1 not kept running and announced"))
    assert "Started: web.1." in [row["advice"] for row in mended.rows]
    assert answered(far.pusher) == ["one"]
    far.has_only_v1()


def test_on_a_cluster_units_that_somebody_stopped(far: ClusterPatient) -> None:
    app, cluster = far.pusher.app, far.cluster
    cluster.fleetctl("stop", "--no-block", f"{app}.v1.web.1.service", f"{app}.v1.worker.1-discovery.service")
    eventually(lambda: not far.pusher.announcements() and far.has_only("worker.1"), 60, "it has ended")
    eventually(lambda: not far.nap.keys(f"/nap/apps/{app}/up/"), 60, "the other is not said to be up")
    far.is_told_and_mended(("instances", f"{app}: of v1, web.1, worker.1 not kept running and announced"))
    assert answered(far.pusher) == ["one"]
    far.has_only_v1()


def test_on_a_cluster_what_is_of_no_release(far: ClusterPatient, tmp_path: Path) -> None:
    app, nap = far.pusher.app, far.nap
    there = next(iter(far.pusher.announcements().values()))
    for name in ("v1.web.9", "v99.web.1"):
        etcdctl(nap, "put", f"/services/{app}/{name}", stdin=json.dumps(there))
    far.put(f"{app}.v99.web.1", tmp_path)
    far.put(f"x{app}.v1.web.1", tmp_path)
    mended = far.is_told_and_mended(
        ("announcements", f"{app}: v1.web.9 is announced (/services/{app}/v1.web.9) and has no unit"),
        ("announcements", f"{app}: v99.web.1 is announced (/services/{app}/v99.web.1) without a lease"),
        ("units", f"{app}: v99.web.1 has a unit, but v1 is the current release"),
    )
    assert "It is stopped, and its unit taken away." in [row["advice"] for row in mended.rows]
    far.has_only_v1()
    assert answered(far.pusher) == ["one"]
    assert f"x{app}.v1.web.1.service" in wanted(far.cluster, f"x{app}"), "it is not nap's"
    far.cluster.fleetctl("destroy", f"x{app}.v1.web.1.service")


def test_on_a_cluster_a_deploy_that_was_killed(far: ClusterPatient) -> None:
    app, nap, pusher = far.pusher.app, far.nap, far.pusher
    pusher.commit(Dockerfile=runs("exec sleep 1000"), Procfile="web: exec sleep 1000\nworker: exec sleep 1000\n")
    process = pusher.start_push()
    new = f"{app}.v2.web.1"
    eventually(lambda: new in str(containers(far.cluster, app)), 60, "the new instance runs")
    told = far.doctor("--fix")
    assert told.of("problem", "mended", "failed") == [], "what is being deployed is left alone"
    os.kill(pusher.deploying(), signal.SIGKILL)
    process.communicate(timeout=20)
    eventually(lambda: not nap.keys(f"/nap/apps/{app}/lock"), 15, "its lock is gone")
    eventually(lambda: nap.keys(f"/nap/apps/{app}/up/v2.worker.1"), 30, "its worker is up")
    mended = far.is_told_and_mended(("releases", f"{app}: v2 never finished: its deploy was killed"))
    assert "It is taken away, and written down as failed." in [row["advice"] for row in mended.rows]
    far.has_only_v1()
    assert answered(pusher) == ["one"]


def test_on_a_cluster_one_off_commands_that_nobody_waits_for(far: ClusterPatient) -> None:
    app, nap = far.pusher.app, far.nap
    (release,) = nap.keys(f"/nap/apps/{app}/releases/").values()
    assert isinstance(release, dict)

    def begun(label: str, commit: str, *more: str) -> str:
        name = f"{app}.v1.{label}"
        facts = {"app": app, "release": 1, "commit": commit, "instance": label}
        labels = [f"--label=nap.{key}={value}" for key, value in facts.items()]
        nap.docker("run", "--detach", "--init", f"--name={name}", *labels, *more, release["image"], "sleep", "1000")
        return name

    lost = [begun("release.1", release["commit"]), begun("run.5", release["commit"])]
    others = [begun("run.6", "0" * 40), begun("web.1", release["commit"], f"--label=nap.unit={app}.v1.web.1.service")]
    attended = subprocess.Popen(
        [str(COMMAND), "run", app, "sleep", "1000"], env=nap.environment, stdin=subprocess.PIPE, start_new_session=True
    )
    name = f"{app}.v1.run.{attended.pid}"
    eventually(lambda: name in nap.docker("ps", "--format", "{{.Names}}").split(), 30, "somebody's command runs")
    why = "has no unit, and nobody waits for its end"
    told = far.doctor()
    assert sorted(told.of("problem")) == [("containers", f"{app}: the container {each} {why}") for each in lost]
    assert told.well("containers").startswith("1 one-off command, each with whoever began it")
    far.is_told_and_mended(*told.of("problem"))
    assert set(nap.docker("ps", "--format", "{{.Names}}").split()) >= {name, *others}
    nap.docker("rm", "--force", *others)
    os.kill(attended.pid, signal.SIGKILL)  # its docker goes on
    eventually(lambda: far.doctor().of("problem"), 20, "nobody waits for it any more")
    far.is_told_and_mended(("containers", f"{app}: the container {name} {why}"))


def test_on_a_cluster_whose_etcd_is_away(far: ClusterPatient) -> None:
    etcd = far.cluster.etcd
    far.cluster.stop_etcd()
    told = far.doctor()
    assert told.status == 1
    assert ("programs", f"etcd does not answer at {etcd} (not nap's)") in told.of("problem")
    unseen = dict(told.of("failed"))
    for check in ("announcements", "releases", "instances", "logs"):
        assert unseen[check] == f"not looked at: etcd at {etcd} does not answer"
    far.cluster.start_etcd()
    eventually(lambda: answered(far.pusher) == ["one"], 60, "it is announced again")
