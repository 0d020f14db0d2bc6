"""Deploy logs: the whole output of each deploy, in files below the state directory's `logs/<app>/`.

A log is locked (flock(2)) while it is written, so a reader sees when the deploy has ended, however it ended.
"""

import fcntl
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, get_args

from nap_receiver.core.errors import End, NapError
from nap_receiver.core.paths import State
from nap_receiver.core.process import piped

_LONGEST_NAME = 100
_KEPT = 100

_LAST_LINE_BYTES = 100


def new_log(state: State, app: str, what: str) -> Path:
    """Return the path of a new deploy log: `logs/hello/20260131T235959-1a2b3c4.log`.

    Names are in the order in which the deploys began. So one that begins in the second of another has the next second.
    """
    now = int(time.time())
    taken = {log.stem[: len(_stamp(now))] for log in logs(state, app)}
    stamp = next(stamp for stamp in map(_stamp, itertools.count(now)) if stamp not in taken)
    named = re.sub(r"[^A-Za-z0-9._=-]", ",", what)[:_LONGEST_NAME]
    return state.deploy_logs / app / f"{stamp}-{named}.log"


def _stamp(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))


def open_log(path: Path) -> TextIO:
    """Create and lock a deploy log at `path`, or at `path` with a number if the name is taken.

    Raises `OSError` when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        named = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        log = named.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        if os.fstat(log.fileno()).st_size == 0 and _locked(log):
            return log
        log.close()
        number += 1


def logs(state: State, app: str) -> list[Path]:
    """Return the deploy logs of `app`, oldest first. The name of a build is the stem of its log."""
    return sorted((state.deploy_logs / app).glob("*.log"), key=lambda log: log.stem)


def old_logs(state: State, app: str) -> list[Path]:
    """Return the logs of `app` beyond the limit, oldest first."""
    return logs(state, app)[:-_KEPT]


def remove_old_logs(state: State, app: str) -> None:
    """Remove the logs of `app` beyond the limit."""
    for log in old_logs(state, app):
        log.unlink(missing_ok=True)


def log_of(state: State, app: str, build: str | None) -> Path:
    """Return the log of a build, named whole or in part; without a name, the latest."""
    found_logs = logs(state, app)
    found = [log for log in found_logs if log.stem == build] or [
        log for log in found_logs if build is None or build in log.stem
    ]
    if not found:
        which = f"no build {build[:80]!a} of {app}" if build else f"no build of {app}"
        raise NapError(f"there is {which} on this host", advice=f"To list the builds: builds {app}")
    return found[-1]


def is_over(log: Path) -> bool:
    """Whether the deploy that writes this log has ended."""
    with log.open(encoding="utf-8") as opened:
        return _locked(opened, fcntl.LOCK_SH)


def last_line(end: End) -> str:
    """Return the last line of a log: only it is not indented, so output of a build cannot imitate it."""
    return f"-- {end} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"


def result(log: Path) -> End | None:
    """Return how the deploy of this log ended; None while it runs or if it was killed."""
    with log.open("rb") as opened:
        opened.seek(max(0, log.stat().st_size - _LAST_LINE_BYTES))
        _, _, last = opened.read().decode("utf-8", "replace").rstrip("\n").rpartition("\n")
    return _result_of(last)


def _result_of(line: str) -> End | None:
    ends: tuple[End, ...] = get_args(End)
    return next((each for each in ends if line.startswith(f"-- {each} ")), None)


@contextmanager
def follow(log: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a log, also new ones, until the deploy has ended, without the last line, which has the
    result."""
    # tail(1) sleeps until the file changes (inotify(7)); flock(1) ends when the lock is let go.
    with (
        subprocess.Popen(
            ["flock", "--shared", str(log), "true"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as goes_on,
        subprocess.Popen(
            ["tail", "--lines=+1", "--follow", "--sleep-interval=0.1", f"--pid={goes_on.pid}", str(log)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as tail,
    ):
        lines = piped(tail.stdout)
        threading.Thread(target=goes_on.wait, daemon=True).start()  # for tail, a process nobody waited for still runs
        try:
            yield (line.rstrip("\n") for line in lines if not _result_of(line))
        finally:
            tail.terminate()
            goes_on.terminate()


def _locked(log: TextIO, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(log, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
