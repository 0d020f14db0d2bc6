"""Deadlines over anything that blocks, also inside a library: the main thread is interrupted by a signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nap_receiver.core.errors import NapError


class DeadlinePassed(NapError):
    """Something took longer than it may."""


@contextmanager
def deadline(seconds: float, what: str, advice: str) -> Iterator[None]:
    """Raise `DeadlinePassed` in the main thread when the block still runs after `seconds`; 0 means no deadline.

    A socket's timeout covers only the wait for its next byte, and not a stalled upload (shared/libraries.md,
    "Docker SDK"); `setitimer(2)` covers the block as a whole. Deadlines do not nest.
    """

    def pass_by(signum: int, frame: FrameType | None) -> None:
        raise DeadlinePassed(f"{what} took longer than {seconds:g} s and was stopped", advice=advice)

    previous = signal.signal(signal.SIGALRM, pass_by)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
