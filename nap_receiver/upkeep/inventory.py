"""Lists of what exists on this machine and in etcd. Each list is made once, at its first use."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from docker.errors import DockerException

from nap_receiver.auth.access import Access, everybodys
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import EtcdSettings, Settings
from nap_receiver.core.supervision import Supervisor
from nap_receiver.deploy.rollout import POSTDEPLOY, PREDEPLOY, RELEASE_COMMAND
from nap_receiver.engine.client import engine_at
from nap_receiver.engine.container import DIGEST_LABEL, suffix_of
from nap_receiver.git.repository import repository_called, repository_of
from nap_receiver.machine.programs import etcd_answers
from nap_receiver.model.release import UNIT, Outcome, Release
from nap_receiver.schedulers.chosen import scheduler_of
from nap_receiver.schedulers.scheduler import Scheduler, Units
from nap_receiver.store.announcements import good
from nap_receiver.store.etcdctl import Kept, keys_below
from nap_receiver.store.ledger import Records
from nap_receiver.store.lock import Turn, whose_turn

_LIST_SECONDS = 30.0  # of etcd, however many releases there are
_UNDER_LOCK = {PREDEPLOY, RELEASE_COMMAND, POSTDEPLOY}  # they run only while their app's lock is held

_LOOKED_AT = ("current", "releases/", "outcomes/", "removed", "up/", "lock")
"""Of an app's keys, those whose values tell whether all is well with it."""

_ANONYMOUS = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


class once(Generic[T]):
    """A property that is computed once; an error is stored and raised again."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: "Inventory", owner: type | None = None) -> T:
        kept = instance.kept
        name = self._function.__name__
        if name not in kept:
            try:
                kept[name] = self._function(instance)
            except NapError as error:
                kept[name] = error
        if isinstance(kept[name], NapError):
            raise kept[name]
        found: T = kept[name]
        return found


@dataclass(frozen=True)
class Container:
    """A container of this nap."""

    id: str
    name: str
    unit: str
    """Its name, without what marks this nap: the unit's that it is of, or should be."""
    app: str
    label: str
    runs: bool
    is_instance: bool
    """Whether it is of an instance, and not of a one-off command."""


@dataclass(frozen=True)
class EngineImage:
    """An image on the engine, as one repository of nap's registry names it."""

    id: str
    repository: str
    """An app's name, where nap built it."""
    names: tuple[str, ...]
    """Its tags and digests."""
    built_for: str
    """The app that nap built it for, if it did."""


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    parent: int
    words: list[str]


