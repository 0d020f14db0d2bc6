"""`nap doctor`: what is damaged behind nap's back is told, changed by nobody before `--fix`, and well after it."""

import base64
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fresh_nap
from tests.fleet_apps import an_app, answered, containers, loaded, pushed, wanted
from tests.fleet_cluster import Cluster
from tests.nap import COMMAND, HTTPD, Nap, Pusher, answer, eventually, runs

WORKS = "web: exec httpd -f -p 8080 -h /www\nworker: exec sleep 1000\n"


@dataclass(frozen=True)
class Patient:
    """A nap of these tests' own, and its app `hello`, which all of them damage and have repaired."""

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
        folders = ("logs", "repositories")
        files = [path for folder in folders for path in (root / folder).rglob("*")]
        known = {each["name"]: each["pid"] for each in nap.supervisor.call("getAllProcessInfo")}
        return {
            "keys": {} if not nap.process("etcd") else raw_keys(nap),
            "files": sorted((str(path), path.stat().st_mtime if path.suffix == ".conf" else 0) for path in files),
            "processes": known,
            "containers": set(nap.docker("ps", "--all", "--format", "{{.ID}} {{.Names}} {{.State}}").split("\n")),
            "images": set(nap.docker("images", "--all", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}").split("\n")),
        }

    def is_told_and_repaired(self, *problems: tuple[str, str]) -> "Told":
        """These problems (a check, and how what is told of it begins) are told, left as they are, and repaired."""
        before = self.all_there_is()
        told = self.doctor()
        assert told.begin_with(problems, "problem"), told.rows
        assert told.status == 1
        assert all(row["advice"] for row in told.rows if row["state"] != "ok"), told.rows
        assert self.all_there_is() == before
        repaired = self.doctor("--fix")
        assert repaired.of("problem", "failed") == []
        assert repaired.begin_with(problems, "repaired"), repaired.rows
        assert repaired.status == 0
        again = self.doctor()
        assert again.of("problem", "failed", "repaired") == []
        assert again.status == 0
        return repaired


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
    """All that is in etcd, JSON or not, but for what a check of an instance tells again and again while it starts."""
    listed = json.loads(etcdctl(nap, "get", "--prefix", "/", "--write-out=json"))["kvs"]
    read = [tuple(base64.b64decode(each.get(part, "")).decode() for part in ("key", "value")) for each in listed]
    return [(key, value) for key, value in read if not re.search(r"/checks/.*(starved|-answer)$", key)]


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


@pytest.mark.long
def test_on_a_cluster_units_that_somebody_destroyed(far: ClusterPatient) -> None:
    app, cluster = far.pusher.app, far.cluster
    cluster.fleetctl("destroy", f"{app}.v1.web.1.service")
    eventually(lambda: not far.pusher.announcements() and far.has_only("worker.1"), 60, "it has ended")
    repaired = far.is_told_and_repaired(("instances", f"{app}: of v1, web.1 not started"))
    assert "Started: web.1." in [row["advice"] for row in repaired.rows]
    assert answered(far.pusher) == ["one"]
    far.has_only_v1()


@pytest.mark.long
def test_on_a_cluster_units_that_somebody_stopped(far: ClusterPatient) -> None:
    app, cluster = far.pusher.app, far.cluster
    cluster.fleetctl("stop", "--no-block", f"{app}.v1.web.1.service", f"{app}.v1.worker.1-discovery.service")
    eventually(lambda: not far.pusher.announcements() and far.has_only("worker.1"), 60, "it has ended")
    eventually(lambda: not far.nap.keys(f"/nap/apps/{app}/up/"), 60, "the other is not said to be up")
    far.is_told_and_repaired(("instances", f"{app}: of v1, web.1, worker.1 not started"))
    assert answered(far.pusher) == ["one"]
    far.has_only_v1()


@pytest.mark.long
def test_on_a_cluster_what_is_of_no_release(far: ClusterPatient, tmp_path: Path) -> None:
    app, nap = far.pusher.app, far.nap
    there = next(iter(far.pusher.announcements().values()))
    for name in ("v1.web.9", "v99.web.1"):
        etcdctl(nap, "put", f"/services/{app}/{name}", stdin=json.dumps(there))
    far.put(f"{app}.v99.web.1", tmp_path)
    far.put(f"x{app}.v1.web.1", tmp_path)
    repaired = far.is_told_and_repaired(
        ("announcements", f"{app}: v1.web.9 is announced (/services/{app}/v1.web.9), but has no unit"),
        ("announcements", f"{app}: v99.web.1 is announced (/services/{app}/v99.web.1) without a lease"),
        ("units", f"{app}: v99.web.1 has a unit, but v1 is the current release"),
    )
    assert "It was stopped and its unit removed." in [row["advice"] for row in repaired.rows]
    far.has_only_v1()
    assert answered(far.pusher) == ["one"]
    assert f"x{app}.v1.web.1.service" in wanted(far.cluster, f"x{app}"), "it is not nap's"
    far.cluster.fleetctl("destroy", f"x{app}.v1.web.1.service")


@pytest.mark.long
def test_on_a_cluster_a_deploy_that_was_killed(far: ClusterPatient) -> None:
    app, nap, pusher = far.pusher.app, far.nap, far.pusher
    pusher.commit(Dockerfile=runs("exec sleep 1000"), Procfile="web: exec sleep 1000\nworker: exec sleep 1000\n")
    process = pusher.start_push()
    new = f"{app}.v2.web.1"
    eventually(lambda: new in str(containers(far.cluster, app)), 60, "the new instance runs")
    told = far.doctor("--fix")
    assert told.of("problem", "repaired", "failed") == [], "what is being deployed is left alone"
    os.kill(pusher.deploying(), signal.SIGKILL)
    process.communicate(timeout=20)
    eventually(lambda: not nap.keys(f"/nap/apps/{app}/lock"), 15, "its lock is gone")
    eventually(lambda: nap.keys(f"/nap/apps/{app}/up/v2.worker.1"), 30, "its worker is up")
    repaired = far.is_told_and_repaired(("releases", f"{app}: v2 never finished: its deploy was killed"))
    assert "Its leftovers were removed; it is recorded as failed." in [row["advice"] for row in repaired.rows]
    far.has_only_v1()
    assert answered(pusher) == ["one"]


@pytest.mark.long
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
    why = "has no unit and belongs to no running one-off command"
    told = far.doctor()
    assert sorted(told.of("problem")) == [("containers", f"{app}: container {each} {why}") for each in lost]
    assert told.well("containers").startswith("1 one-off command, each with its client")
    far.is_told_and_repaired(*told.of("problem"))
    assert set(nap.docker("ps", "--format", "{{.Names}}").split()) >= {name, *others}
    nap.docker("rm", "--force", *others)
    os.kill(attended.pid, signal.SIGKILL)  # its docker goes on
    eventually(lambda: far.doctor().of("problem"), 20, "nobody waits for it any more")
    far.is_told_and_repaired(("containers", f"{app}: container {name} {why}"))


@pytest.mark.long
def test_on_a_cluster_whose_etcd_is_away(far: ClusterPatient) -> None:
    etcd = far.cluster.etcd
    far.cluster.stop_etcd()
    told = far.doctor()
    assert told.status == 1
    assert ("programs", f"etcd does not answer at {etcd} (not nap's)") in told.of("problem")
    unseen = dict(told.of("failed"))
    for check in ("announcements", "releases", "instances", "logs"):
        assert unseen[check] == f"not checked: etcd at {etcd} does not answer"
    far.cluster.start_etcd()
    eventually(lambda: answered(far.pusher) == ["one"], 60, "it is announced again")
