"""Errors that are shown to people."""

from collections.abc import Sequence
from typing import ClassVar, Literal

End = Literal["succeeded", "failed", "cancelled", "superseded"]
"""How a change of an app ended, as its log tells it."""


class NapError(Exception):
    """A failure told to a person: what happened, in whose words, and what to do next.

    `str(error)` is the one sentence that says what happened; `words` are the last lines of the program that
    failed, uncut and unstyled; `advice` is what to do next, one entry a line. The channel and the command line
    give it their look; neither ever shows a traceback for one.
    """

    end: ClassVar[End] = "failed"
    """How a change of an app ended that this one ended."""

    def __init__(self, what: str, *, words: Sequence[str] = (), advice: str | Sequence[str] = ()) -> None:
        super().__init__(what)
        self.words = list(words)
        self.advice = [advice] if isinstance(advice, str) else list(advice)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class UnknownSetting(NapError):
    """A settings file or an environment variable names something nap does not know."""
