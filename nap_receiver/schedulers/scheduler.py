"""What runs units, seen from the story: the seam between this machine and a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from nap_receiver.model.release import UNIT
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.units import InstanceUnits

_DISCOVERY = "-discovery"


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
        names = {unit.removesuffix(_DISCOVERY) for unit in self.there}
        return sorted(name for name in names if UNIT.fullmatch(name))

    def known_of(self, app: str) -> list[str]:
        """The instances of an app that the scheduler knows, running or not."""
        return sorted(unit for unit in self.known if unit.startswith(f"{app}.") and UNIT.fullmatch(unit))

    def lacks(self, instance: str) -> bool:
        """Whether one of the two units of this instance is not there, or not kept running."""
        return not {instance, instance + _DISCOVERY} <= self.started


class Scheduler(Protocol):
    """Runs units until told otherwise. Each call ends by a deadline and raises `NapError` when it could not be done."""

    machine: str
    """What makes container names unique where several naps share an engine; empty where none do."""

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        """Where the app may run, as its repository or the settings say; refused where no machine will do."""

    def start(self, units: Sequence[InstanceUnits]) -> None:
        """Have the units run, also those that it has and that were stopped; returns when they were taken."""

    def require_placed(self, units: Sequence[InstanceUnits]) -> None:
        """Raise `NapError` with the reason where one of the units cannot run anywhere."""

    def withdraw(self, instances: Sequence[str]) -> None:
        """Have these instances (by unit name) announced no more; returns when that was taken."""

    def stop(self, instances: Sequence[str]) -> None:
        """Have these instances stop, drained, and never start again; returns when that was taken."""

    def discard(self, instances: Sequence[str]) -> None:
        """Take these instances away, undrained; returns when that was taken.

        What they printed last comes to etcd, where they put it themselves (`discovery.last_words`).
        """

    def running(self, app: str) -> list[str]:
        """The unit names of the app's instances that this scheduler was given, running or not."""

    def units(self) -> Units:
        """All units that this scheduler has."""

    def is_ours(self, unit: str) -> bool:
        """Whether this unit was made under these settings; a cluster may have those of another nap too."""
