"""Assignments: what a machine's agent is to do with each instance that the scheduler gave to the machine.

Below `<prefix>/machines/<machine>/`:
    instances/<unit>   an assignment
    lease              the lease under which this machine's instances are announced, and the boot that it is of
The agent deletes the assignment of an instance when it has removed its container.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.model.health import Check
from nap_receiver.model.release import UNIT, Instance
from nap_receiver.store.etcdctl import Reader

if TYPE_CHECKING:
    from nap_receiver.store.etcd import Etcd

_KEYS_AT_ONCE = 64


class Watched(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the agent has to know of an instance: how to tell that it is good, and what to announce then."""

    app: str
    release: int
    process: str
    label: str
    """`web.1`"""
    port: int = 0
    """The port of its container that must answer; 0 for an instance that answers nobody."""
    port_guessed: bool = False
    """Whether nobody has named that port; then checks that pass say nothing of it."""
    protocol: Literal["http", "h2c"] = "http"
    checks: list[Check] = []
    url: str = ""
    """Of the app on the web; empty where it has none."""

    @property
    def key(self) -> str:
        """`v3.web.1`"""
        return f"v{self.release}.{self.label}"

    @property
    def unit(self) -> str:
        """`hello.v3.web.1`"""
        return f"{self.app}.{self.key}"


DesiredState = Literal["running", "withdrawn", "stopped", "discarded"]
"""What becomes of an instance: it runs and is announced when it is good; it runs on without being announced; it is
drained and stopped; it is ended at once, and what it printed last is reported."""


class Assignment(msgspec.Struct, frozen=True):
    """What is to be done with one instance; `body` is the digest of what its engine is asked for (`container`)."""

    state: DesiredState
    body: str = ""
    watched: Watched | None = None

    @property
    def is_to_run(self) -> bool:
        """Whether its container runs, announced or not."""
        return self.state in {"running", "withdrawn"}


def watched_of(instance: Instance, url: str) -> Watched:
    """What the agent has to know of this instance of an app that is at `url`, empty where it has no name."""
    release = instance.release
    return Watched(
        release.app,
        release.number,
        instance.process,
        instance.label,
        int(release.port) if instance.is_web else 0,
        instance.is_web and release.port_from in {"default", "found"},
        release.protocol if instance.is_web else "http",
        instance.checks,
        url,
    )


def place_of(places: EtcdSettings, machine: str) -> str:
    """Below this are the machine's assignments, by their units."""
    return f"{places.prefix}/machines/{machine}/instances/"


def lease_of(places: EtcdSettings, machine: str) -> str:
    """The key that names the lease of the machine's announcements."""
    return f"{places.prefix}/machines/{machine}/lease"


class MachineLease(msgspec.Struct):
    """The lease of a machine's announcements, and the boot of the machine that they are of."""

    id: int
    boot: str


def boot_of_the_machine() -> str:
    """What tells this boot of the machine from every other (random(4), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def known_lease(etcd: Reader, places: EtcdSettings, machine: str) -> MachineLease | None:
    """The lease that the machine's agent has written down last."""
    entry = etcd.get(lease_of(places, machine))
    try:
        return msgspec.convert(entry.value, MachineLease) if entry else None
    except msgspec.ValidationError:
        return None


def withdraw_all(etcd: "Etcd", places: EtcdSettings, machine: str) -> None:
    """Withdraw all that this machine has announced."""
    if known := known_lease(etcd, places, machine):
        etcd.revoke(known.id)


def withdraw_of_another_boot(etcd: "Etcd", places: EtcdSettings, machine: str) -> None:
    """Withdraw what this machine announced before it was booted: its ports belong to other containers by now."""
    known = known_lease(etcd, places, machine)
    if known and known.boot != boot_of_the_machine():
        etcd.revoke(known.id)


def assignments(etcd: Reader, places: EtcdSettings, machine: str) -> dict[str, Assignment]:
    """The machine's assignments by their units; what is none is left out."""
    place = place_of(places, machine)
    found = {entry.key.removeprefix(place): assignment(entry.value) for entry in etcd.below(place).entries}
    return {unit: each for unit, each in found.items() if each and UNIT.fullmatch(unit)}


def assignment(value: object) -> Assignment | None:
    """The value of a key as an assignment; None where it is none."""
    try:
        return msgspec.convert(value, Assignment)
    except msgspec.ValidationError:
        return None


def assign(etcd: "Etcd", places: EtcdSettings, machine: str, given: Iterable[tuple[str, Assignment]]) -> None:
    """Write these assignments, by their units. Raises `NapError` where one is not a valid unit name."""
    place = place_of(places, machine)
    left = []
    for unit, each in given:
        if not UNIT.fullmatch(unit):
            raise NapError(f"{unit[:80]!a} is not a valid unit name")
        left.append((f"{place}{unit}", each))
    while left:
        etcd.write(dict(left[:_KEYS_AT_ONCE]))
        del left[:_KEYS_AT_ONCE]
