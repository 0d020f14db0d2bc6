"""Interrupt the main thread: for a deadline, a lost lock, or a request to end.

Only one interruption happens at a time, and the first one is reported: until its block has ended, the others are
ignored. Code that cleans up runs under `uninterrupted`.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from nap_receiver.core.errors import NapError

_reasons: dict[signal.Signals, Callable[[], NapError]] = {}
"""What each signal in use raises."""
_happened: list[signal.Signals] = []
"""The signal whose interruption is under way, if there is one."""
_waiting: list[signal.Signals] = []
"""The signals that came while nothing may be interrupted."""
_protected = 0


@contextmanager
def interrupted_by(number: signal.Signals, reason: Callable[[], NapError]) -> Iterator[None]:
    """When this signal arrives during the block, raise the exception that `reason` returns, in the main thread.

    Raises `RuntimeError` where the signal is in use already.
    """
    if number in _reasons:
        raise RuntimeError(f"{number.name} interrupts something else already")
    previous = signal.signal(number, _interrupt)
    _reasons[number] = reason
    try:
        yield
    finally:
        # From here on a signal that comes is too late, so nothing can be raised between these lines.
        del _reasons[number]
        signal.signal(number, previous)
        _happened[:] = [each for each in _happened if each != number]
        _waiting[:] = [each for each in _waiting if each != number]


def is_interrupted_by(number: signal.Signals) -> bool:
    """Return whether a block uses this signal now."""
    return number in _reasons


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay interruptions until the block has ended; drop them if the block itself raises an exception."""
    global _protected
    _protected += 1
    try:
        yield
    finally:
        _protected -= 1
    if not _protected and not _happened and _waiting:
        _raise(_waiting.pop(0))


def _interrupt(number: int, frame: FrameType | None) -> None:
    came = signal.Signals(number)
    if came not in _reasons or _happened:
        return
    if _protected:
        _waiting.append(came)
    else:
        _raise(came)


def _raise(came: signal.Signals) -> None:
    _happened.append(came)
    raise _reasons[came]()
