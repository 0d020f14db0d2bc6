"""A deadline interrupts whatever blocks, and leaves nothing behind."""

import os
import signal
import threading
import time

import pytest

from nap_receiver.core.deadline import DeadlinePassed, deadline
from nap_receiver.core.errors import NapError


def blocked() -> None:
    """Read from a pipe that nobody writes to."""
    reading, writing = os.pipe()
    try:
        os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_blocked_read_is_interrupted() -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlinePassed) as error, deadline(0.05, "the build", "Push again."):
        blocked()
    assert 0.05 <= time.monotonic() - begin < 2
    assert str(error.value) == "the build took longer than 0.05 s and was stopped"
    assert error.value.advice == ["Push again."]
    assert isinstance(error.value, NapError)


def test_a_lock_is_interrupted() -> None:
    with pytest.raises(DeadlinePassed), deadline(0.05, "waiting", ""):
        threading.Event().wait()


def test_what_ends_in_time_is_left_alone_afterwards() -> None:
    def before(signum: int, frame: object) -> None:
        raise AssertionError

    previous = signal.signal(signal.SIGALRM, before)
    try:
        with deadline(60, "the build", ""):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        assert signal.getsignal(signal.SIGALRM) is before
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_another_failure_is_not_hidden_and_ends_the_deadline_too() -> None:
    with pytest.raises(KeyError), deadline(60, "the build", ""):
        raise KeyError
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_none_is_set_for_0_seconds() -> None:
    with deadline(0, "the build", ""):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
