"""Placement: on which machines of a cluster an app may run, by its git config or the settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import FleetSettings, MachineId, MachineMetadata
from nap_receiver.git.push import checked_setting


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster; `metadata` is fleet's, each `name=value`."""

    id: str
    address: str
    metadata: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.id[:8]} {self.address} ({', '.join(sorted(self.metadata)) or 'no metadata'})"


@dataclass(frozen=True)
class Placement:
    """The requirements of an app on its machines; without arguments, none."""

    metadata: tuple[str, ...] = ()
    """`region=east`, …: a machine needs one of the values asked for of each name ("X-Fleet" in fleet's unit files)."""
    machine: str = ""
    """A machine's id, or any."""
    spread: frozenset[str] = frozenset()
    """The process types whose instances keep to machines of their own."""

    def suits(self, machine: Machine) -> bool:
        """Return whether the app may run on `machine` if nothing else runs there."""
        names = {asked.partition("=")[0] for asked in self.metadata}
        met = {asked.partition("=")[0] for asked in self.metadata if asked in machine.metadata}
        return names == met and self.machine in {"", machine.id}


def placement_of(
    app: str,
    repository: Path,
    settings: FleetSettings,
    formation: dict[str, int],
    list_machines: Callable[[], Sequence[Machine]],
) -> Placement:
    """Return the requirements of the app. Raises `NapError` if they are invalid, or if the machines cannot meet them.

    The machines are listed only if there are requirements.
    """
    metadata, machine, spread = _asked(repository, settings)
    if not (metadata or machine or spread == "yes") and (spread == "no" or max(formation.values()) == 1):
        return Placement()
    machines = list_machines()
    placement = Placement(tuple(filter(None, metadata.split(","))), machine)
    listing = "; ".join(map(str, machines)) or "none"
    fitting = sum(map(placement.suits, machines))
    if not fitting:
        asked = [f"MachineMetadata={each}" for each in placement.metadata]
        asked += [f"MachineID={machine}"] if machine else []
        wanted = " and ".join(asked) or "one at all"
        raise NapError(
            f"{app} fits on no machine: it asks for {wanted}; the machines are: {listing}",
            advice="Fix nap.metadata or nap.machine in its repository's git config, or fleet.… in the settings."
            if asked
            else "Check that fleetd runs on the cluster's machines: fleetctl list-machines",
        )
    too_many = [f"{process}={n}" for process, n in formation.items() if n > fitting]
    if spread == "yes" and too_many:
        raise NapError(
            f"{app} does not fit: {', '.join(too_many)}, and nap.spread (Conflicts=) asks for a machine for each, of "
            f"which {fitting} will do; the machines are: {listing}",
            advice="Ask for fewer instances, add machines, or let them share: git config nap.spread no",
        )
    alone = frozenset(process for process, n in formation.items() if spread == "yes" or 1 < n <= fitting)
    return Placement(placement.metadata, machine, frozenset() if spread == "no" else alone)


def _asked(repository: Path, settings: FleetSettings) -> tuple[str, str, str]:
    metadata = checked_setting(repository, "metadata", MachineMetadata.fits, MachineMetadata.expected)
    machine = checked_setting(repository, "machine", MachineId.fits, MachineId.expected)
    spread = checked_setting(repository, "spread", {"auto", "yes", "no"}.__contains__, '"auto", "yes" or "no"')
    return (
        settings.metadata if metadata is None else metadata,
        settings.machine if machine is None else machine,
        settings.spread if spread is None else spread,
    )
