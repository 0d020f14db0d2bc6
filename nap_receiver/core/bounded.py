"""Run programs that read untrusted input with limits on memory and CPU time."""

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nap_receiver.core.errors import NapError

if TYPE_CHECKING:  # a twentieth of a second, which the gate does without
    from nap_receiver.core.settings import CommitSettings

_LIMITED_BY = {
    signal.SIGXCPU: "processor time",
    signal.SIGKILL: "memory or processor time",  # the kernel's last word on either
    signal.SIGABRT: "memory",  # what C++ and Rust do where malloc fails
}
"""Which limit a process ran into that ended by this signal."""

_SECONDS_TO_END = 5  # between the signal that a process can answer, SIGXCPU, and SIGKILL


def bounded(words: Sequence[str], *, memory: int, seconds: int = 0) -> list[str]:
    """The command `words` with at most `memory` bytes of address space, and `seconds` of processor time; 0 for any.

    By prlimit(1), so that nothing runs in a copy of this process, which has threads. Children inherit both limits, each
    for itself (setrlimit(2), RLIMIT_AS and RLIMIT_CPU).
    """
    processor = [f"--cpu={seconds}:{seconds + _SECONDS_TO_END}"] if seconds else []
    return ["prlimit", f"--as={memory}", "--core=0", *processor, "--", *words]


def killed(app: str, signal_number: int, bounds: "CommitSettings") -> NapError:
    """Return the error for a reader of a commit that a signal has ended."""
    limit = _LIMITED_BY.get(signal.Signals(signal_number), "")
    setting = {
        "memory": f"commit.memory is {bounds.memory} bytes",
        "processor time": f"commit.processor_time is {bounds.processor_time} s",
        "memory or processor time": "commit.memory and commit.processor_time say how much",
    }.get(limit, f"signal {signal_number}")
    return NapError(
        f"{app}: reading the commit took too much {limit}: {setting}"
        if limit
        else f"{app}: the process that reads the commit was killed ({setting})",
        advice="Remove large files and long lists of patterns (.dockerignore) from the commit, then push again.",
    )
