"""The result of a check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FindingState = Literal["ok", "problem", "repaired", "failed"]


@dataclass(frozen=True)
class Finding:
    """One result of a check; `repair` repairs a problem and returns what it did."""

    state: FindingState
    about: str
    advice: str = ""
    """What repairs it; once it is repaired, what was done."""
    check: str = ""
    subject: str = ""
    """What is wrong: whatever else is told of it, the same thing has the same subject in the next look."""
    app: str = ""
    """Whose lock must be held while it is repaired; empty where it is no app's."""
    repair: Callable[..., str] | None = None
    """Called with the `Deploy` that holds the app's lock; without anything where it is no app's."""


def ok(about: str) -> Finding:
    """Return the result of a check without problems."""
    return Finding("ok", about)


def unseen(about: str, advice: str = "") -> Finding:
    """Return the result of a check that could not run."""
    return Finding("failed", about, advice)


def problem(
    subject: str, about: str, advice: str, *, app: str = "", repair: Callable[..., str] | None = None
) -> Finding:
    """Return a problem, in one sentence, and what repairs it."""
    return Finding("problem", about, advice, subject=subject, app=app, repair=repair)
