"""What runs units, seen from the story: the seam between this machine and a cluster."""

from collections.abc import Sequence
from typing import Protocol

from nap_receiver.units import InstanceUnits


class Scheduler(Protocol):
    """Runs units until told otherwise. Each call ends by a deadline and raises `NapError` when it could not be done."""

    machine: str
    """What makes container names unique where several naps share an engine; empty where none do."""

    def start(self, units: Sequence[InstanceUnits]) -> None:
        """Have the units run; returns when they were taken, not when they run."""

    def withdraw(self, instances: Sequence[str]) -> None:
        """Stop announcing these instances (by unit name); returns when their announcements are gone."""

    def stop(self, instances: Sequence[str]) -> None:
        """Have these instances stop, drained, and never start again; returns when that was taken."""

    def discard(self, instances: Sequence[str]) -> None:
        """Take these instances away at once, undrained; returns when nothing of them is left."""

    def running(self, app: str) -> list[str]:
        """The unit names of the app's instances that this scheduler was given, running or not."""

    def last_words(self, instance: str) -> list[str]:
        """The last lines that an instance printed, oldest first."""
