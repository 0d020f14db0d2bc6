"""Deadlines for blocking calls, also inside a library: a signal interrupts the main thread."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from nap_receiver.core.errors import NapError
from nap_receiver.core.interruption import interrupted_by


class DeadlinePassed(NapError):
    """A block took longer than its deadline."""


@contextmanager
def deadline(seconds: float, what: str, advice: str) -> Iterator[None]:
    """Raise `DeadlinePassed` in the main thread when the block still runs after `seconds`; 0 means no deadline.

    A socket's timeout covers only the wait for its next byte, and not a stalled upload (docs/design/libraries.md,
    "Docker SDK"); `setitimer(2)` covers the block as a whole. Raises `RuntimeError` inside another
    deadline.
    """

    def passed() -> NapError:
        return DeadlinePassed(f"{what} took longer than {seconds:g} s and was stopped", advice=advice)

    with interrupted_by(signal.SIGALRM, passed):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
