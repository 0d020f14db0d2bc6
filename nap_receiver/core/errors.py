"""Errors that are shown to people."""

from collections.abc import Sequence
from typing import ClassVar, Literal

End = Literal["succeeded", "failed", "cancelled", "superseded"]
"""How a change of an app ended, as its log tells it."""


class NapError(Exception):
    """An error for people: what happened, the last output of the failed program, and what to type next.

    `str(error)` is one sentence that says what happened; `words` are the last lines of the failed program, unchanged;
    `advice` is what to type next, one line each. The channel and the command line format them; neither shows a
    traceback.
    """

    end: ClassVar[End] = "failed"
    """How a change of an app ended that this one ended."""

    def __init__(self, what: str, *, words: Sequence[str] = (), advice: str | Sequence[str] = ()) -> None:
        super().__init__(what)
        self.words = list(words)
        self.advice = [advice] if isinstance(advice, str) else list(advice)


def some(names: Sequence[str]) -> str:
    """Return the first few of `names`, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class UnknownSetting(NapError):
    """An unknown name in a settings file or in the environment."""
