"""The interface of schedulers, which run instances."""

import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from nap_receiver.engine.container import Body
from nap_receiver.model.release import DISCOVERY, UNIT, Instance
from nap_receiver.schedulers.log_source import Source
from nap_receiver.schedulers.placement import Placement

RunsOn = Literal["this machine", "a cluster", "nothing"]
"""Where a scheduler runs instances: as containers of this machine's engine, as units of a cluster, or nowhere."""


@dataclass(frozen=True)
class Units:
    """The units that a scheduler has, also those that are not nap's."""

    names: frozenset[str]
    """All that it was given and not told to stop."""
    started: frozenset[str]
    """Those of them that it keeps running."""
    known: frozenset[str]
    """Besides, those that it has yet to forget."""

    @cached_property
    def instances(self) -> list[str]:
        """The instances of these units, without units that are not nap's."""
        names = {unit.removesuffix(DISCOVERY) for unit in self.names}
        return sorted(name for name in names if UNIT.fullmatch(name))

    def known_of(self, app: str) -> list[str]:
        """Return the instances of an app, running or not."""
        return sorted(unit for unit in self.known if unit.startswith(f"{app}.") and UNIT.fullmatch(unit))

    def lacks(self, instance: str) -> bool:
        """Return whether one of the two units of this instance is missing or not kept running."""
        return not {instance, instance + DISCOVERY} <= self.started


@dataclass(frozen=True)
class Work:
    """Instances to run, and where they may run.

    etcd has the body for each instance's engine (`container.write_down`); `bodies` has the digests by the instances'
    keys.
    """

    instances: tuple[Instance, ...]
    bodies: Mapping[str, str]
    placement: Placement

    def only(self, keys: set[str]) -> "Work":
        """Return the same for these instances only."""
        return Work(tuple(each for each in self.instances if each.key in keys), self.bodies, self.placement)


@dataclass(frozen=True)
class Dependency:
    """A program that a scheduler needs and nap does not run: its address, and a check that it answers."""

    name: str
    address: str
    answers: Callable[[], bool]


@dataclass(frozen=True)
class VersionOf:
    """A program that a scheduler calls: the command that prints its version, and the oldest supported version."""

    command: tuple[str, ...]
    oldest: str


class Scheduler(Protocol):
    """Runs instances until they are stopped; renders its units from the templates of its name.

    Each call has a deadline and raises `NapError` if it fails. Instances to remove are given by the names of their
    units: `hello.v3.web.1`.
    """

    runs_on: RunsOn

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        """Return where the app may run, by its repository or the settings. Raises `NapError` if no machine fits."""

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        """Adapt nap's create body to the engine that runs this instance."""

    def start(self, work: Work) -> None:
        """Start the instances, also stopped ones that it has; returns when the request is accepted."""

    def require_placed(self, work: Work) -> None:
        """Raise `NapError` with the reason if one of the instances cannot run on any machine."""

    def withdraw(self, instances: Sequence[str]) -> None:
        """Withdraw the announcements of these instances; returns when the request is accepted."""

    def stop(self, instances: Sequence[str]) -> None:
        """Drain and stop these instances for good; returns when the request is accepted."""

    def discard(self, instances: Sequence[str]) -> None:
        """Remove these instances without draining; returns when the request is accepted.

        They write their last output to etcd themselves (`announcements.last_words`).
        """

    def running(self, app: str) -> list[str]:
        """Return the app's instances that this scheduler has, running or not."""

    def status(self) -> Units:
        """Return all units of this scheduler."""

    def logs(self, app: str) -> AbstractContextManager[Source]:
        """The source of the output of the app's instances, for the block. Raises `NapError` if none is configured."""

    def apps_to_renew(self) -> list[str]:
        """Return the apps whose units depend on this machine's settings and templates."""

    def renew(self, work: Work) -> None:
        """Apply the current settings to those of these instances that run; others are not started."""

    def is_stopping(self, instance: str) -> bool:
        """Return whether this instance was stopped and is being removed."""

    def is_ours(self, unit: str) -> bool:
        """Return whether this unit was made under these settings; a cluster may also have units of another nap."""

    def how_to_remove(self, app: str, unit: str) -> str:
        """Return the command that removes the remains of an app that is not in etcd."""

    def dependencies(self) -> Sequence[Dependency]:
        """Return the programs that it needs and nap does not run."""

    def versions(self) -> Mapping[str, VersionOf]:
        """Return the programs that it calls, by name."""

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        """Return URLs whose answers have a `Date:` of its machines, by the machines' names."""
