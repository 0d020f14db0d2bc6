"""The deploy lock: one deploy at a time per app. It is a leased key in etcd, so it holds across receivers.

Below `<prefix>/apps/<app>/`:
    lock   the `Turn` of the running deploy (leased)
    next   the `Turn` of the push that waits (leased); a newer push replaces it
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from nap_receiver.core.channel import Channel
from nap_receiver.core.deploy_log import follow
from nap_receiver.core.errors import End, NapError
from nap_receiver.core.interruption import interrupted_by, is_interrupted_by
from nap_receiver.store.etcd import Entry, Etcd, EtcdAway
from nap_receiver.store.etcdctl import Reader

LEASE_SECONDS = 8
"""How long a lock outlives a holder that was killed; with etcd's own half second, under 10 s."""

_ETCD_AWAY_SECONDS = 1.0
_WATCH_SECONDS = 3600.0
_LAST_LINES_SECONDS = 1.0  # for the end of a deploy's log to come after its lock is free


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of the lock, or the push that waits: who, what, since when (seconds since the epoch), on which host,
    and its log.

    `what` is the commit, or the subject of another change; `doing` is a phrase: `deploying 1a2b3c4`.
    """

    who: str
    what: str
    doing: str
    since: float
    host: str
    log: str
    cancelled_by: str = ""

    def __str__(self) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{self.who} has been {self.doing} since {since}"


class Superseded(NapError):
    """A newer push replaced this one while it waited."""

    end: ClassVar[End] = "superseded"

    def __init__(self, commit: str, newer: str) -> None:
        super().__init__(f"{commit} was not deployed: superseded by {newer}")


class Cancelled(NapError):
    """A user has cancelled the deploy or change."""

    end: ClassVar[End] = "cancelled"

    def __init__(self, doing: str, by: str) -> None:
        super().__init__(
            f"no longer {doing}: {by} cancelled it; running instances were not changed",
            advice="To try again, repeat the push or the command.",
        )


_reasons: list[NapError] = []
"""Why the locks of this process are lost, the first one first."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds: its key, the revision that took it, and its turn."""

    key: str
    revision: int
    turn: Turn


def turn(who: str, what: str, doing: str, log: Path) -> Turn:
    """Return a new turn of this process on this host."""
    return Turn(who=who, what=what, doing=doing, since=time.time(), host=socket.gethostname(), log=str(log))


def whose_turn(etcd: Reader, root: str) -> Turn | None:
    """Return the holder of the lock of the app whose keys are below `root`; None if it is free."""
    entry = etcd.get(f"{root}/lock")
    return _turn(entry) if entry else None


@contextmanager
def deploy_lock(
    etcd: Etcd, root: str, mine: Turn, patience: float, channel: Channel, *, supersedes: bool
) -> Iterator[Lock]:
    """Hold the lock of the app whose keys are below `root` during the block.

    A caller that waits sees the holder and its log, for at most `patience` seconds. With `supersedes` it replaces a
    push that already waits, and raises `Superseded` when a newer push replaces it. In the block, `NapError` is raised
    (in the main thread) as soon as the lock is lost or the deploy is cancelled.
    """
    with etcd.lease(LEASE_SECONDS) as lease:
        revision = _wait(etcd, root, mine, patience, channel, lease, supersedes=supersedes)
        lock = Lock(f"{root}/lock", revision, mine)
        with _interrupted_when_over(etcd, lock):
            yield lock


def cancel(etcd: Etcd, root: str, who: str, timeout: float) -> Turn | None:
    """Cancel the running deploy; return its turn when it has ended; None if none is running.

    Raises `NapError` when it has not ended after `timeout` seconds.
    """
    key = f"{root}/lock"
    while entry := etcd.get(key):
        holder = _turn(entry)
        marked = msgspec.structs.replace(holder, cancelled_by=who)
        if revision := etcd.write({key: marked}, unchanged={key: entry.revision}, lease=entry.lease):
            if any(change.value is None for change in etcd.changes([key], revision, timeout)):
                return holder
            raise NapError(f"{holder} and did not stop within {timeout:g} s")
    return None


