"""A nap in memory for the doctor: a state directory with one app, and fakes of all that nap asks."""

import base64
import email.utils
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from docker.errors import APIError, DockerException, NotFound

from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import EtcdSettings, Settings, load
from nap_receiver.deploy.rollout import App, under_way
from nap_receiver.deploy.rollout import release as roll_out
from nap_receiver.engine.container import suffix_of
from nap_receiver.machine.lifecycle import Standing
from nap_receiver.schedulers.placement import Placement
from nap_receiver.store.etcdctl import Entry
from nap_receiver.store.ledger import Ledger
from nap_receiver.upkeep.doctor import examine
from nap_receiver.upkeep.finding import Finding
from nap_receiver.upkeep.inventory import Process
from tests.fakes import FakeEtcd, FakeScheduler
from tests.releases import RELEASE

DRAFT = msgspec.structs.replace(RELEASE, app="shop", formation={"web": 1, "worker": 1})


class FakeEngine:
    """The engine's API, as far as the doctor uses it. Each started instance has a container."""

    base_url = "http+docker://localhost"

    def __init__(self, scheduler: FakeScheduler, mark: str) -> None:
        self.scheduler, self.mark = scheduler, mark
        self.others: list[dict[str, Any]] = []
        """Containers without a unit."""
        self.kept: dict[str, dict[str, Any]] = {}
        """Images by their ids."""
        self.unused_volumes: list[str] = []
        self.is_away = False
        self.removing: APIError | None = None
        """What the engine answers when a container is to be removed."""

    @property
    def api(self) -> "FakeEngine":
        return self

    def container(self, unit: str) -> dict[str, Any]:
        """A container that runs, named after a unit."""
        app, _, instance = unit.partition(".")
        labels = {"nap.app": app, "nap.instance": instance.partition(".")[2]}
        name = f"{unit}.{self.mark}" if self.mark else unit
        image = {"Image": "", "ImageID": ""}
        return {"Id": f"id-{unit}", "Names": [f"/{name}"], "Labels": labels, "State": "running", **image}

    def add_image(self, app: str, digest: str) -> str:
        """Keep an image that was built for the app; its name by digest."""
        repository = f"127.0.0.1:15000/{app}"
        name = f"{repository}@sha256:{digest}"
        self.kept[digest] = {
            "Id": digest,
            "RepoTags": [f"{repository}:{digest}"],
            "RepoDigests": [name],
            "Labels": {"nap.app": app},
        }
        return name

    def containers(self, *, all: bool = False, filters: dict[str, str] | None = None) -> list[dict[str, Any]]:
        label, _, app = (filters or {}).get("label", "nap.app").partition("=")
        assert label == "nap.app"
        found = [self.container(unit) for unit in self.scheduler.started] + self.others
        return [each for each in found if app in {"", each["Labels"]["nap.app"]}]

    def images(self, name: str = "") -> list[dict[str, Any]]:
        return [each for each in self.kept.values() if not name or each["RepoTags"][0].startswith(f"{name}:")]

    def volumes(self, filters: dict[str, bool]) -> dict[str, Any]:
        return {"Volumes": [{"Name": name} for name in self.unused_volumes]}

    def stop(self, container: str, timeout: int) -> None:
        self._require(container)

    def remove_container(self, container: str, *, force: bool, v: bool) -> None:
        self._require(container)
        if self.removing:
            raise self.removing
        self.others = [each for each in self.others if each["Id"] != container]

    def remove_image(self, reference: str) -> None:
        for image in self.kept.values():
            image["RepoTags"] = [name for name in image["RepoTags"] if name != reference]
            image["RepoDigests"] = [name for name in image["RepoDigests"] if name != reference]
        self.kept = {key: image for key, image in self.kept.items() if image["RepoTags"] or image["RepoDigests"]}

    def remove_volume(self, name: str) -> None:
        self.unused_volumes.remove(name)

    def wait(self, container: str, timeout: float, condition: str) -> None:
        pass

    def info(self) -> dict[str, str]:
        return {"DockerRootDir": "/engine"}

    def _require(self, container: str) -> None:
        if container not in {each["Id"] for each in self.others}:
            raise NotFound("no such container")


