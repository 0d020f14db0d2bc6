"""One interruption at a time, and none while something cleans up."""

import os
import signal
import threading

import pytest

from nap_receiver.core.deadline import DeadlinePassed, deadline
from nap_receiver.core.errors import NapError
from nap_receiver.core.interruption import interrupted_by, uninterrupted


def error(text: str) -> NapError:
    return NapError(text)


def test_the_first_interruption_is_the_one_that_is_told() -> None:
    with (
        pytest.raises(NapError, match=r"^stopped$"),
        interrupted_by(signal.SIGTERM, lambda: error("stopped")),
        interrupted_by(signal.SIGUSR1, lambda: error("lost")),
    ):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)


def test_what_cleans_up_after_another_failure_is_not_interrupted() -> None:
    cleaned = False
    with (
        pytest.raises(NapError, match=r"^the build failed$"),
        interrupted_by(signal.SIGTERM, lambda: error("stopped")),
        deadline(60, "the build", ""),
    ):
        try:
            raise NapError("the build failed")
        except NapError:
            with uninterrupted():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGALRM)
                cleaned = True
                raise
    assert cleaned


def test_what_came_while_nothing_was_interrupted_comes_after_it() -> None:
    with pytest.raises(NapError, match=r"^stopped$"), interrupted_by(signal.SIGTERM, lambda: error("stopped")):
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
        pytest.fail("it was interrupted")


def test_another_follows_once_the_block_of_the_first_has_ended() -> None:
    with interrupted_by(signal.SIGTERM, lambda: error("stopped")):
        with pytest.raises(DeadlinePassed), deadline(60, "the call", ""):
            signal.raise_signal(signal.SIGALRM)
        with pytest.raises(NapError, match=r"^stopped$"):
            signal.raise_signal(signal.SIGTERM)


def test_blocks_of_one_signal_do_not_nest() -> None:
    with deadline(60, "the build", ""), pytest.raises(RuntimeError, match="SIGALRM"), deadline(1, "a step", ""):
        pass


def test_a_thread_can_interrupt_the_main_thread() -> None:
    with pytest.raises(NapError, match=r"^lost$"), interrupted_by(signal.SIGUSR1, lambda: error("lost")):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        threading.Event().wait(20)


def test_the_handler_of_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with interrupted_by(signal.SIGUSR1, lambda: error("lost")):
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