def _wait(etcd: Etcd, root: str, mine: Turn, patience: float, channel: Channel, lease: Any, *, supersedes: bool) -> int:
    """Take the lock as soon as it is free; return the revision."""
    lock, queue = f"{root}/lock", f"{root}/next"
    give_up = time.monotonic() + patience
    # A newer push does not overtake one that waits, which would deploy an older commit after it.
    if taken := etcd.write({lock: mine}, unchanged={lock: 0, queue: 0} if supersedes else {lock: 0}, lease=lease):
        return taken
    place = etcd.put(queue, mine, lease=lease) if supersedes else 0
    while True:
        free = {lock: 0, queue: place} if supersedes else {lock: 0}
        taken = etcd.write({lock: mine} | ({queue: None} if supersedes else {}), unchanged=free, lease=lease)
        if taken:
            return taken
        since = etcd.revision()  # of the lock's own revision etcd may know no more
        holder, waiting = etcd.get(lock), etcd.get(queue)
        if supersedes and (waiting is None or waiting.revision != place):
            newer = _turn(waiting) if waiting else None
            raise Superseded(mine.what, f"{newer.who}'s push of {newer.what}" if newer else "a newer push")
        if holder:
            doing = _turn(holder)
            channel.step(f"waiting: {doing}")
            with channel.waiting(f"waiting: {doing}"), _shown_log(doing, channel):
                _await_change(etcd, lock, queue, since, give_up, doing)


def _await_change(etcd: Etcd, lock: str, queue: str, since: int, give_up: float, doing: Turn) -> None:
    patience = max(0.0, give_up - time.monotonic())
    for change in etcd.changes([lock, queue], since, patience):
        if change.key == queue or change.value is None:
            return
    raise NapError(f"nothing was changed: {doing} and has not finished", advice="Try again later.")


@contextmanager
def _shown_log(doing: Turn, channel: Channel) -> Iterator[None]:
    """Show the log of the other deploy during the block."""
    if doing.host != socket.gethostname():
        channel.detail(f"its log is on {doing.host}")
        yield
        return
    if not Path(doing.log).is_file():
        yield
        return
    with follow(Path(doing.log)) as lines:

        def show() -> None:
            for line in lines:
                channel.detail(f"| {line}")

        shown = threading.Thread(target=show, daemon=True)
        shown.start()
        yield
        shown.join(_LAST_LINES_SECONDS)


@contextmanager
def _interrupted_when_over(etcd: Etcd, lock: Lock) -> Iterator[None]:
    """Raise in the main thread when the lock is lost, or its deploy cancelled."""
    over, leaving = threading.Event(), threading.Lock()
    own = not is_interrupted_by(signal.SIGUSR1)  # a rename holds two locks

    def watch() -> None:
        while not over.is_set():
            with suppress(EtcdAway):  # it is asked again; the lock's lease outlives a restart of etcd
                try:
                    reason = why_over(etcd, lock)
                except ValueError:  # grpc's, for a connection that is closed as the block ends
                    if not over.is_set():
                        raise
                    return
                with leaving:
                    if not over.is_set():
                        _reasons.append(reason)
                        os.kill(os.getpid(), signal.SIGUSR1)
                return
            over.wait(_ETCD_AWAY_SECONDS)

    with interrupted_by(signal.SIGUSR1, lambda: _reasons[0]) if own else nullcontext():
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            with leaving:
                over.set()
            if own:
                _reasons.clear()


def why_over(etcd: Etcd, lock: Lock) -> NapError:
    """Wait until the deploy must end; return the reason."""
    key, mine = lock.key, lock.turn
    while True:
        since = etcd.revision()  # of the lock's own revision etcd may know no more
        entry = etcd.get(key)
        if entry is None:
            break
        now = _turn(entry)
        if now.cancelled_by:
            return Cancelled(mine.doing, now.cancelled_by)
        if (now.since, now.log) != (mine.since, mine.log):
            break
        next(etcd.changes([key], since, _WATCH_SECONDS), None)
    return NapError(
        f"no longer {mine.doing}: lost the deploy lock: no answer from etcd for {LEASE_SECONDS} s; "
        "running instances were not changed",
        advice="Repeat the push or the command.",
    )


def _turn(entry: Entry) -> Turn:
    return msgspec.convert(entry.value, Turn)
