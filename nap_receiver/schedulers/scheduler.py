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
    """What a scheduler has: the names of units, also of those that are not nap's."""

    there: frozenset[str]
    """All that it was given and not told to stop."""
    started: frozenset[str]
    """Those of them that it keeps running."""
    known: frozenset[str]
    """Besides, those that it has yet to forget."""

    @cached_property
    def instances(self) -> list[str]:
        """The instances that they are of, without what is no unit of nap's."""
        names = {unit.removesuffix(DISCOVERY) for unit in self.there}
        return sorted(name for name in names if UNIT.fullmatch(name))

    def known_of(self, app: str) -> list[str]:
        """The instances of an app that the scheduler knows, running or not."""
        return sorted(unit for unit in self.known if unit.startswith(f"{app}.") and UNIT.fullmatch(unit))

    def lacks(self, instance: str) -> bool:
        """Whether one of the two units of this instance is not there, or not kept running."""
        return not {instance, instance + DISCOVERY} <= self.started


@dataclass(frozen=True)
class Work:
    """What a scheduler is given: instances, and where they may run.

    What each instance's engine is asked for is in etcd (`container.write_down`); `bodies` has the digest of that, by
    the instance's key.
    """

    instances: tuple[Instance, ...]
    bodies: Mapping[str, str]
    placement: Placement

    def only(self, keys: set[str]) -> "Work":
        """The same of some instances alone."""
        return Work(tuple(each for each in self.instances if each.key in keys), self.bodies, self.placement)


@dataclass(frozen=True)
class Dependency:
    """What a scheduler relies on and nap does not run: where it answers, and how to tell that it does."""

    name: str
    address: str
    answers: Callable[[], bool]


@dataclass(frozen=True)
class VersionOf:
    """A program that a scheduler calls: the command that prints its version, and the oldest that will do."""

    command: tuple[str, ...]
    oldest: str


class Scheduler(Protocol):
    """Runs instances until told otherwise; it renders its own units from the templates of its name.

    Each call ends by a deadline and raises `NapError` when it could not be done. Instances that are taken away are
    named as their units are: `hello.v3.web.1`.
    """

    runs_on: RunsOn

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        """Where the app may run, as its repository or the settings say; refused where no machine will do."""

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        """What the engine that runs this instance is asked for, out of what nap asks for wherever it runs."""

    def start(self, work: Work) -> None:
        """Have the instances run, also those that it has and that were stopped; returns when they were taken."""

    def require_placed(self, work: Work) -> None:
        """Raise `NapError` with the reason where one of the instances cannot run anywhere."""

    def withdraw(self, instances: Sequence[str]) -> None:
        """Have these instances announced no more; returns when that was taken."""

    def stop(self, instances: Sequence[str]) -> None:
        """Have these instances stop, drained, and never start again; returns when that was taken."""

    def discard(self, instances: Sequence[str]) -> None:
        """Take these instances away, undrained; returns when that was taken.

        What they printed last comes to etcd, where they put it themselves (`announcements.last_words`).
        """

    def running(self, app: str) -> list[str]:
        """The app's instances that this scheduler was given, running or not."""

    def status(self) -> Units:
        """All units that this scheduler has."""

    def logs(self, app: str) -> AbstractContextManager[Source]:
        """Where what the app's instances print is read, for the block. Raises `NapError` where nothing is set up."""

    def apps_to_renew(self) -> list[str]:
        """The apps whose units depend on this machine's settings and templates."""

    def renew(self, work: Work, seconds: float) -> None:
        """Put their units, as they are now, in the place of those there are; an instance may take `seconds` to stop."""

    def is_stopping(self, instance: str) -> bool:
        """Whether this instance was told to stop, and is being taken away."""

    def is_ours(self, unit: str) -> bool:
        """Whether this unit was made under these settings; a cluster may have those of another nap too."""

    def how_to_remove(self, app: str, unit: str) -> str:
        """What an operator types to take away what is left of an app that nap knows nothing of."""

    def dependencies(self) -> Sequence[Dependency]:
        """What it relies on and nap does not run."""

    def versions(self) -> Mapping[str, VersionOf]:
        """The programs that it calls, by their names."""

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        """The URLs whose answers have a `Date:` of its machines, by the names of those."""
