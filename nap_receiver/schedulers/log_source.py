"""The output of instances, as a scheduler returns it: lines, and which of them are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from nap_receiver.model.release import Instance


@dataclass(frozen=True)
class Line:
    """A line of output; `at` is its time in nanoseconds: `2026-11-25T01:02:03.123456789Z`."""

    at: str
    label: str
    text: str

    def __str__(self) -> str:
        return f"{self.at[:26]}Z {self.label}: {self.text}"


@dataclass(frozen=True)
class Wanted:
    """A filter: instances of a release (`v3`), of a process type (`web`), one of them (`web.1`), or all."""

    app: str
    release: str = ""
    process: str = ""

    def label(self, unit: str) -> str | None:
        """Return `web.1` for the unit `hello.v3.web.1` if the filter includes it."""
        app, _, key = unit.partition(".")
        release, _, label = key.partition(".")
        if app != self.app or self.release not in {"", release} or not self.includes(label):
            return None
        return label if label.rpartition(".")[2].isdecimal() else None

    def includes(self, label: str) -> bool:
        """Return whether the filter includes `web.1`."""
        return self.process in {"", label, label.partition(".")[0]}


class Source(Protocol):
    """Reads the output of instances."""

    missing: list[str]
    """Why some of it could not be read, a sentence each."""

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        """Return at least the last `most` lines of these instances, as far as they exist. Raises `NapError`."""

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """Call `tell` with each new line after `past`, also of instances that start later; returns at once."""


def time_of(seconds: float) -> str:
    """Format seconds since the epoch as the time of a line."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
