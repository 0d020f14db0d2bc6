"""What runs units, seen from the story: the seam between this machine and a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nap_receiver.placement import Placement
from nap_receiver.units import InstanceUnits


class Scheduler(Protocol):
    """Runs units until told otherwise. Each call ends by a deadline and raises `NapError` when it could not be done."""

    machine: str
    """What makes container names unique where several naps share an engine; empty where none do."""

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        """Where the app may run, as its repository or the settings say; refused where no machine will do."""

    def start(self, units: Sequence[InstanceUnits]) -> None:
        """Have the units run; returns when they were taken, not when they run."""

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