class FakeRegistry:
    """A registry that only forgets."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def delete(self, image: str) -> None:
        self.deleted.append(image)


@dataclass
class Patient:
    """That nap. Nothing is wrong with it, and its app `shop` runs v1."""

    state: State
    settings: Settings
    etcd: FakeEtcd
    scheduler: FakeScheduler
    engine: FakeEngine
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    etcd_answers: bool = True
    standings: list[Standing] = field(default_factory=lambda: [Standing("etcd", "running", 7, "127.0.0.1:2379", True)])
    """How nap's programs stand; without any, nap is down."""
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "Python": "3.11.2",
            "Docker Engine": "20.10.24+dfsg1",
            "docker": "Docker version 20.10.24+dfsg1, build 297e128",
            "etcd": "3.4.23",
            "etcdctl": "etcdctl version: 3.4.23\nAPI version: 3.4\n",
            "git": "git version 2.39.5\n",
            "OpenSSH": "OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15",
            "Caddy": "v2.9.1 h1:OEYiZ7DbCzAWVb6TNEkjRcSCRGHVoZsJinoDR/n9oaY=",
        }
    )
    """What each program says of its version."""
    caddy_fault: str = ""
    ahead: dict[str, float] = field(default_factory=dict)
    """By the beginning of a URL, the seconds that the clock there is ahead."""
    rules_missing: list[tuple[str, ...]] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    free: int = 100 << 30
    """Bytes of each disk."""

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.etcd, self.settings.etcd, "shop")

    @property
    def places(self) -> EtcdSettings:
        return self.settings.etcd

    def deploy(self, digest: str) -> None:
        """Deploy an image of the app."""
        name = self.engine.add_image("shop", digest)
        draft = msgspec.structs.replace(DRAFT, commit=digest[:40], image=name)
        with Path("/dev/null").open("w") as nobody, Channel(nobody.fileno()) as channel:
            app = App("shop", self.state.repositories / "shop.git", "ann", self.state, self.settings, channel)
            with under_way(app, digest[:7], f"deploying {digest[:7]}") as deploy:
                roll_out(draft, Placement(), deploy)

    def begin_deploy(self) -> None:
        """Have somebody hold the app's deploy lock."""
        turn = {"who": "bob", "what": "web=2", "doing": "scaling", "since": time.time(), "host": "h", "log": "/nowhere"}
        self.etcd.put(f"{self.ledger.root}/lock", turn)

    def examine(self, *, fix: bool = False) -> list[Finding]:
        return list(examine(self.state, "ann", fix=fix))

    def wrong(self, *, fix: bool = False) -> list[Finding]:
        """What the doctor finds that is not well. Without `fix`, it changes nothing."""
        before = self._all_there_is()
        found = [each for each in self.examine(fix=fix) if each.state != "ok"]
        assert fix or self._all_there_is() == before
        return found

    def well(self, check: str) -> str:
        """What a check says that finds nothing wrong."""
        (found,) = [each for each in self.examine() if each.check == check]
        assert found.state == "ok", found
        return found.about

    def is_told_and_repaired(self, check: str, about: str) -> str:
        """This problem is told alone, is as the doctor found it until it is repaired, and is gone then.

        What was done, as the doctor says it.
        """
        (problem,) = self.wrong()
        assert (problem.check, problem.state, problem.about) == (check, "problem", about)
        assert "nap doctor --fix" in problem.advice
        (repaired,) = self.wrong(fix=True)
        assert (repaired.check, repaired.state, repaired.about) == (check, "repaired", about), repaired
        assert self.wrong() == []
        return repaired.advice

    def is_told_and_left(self, check: str, about: str) -> str:
        """This problem is told alone, and --fix leaves it; the advice."""
        (problem,) = self.wrong()
        assert (problem.check, problem.state, problem.about) == (check, "problem", about)
        assert "--fix" not in problem.advice
        before = self._all_there_is()
        assert self.wrong(fix=True) == [problem]
        assert self._all_there_is() == before
        return problem.advice

    def _all_there_is(self) -> object:
        files = {path: path.lstat().st_mode for path in self.state.root.rglob("*") if path.parent != self.state.run}
        return (
            [(each.key, each.revision) for each in self.etcd.below("").entries],
            list(self.scheduler.calls),
            [each["Id"] for each in self.engine.containers()],
            sorted(self.engine.kept),
            list(self.engine.unused_volumes),
            list(self.registry.deleted),
            list(self.standings),
            list(self.rules_missing),
            files,
        )


