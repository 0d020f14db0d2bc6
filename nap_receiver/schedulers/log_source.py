"""The output of instances, as a scheduler returns it: lines, and which of them are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from nap_receiver.model.release import Instance


@dataclass(frozen=True)
class Line:
    """A line that an instance printed; `at` is when, to the nanosecond: `2026-11-25T01:02:03.123456789Z`."""

    at: str
    label: str
    text: str

    def __str__(self) -> str:
        return f"{self.at[:26]}Z {self.label}: {self.text}"


@dataclass(frozen=True)
class Wanted:
    """Which instances of an app: those of a release (`v3`), of a process type (`web`), one of it (`web.1`), or all."""

    app: str
    release: str = ""
    process: str = ""

    def label(self, unit: str) -> str | None:
        """`web.1` where the instance whose unit is `hello.v3.web.1` is wanted."""
        app, _, key = unit.partition(".")
        release, _, label = key.partition(".")
        if app != self.app or self.release not in {"", release} or not self.includes(label):
            return None
        return label if label.rpartition(".")[2].isdecimal() else None

    def includes(self, label: str) -> bool:
        """Whether `web.1` is of the process type that is wanted."""
        return self.process in {"", label, label.partition(".")[0]}


class Source(Protocol):
    """Where what instances print can be read."""

    missing: list[str]
    """Why some of it could not be read, a sentence each."""

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        """At least the last `most` lines of these instances, as far as they are kept. Raises `NapError`."""

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """From now on `tell` each line that came after `past`, also of instances that start later; returns at once."""


def time_of(seconds: float) -> str:
    """A moment since the epoch, as lines tell it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