@dataclass
class Inventory:
    """What exists of all apps or, for a holder of its lock, of this one."""

    state: State
    settings: Settings
    app: str = ""
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @once
    def etcd(self) -> Kept:
        """The keys of apps and announcements that the checks need."""
        places, app = self._reached, self.app
        wanted = [f"{places.access}/", places.announcements_of(app) if app else f"{places.announcements}/"]
        wanted += [f"{places.root_of(each)}/{what}" for each in self._kept_of for what in _LOOKED_AT]
        return Kept(places, wanted, _LIST_SECONDS)

    @once
    def _kept_of(self) -> dict[str, set[str]]:
        """The kinds of keys of each app, or of this one. The values may be too much to read."""
        places, found = self._reached, defaultdict[str, set[str]](set)
        below = f"{places.prefix}/apps/"
        for key in keys_below(places, f"{places.root_of(self.app)}/" if self.app else below, _LIST_SECONDS):
            app, _, what = key.removeprefix(below).partition("/")
            found[app].add(what.partition("/")[0])
        return found

    @once
    def _reached(self) -> EtcdSettings:
        """The settings of etcd. Raises `NapError` if it does not answer."""
        places = self.settings.etcd
        if self.settings.is_single_machine:
            self._require_own_etcd()
        if not etcd_answers(places):  # etcdctl takes its time over one that is away
            advice = "`nap status` shows what is down; on a single machine `nap up` starts it."
            raise NapError(f"etcd at {places.address} does not answer", advice=advice)
        return places

    def _require_own_etcd(self) -> None:
        """Raise `NapError` if nap's own etcd is not running: another nap's may answer at its address."""
        supervisor = Supervisor(self.state.run / "supervisor.sock", "nap's supervisor")
        if not supervisor.answers():
            raise NapError("nap is down")
        if not supervisor.call("getProcessInfo", "etcd")["pid"]:
            raise NapError("etcd is not running")

    @once
    def accesses(self) -> dict[str, Access]:
        """The access to each app."""
        found = everybodys(self.etcd, self.settings.etcd.access)
        return {app: access for app, access in found.items() if self.app in {"", app}}

    @once
    def apps(self) -> list[str]:
        """The apps in etcd; keys that only units have written do not count."""
        found = {app for app, kept in self._kept_of.items() if kept - {"lock", "next", "up", "exits"}}
        return sorted(found | set(self.accesses))

    @once
    def idle(self) -> list[str]:
        """The apps that nobody changes now."""
        return [app for app in self.apps if not self.turn(app)]

    @once
    def containers(self) -> list[Container]:
        """The containers of this nap on its engine, by names and labels; on a cluster, those of one-off commands."""
        mark = suffix_of(self.state, self.settings)
        suffix = f".{mark}" if mark else ""
        found = []
        for each in self._listed("containers", all=True, filters=self._filters):
            labels, name = each["Labels"] or {}, each["Names"][0].removeprefix("/") if each["Names"] else ""
            match = UNIT.fullmatch(name.removesuffix(suffix))
            if not (name.endswith(suffix) and match and labels.get("nap.app") == match[1]):
                continue
            if not mark and not self._is_one_off(each["Image"], labels):
                continue
            label = labels.get("nap.instance", "")
            runs, is_instance = each["State"] == "running", DIGEST_LABEL in labels
            found.append(Container(each["Id"], name, match[0], match[1], label, runs, is_instance))
        return found

    def _is_one_off(self, image: str, labels: Mapping[str, str]) -> bool:
        """Return whether a container is a one-off command of this nap, if its name does not tell.

        Other naps may share the engine; only this nap has made this release with this image.
        """
        if "nap.unit" in labels:  # one of the cluster's machines may have the same engine
            return False
        marks = (labels.get("nap.release"), labels.get("nap.commit"), image)
        return any(marks == (str(each.number), each.commit, each.image) for each, _ in self.history(labels["nap.app"]))

    @property
    def sees_clients(self) -> bool:
        """Whether the clients of the engine's containers are processes of this machine."""
        address = self.settings.engine.url or os.environ.get("DOCKER_HOST", "")
        return self.settings.is_single_machine or address.startswith("unix:") or not address

    @once
    def images_in_use(self) -> set[str]:
        """The ids of images with containers, anybody's."""
        return {each["ImageID"] for each in self._listed("containers", all=True)}

    @once
    def images(self) -> list[EngineImage]:
        """The images on the engine that are named after nap's registry."""
        registry, found = f"{self.settings.registry.address}/", []
        for each in self._listed("images"):
            names = [*(each["RepoTags"] or []), *(each["RepoDigests"] or [])]
            ours = {name: name.removeprefix(registry) for name in names if name.startswith(registry)}
            ours = {name: re.split("[@:]", rest)[0] for name, rest in ours.items()}
            for repository in sorted(set(ours.values())):
                built_for = (each["Labels"] or {}).get("nap.app", "")
                these = tuple(name for name, named in ours.items() if named == repository)
                if self.app in {"", repository}:
                    found.append(EngineImage(each["Id"], repository, these, built_for))
        return found

    @once
    def unused_volumes(self) -> list[str]:
        """The engine's anonymous volumes without a container: their containers were removed without them.

        An anonymous volume's name is 64 hexadecimal digits (docker-volume-create(1)); it does not tell the owner.
        """
        listed = self._listed("volumes", filters={"dangling": True})
        names = [each["Name"] for each in listed["Volumes"] or []]
        return sorted(name for name in names if _ANONYMOUS.fullmatch(name))

    @once
    def units(self) -> Units:
        """The units of the scheduler."""
        return self.scheduler.status()

    @once
    def scheduler(self) -> Scheduler:
        """The scheduler."""
        return scheduler_of(self.state, self.settings)

    @once
    def processes(self) -> dict[int, Process]:
        """The processes of this machine, by id."""
        return dict(_processes())

    def records(self, app: str) -> Records:
        """Return the releases of the app."""
        return Records(self.etcd, self.settings.etcd, app)

    def current(self, app: str) -> Release | None:
        """Return the current release of the app."""
        return self._of(app, "current", lambda: self.records(app).current())

    def history(self, app: str) -> list[tuple[Release, Outcome | None]]:
        """Return the releases of the app, and how each ended."""
        return self._of(app, "history", lambda: self.records(app).history())

    def unfinished(self, app: str) -> list[Release]:
        """Return the releases of the app whose deploy was killed, if none is running."""
        return [release for release, outcome in self.history(app) if outcome is None]

    def good(self, app: str) -> set[str]:
        """Return the healthy instances of the app."""
        return self._of(app, "good", lambda: good(self.etcd, self.settings.etcd, app))

    def turn(self, app: str) -> Turn | None:
        """Return who changes the app now; None for the app that this inventory is for."""
        root = self.settings.etcd.root_of(app)
        return None if self.app else self._of(app, "turn", lambda: whose_turn(self.etcd, root))

    def runs(self, instance: str) -> bool:
        """Return whether this instance has a running container; on a cluster, whether it has a unit."""
        return instance in (self._running if self.scheduler.runs_on == "this machine" else self.units.names)

    @once
    def _running(self) -> set[str]:
        return {each.unit for each in self.containers if each.runs}

    def is_attended(self, container: Container) -> bool:
        """Whether a process of this machine waits for this one-off container."""
        if container.label in _UNDER_LOCK or container.name not in self._clients:
            return False
        return self._clients[container.name] != 1  # or whoever waited for it was killed

    @once
    def _clients(self) -> dict[str, int]:
        """The parent of the `docker start --attach` of each one-off container (`one_off`)."""
        clients = [each for each in self.processes.values() if each.words[1:3] == ["start", "--attach"]]
        return {each.words[-1]: each.parent for each in clients}

    def repository(self, app: str) -> Path | None:
        """Return the app's repository, if it is known."""
        if access := self.accesses.get(app):
            return repository_called(access.repository, self.state)
        return repository_of(app, self.state)

    def is_gone(self, app: str) -> bool:
        """Return whether the app is destroyed: neither etcd nor any repository here has it.

        An etcd without any app, while there are units, has lost its data.
        """
        if app in self.apps or self.repository(app) or not (self.apps or self.app or not self.units.instances):
            return False
        return not any(self.runs(f"{app}.{instance}") for instance in self.good(app))

    def left_anything(self, app: str) -> bool:
        """Return whether a destroyed app has units or containers, which must be removed before the rest."""
        return any(unit.startswith(f"{app}.") for unit in (*self.units.instances, *(c.unit for c in self.containers)))

    @property
    def left_out(self) -> str:
        """The end of a result: the apps that were not checked."""
        busy = sorted(set(self.apps) - set(self.idle))
        return f"; not checked during a change: {', '.join(busy)}" if busy else ""

    @property
    def _filters(self) -> dict[str, str]:
        return {"label": f"nap.app={self.app}" if self.app else "nap.app"}

    def _listed(self, what: str, **options: Any) -> Any:
        try:
            with engine_at(self.settings.engine.url) as engine:
                return getattr(engine.api, what)(**options)
        except (DockerException, OSError) as error:
            raise NapError(f"the engine cannot list its {what}: {error}") from error

    def _of(self, app: str, what: str, find: Callable[[], T]) -> T:
        key = f"{what} {app}"
        if key not in self.kept:
            self.kept[key] = find()
        found: T = self.kept[key]
        return found


def _processes() -> Iterator[tuple[int, Process]]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):  # it has ended, or is another account's
            words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")[:-1]
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            yield int(folder.name), Process(parent, words)