def make_patient(folder: Path, monkeypatch: pytest.MonkeyPatch, runs_on: str = "this machine") -> Patient:
    """That nap, put in the place of the real programs."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    state = State(folder)
    if runs_on == "a cluster":
        monkeypatch.setenv("NAP_SCHEDULER", "fleet")
    settings = load(state).settings
    etcd = FakeEtcd()
    scheduler = FakeScheduler(etcd, settings.etcd, runs_on=runs_on)  # type: ignore[arg-type]
    engine = FakeEngine(scheduler, suffix_of(state, settings))
    patient = Patient(state, settings, etcd, scheduler, engine)

    @contextmanager
    def connected(places: EtcdSettings) -> Iterator[FakeEtcd]:
        yield etcd

    @contextmanager
    def engine_at(url: str) -> Iterator[FakeEngine]:
        if patient.engine.is_away:
            raise DockerException("no answer")
        yield patient.engine

    @contextmanager
    def registry_of(state: State, settings: Settings) -> Iterator[FakeRegistry]:
        yield patient.registry

    def asked(url: str, context: object) -> tuple[str, bytes]:
        ahead = next((each for start, each in patient.ahead.items() if url.startswith(start)), 0.0)
        return email.utils.formatdate(time.time() + ahead), b""

    def start_again(state: State) -> None:
        patient.standings = [Standing("etcd", "running", 8, "127.0.0.1:2379", True)]

    def require_known(caddy: Path) -> None:
        if patient.caddy_fault:
            raise NapError(patient.caddy_fault, advice="Install nap again.")

    replaced: dict[str, object] = {
        "store.etcdctl._found": etcdctl_of(etcd),
        "upkeep.inventory.etcd_answers": lambda places: patient.etcd_answers,
        "upkeep.inventory.Inventory._require_own_etcd": lambda inventory: None,
        "upkeep.inventory.scheduler_of": lambda state, settings: scheduler,
        "upkeep.inventory._processes": lambda: iter(patient.processes.items()),
        "upkeep.inventory.engine_at": engine_at,
        "upkeep.app_checks.engine_at": engine_at,
        "upkeep.app_checks.PATIENCE": 0.3,
        "upkeep.leftover_checks.engine_at": engine_at,
        "upkeep.machine_checks.engine_at": engine_at,
        "upkeep.machine_checks.lifecycle.status": lambda state: patient.standings,
        "upkeep.machine_checks.lifecycle.start_again": start_again,
        "upkeep.machine_checks._said_by": lambda program, command, settings: patient.versions[program],
        "upkeep.machine_checks.require_known": require_known,
        "upkeep.machine_checks._asked": asked,
        "upkeep.machine_checks.is_root_there": lambda url: True,
        "upkeep.machine_checks.rules.bridges": lambda state, settings: ["docker0"],
        "upkeep.machine_checks.rules.missing": lambda state, settings, behind: patient.rules_missing,
        "upkeep.machine_checks.rules.guard": lambda state, settings: patient.rules_missing.clear(),
        "upkeep.doctor.connect": connected,
        "upkeep.doctor.PATIENCE": 0.3,
        "deploy.rollout.connect": connected,
        "deploy.rollout.scheduler_of": lambda state, settings: scheduler,
        "deploy.image_pruning.engine_at": engine_at,
        "deploy.image_pruning.registry_of": registry_of,
        "deploy.image_pruning._collect": lambda state, settings, at_once: None,
        "deploy.image_pruning.start_job": lambda state, kind, module, subjects, log: None,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(f"nap_receiver.{name}", value)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=patient.free))
    state.root.chmod(0o700)
    state.run.mkdir()
    etcd.put(settings.etcd.access_of("shop"), {"repository": "shop", "users": {"ann": "owner"}})
    patient.deploy("a" * 64)
    scheduler.calls.clear()
    return patient


def etcdctl_of(etcd: FakeEtcd) -> Callable[..., tuple[dict[str, dict[str, Any]], int]]:
    """What reads that etcd as `etcdctl` does, in the place of `store.etcdctl._found`."""

    def found(
        where: object, wanted: Sequence[str], seconds: float, *, keys_only: bool = False
    ) -> tuple[dict[str, dict[str, Any]], int]:
        below = tuple(each for each in wanted if each.endswith("/"))
        keys = [key for key in etcd.keys_below("") if key in wanted or key.startswith(below)]
        return {entry.key: _as_json(entry) for key in keys if (entry := etcd.get(key))}, etcd.revision()

    return found


def _as_json(entry: Entry) -> dict[str, Any]:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    value = encoded(json.dumps(entry.value))
    return {"key": encoded(entry.key), "value": value, "mod_revision": entry.revision, "lease": entry.lease}
