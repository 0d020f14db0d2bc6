"""One run of an instance's container: find out when it is good, announce it, and withdraw it when it is not.

Read `attend` from top to bottom. It runs in a thread of its own, which ends soon after the run has.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nap_receiver.agent.announcer import Announcer, Reports
from nap_receiver.agent.containers import Found, InstanceContainers
from nap_receiver.agent.tries import AskedContainer, Try, is_open, ran, sockets, tried, waited_for_processor
from nap_receiver.core.settings import Settings
from nap_receiver.model.health import Answer, Check
from nap_receiver.model.release import WEB
from nap_receiver.store.assignments import Watched

_LISTEN_SECONDS = 0.05
_TRY_AGAIN_SECONDS = 0.1
_HEALTHCHECK_AGAIN_SECONDS = 1.0
_HEALTHCHECK_SECONDS = 30.0  # Dockerfile reference, HEALTHCHECK
_READINESS_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_SETTLED_LOOKS, _SETTLED_NANOSECONDS = 5, 100_000_000
_STARVED_AFTER_LOOKS, _STARVED_EVERY_LOOKS = 5, 3


class Over(Exception):
    """The run has ended, or is not attended any more."""


@dataclass(frozen=True)
class Places:
    """Where in etcd an instance's announcement and its reports are."""

    announcement: str
    checks: str
    exit: str


def places_of(watched: Watched, settings: Settings) -> Places:
    """The keys of an instance."""
    etcd = settings.etcd
    place = etcd.announcements_of(watched.app) if watched.process == WEB else etcd.up_of(watched.app)
    return Places(
        f"{place}{watched.key}", etcd.checks_of(watched.app, watched.key), f"{etcd.exits_of(watched.app)}{watched.key}"
    )


@dataclass
class Run:
    """One run of a container: from its start to its end."""

    found: Found
    watched: Watched
    containers: InstanceContainers
    announcer: Announcer
    reports: Reports
    settings: Settings
    fail: Callable[["Run", str, int], None]
    """Called with why it is not good any more: in words, or the number of a check."""
    is_good: bool = False
    """Whether it has passed what it must pass at the start."""
    is_over: threading.Event = field(default_factory=threading.Event)
    warned: list[int] = field(default_factory=list)
    is_starting: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def places(self) -> Places:
        return places_of(self.watched, self.settings)

    @property
    def container(self) -> AskedContainer:
        return AskedContainer(self.found.id, self.found.address, self.containers.api)

    @property
    def announcement(self) -> dict[str, Any]:
        """What is written to etcd while it is good."""
        told = self.watched
        facts: dict[str, Any] = {"host": str(self.settings.local.host)}
        if told.port:
            facts |= {"port": self.found.ports[f"{told.port}/tcp"], "ports": self.found.ports}
        facts |= {"app": told.app, "release": told.release, "process": told.process, "instance": told.label}
        if told.protocol != "http":
            facts["protocol"] = told.protocol
        if self.warned:
            facts["warned"] = self.warned
        return facts

    def announce(self) -> None:
        """Announce it, unless the run is over."""
        with self.lock:
            if not self.is_over.is_set():
                self.announcer.announce(self.places.announcement, self.announcement)

    def end(self) -> None:
        """Withdraw it for good: whatever of its attendance still goes on announces nothing."""
        with self.lock:
            self.is_over.set()
            self.announcer.withdraw(self.places.announcement)

    def wait(self, seconds: float) -> None:
        """Let so many seconds pass. Raises `Over`."""
        if self.is_over.wait(seconds):
            raise Over


def attend(run: Run) -> None:
    """Announce an instance while it is good; returns when there is nothing more to look at, or the run is over."""
    try:
        if not run.is_good:
            with _observed_start(run):
                _await_good(run)
            run.is_good = True
        run.is_starting = False
        run.announce()
        _watch(run)
    except Over:
        pass


def _await_good(run: Run) -> None:
    """Wait until the image's HEALTHCHECK, the checks for the start, and the port all pass. Raises `Over`."""
    watched, is_checked = run.watched, False
    if run.found.health:
        _await_healthy(run)
        is_checked = True
    for number, check in enumerate(watched.checks, 1):
        if check.at_start:
            is_checked = True
            run.wait(check.initial_delay)
            _require_passed(run, number, check)
    if watched.port and (not is_checked or watched.port_guessed):
        while not is_open(run.found.address, watched.port, _LISTEN_SECONDS):
            if is_checked and not _is_open_to_others(run):
                return
            run.wait(_TRY_AGAIN_SECONDS)


def _require_passed(run: Run, number: int, check: Check) -> None:
    """Try a check until it passes; where it fails too often, the run is over, unless it only warns."""
    if not _passes(run, number, check):
        _forgive_or_fail(run, number, check)


def _passes(run: Run, number: int, check: Check) -> bool:
    """Whether a check passes in as many tries as it has; what a failed one was answered is told while it starts."""
    key = f"{run.places.checks}{number}-answer"
    for left in reversed(range(check.attempts)):
        result = _tried(run, check)
        if result.passed:
            if left < check.attempts - 1 and run.is_starting:
                run.reports.forget(key)
            return True
        if result.answer and run.is_starting:
            run.reports.write(key, result.answer)
        if left:
            run.wait(check.wait)
    return False


def _tried(run: Run, check: Check) -> Try:
    if check.uptime:
        run.wait(check.uptime)
        return Try(True)
    result = tried(check, run.watched, run.container)
    run.wait(0)
    return result


def _forgive_or_fail(run: Run, number: int, check: Check) -> None:
    """After the last try of a check: where it only warns, its number is announced, else the run is over."""
    if check.failure_command:
        ran(check.failure_command, check.timeout, run.container)
    if check.warn:
        if number not in run.warned:
            run.warned.append(number)
        return
    run.fail(run, "", number)
    raise Over


def _await_healthy(run: Run) -> None:
    """Wait for the image's HEALTHCHECK.

    The engine asks first when its interval is over, which may be longer than a deploy may take; so it is asked here at
    once, and then each second. After a run that takes too long the engine alone decides: it ends what nap cannot.
    """
    kind, *words = run.found.healthcheck.get("Test") or ["NONE"]
    command = [*run.found.shell, *words] if kind == "CMD-SHELL" else words
    seconds = (run.found.healthcheck.get("Timeout") or 0) / 1e9 or _HEALTHCHECK_SECONDS
    key, tries, goes_on = f"{run.places.checks}0-answer", 0, False
    while True:
        now = run.containers.find(run.found.unit)
        if now and now.health == "healthy":
            break
        if not goes_on:
            tries += 1
            result = ran(command, math.ceil(seconds), run.container)
            if result.passed:
                break
            goes_on = result.goes_on
            run.wait(0)
            if result.answer:
                run.reports.write(key, result.answer)
        run.wait(_HEALTHCHECK_AGAIN_SECONDS)
    if tries > 1:
        run.reports.forget(key)


def tell_unhealthy(run: Run) -> None:
    """Tell what the image's HEALTHCHECK printed when the engine called the container unhealthy."""
    now = run.containers.find(run.found.unit)
    if now and (log := (now.about["State"].get("Health") or {}).get("Log")):
        last = log[-1]
        answer = Answer("", int(last["ExitCode"]), said=last["Output"].encode()[-2000:])
        run.reports.write(f"{run.places.checks}0-answer", answer)


def _watch(run: Run) -> None:
    """Look after the checks that are asked from now on, each in a thread of its own but for the last."""
    watches: list[tuple[Callable[[Run, int, Check], None], int, Check]] = []
    for number, check in enumerate(run.watched.checks, 1):
        if check.type in {"liveness", ""} and not check.uptime:
            watches.append((_stay_alive, number, check))
        elif check.type == "readiness":
            watches.append((_stay_ready, number, check))
    for watch, number, check in watches:
        threading.Thread(target=_until_over, args=(watch, run, number, check), daemon=True).start()


def _until_over(watch: Callable[[Run, int, Check], None], run: Run, number: int, check: Check) -> None:
    try:
        while True:
            watch(run, number, check)
    except Over:
        pass


def _stay_alive(run: Run, number: int, check: Check) -> None:
    """One that fails its liveness too often in a row is ended."""
    failures = 0
    while failures < check.attempts:
        run.wait(check.wait)
        failures = 0 if _tried(run, check).passed else failures + 1
    _forgive_or_fail(run, number, check)


def _stay_ready(run: Run, number: int, check: Check) -> None:
    """One that fails its readiness is not announced until it passes again; its container runs on."""
    run.wait(_READINESS_SECONDS)
    if _passes(run, number, check):
        return
    if check.failure_command:
        ran(check.failure_command, check.timeout, run.container)
    if check.warn:
        return
    run.announcer.withdraw(run.places.announcement)
    while not _tried(run, check).passed:
        run.wait(check.wait)
    run.announce()


def _is_open_to_others(run: Run) -> bool:
    """Whether a socket of the container listens on all addresses."""
    found = sockets(run.found.pid, run.found.address) or ""
    return any(set(each.partition(":")[0]) == {"0"} for each in found.split())


@contextmanager
def _observed_start(run: Run) -> Iterator[None]:
    """Beside a start, tell where the container listens, and how long it has waited for a processor."""
    is_up = threading.Event()
    observer = threading.Thread(target=_observe, args=(run, is_up), daemon=True)
    observer.start()
    try:
        yield
    finally:
        is_up.set()


def _observe(run: Run, is_up: threading.Event) -> None:
    """Tell where it listens whenever that changes, and when it has settled: when it was the same five times, a second
    apart, in each of which the container used less than a tenth of a processor. Before that it may only have begun,
    with a port for debugging, say. Whoever waits for a start allows for the time that a busy machine takes from it."""
    looks, same, used = 0, 0, 0
    seen = told = None
    while not is_up.wait(_LOOK_SECONDS) and not run.is_over.is_set():
        looks += 1
        if run.watched.port and (now := sockets(run.found.pid, run.found.address)) is not None:
            before, used = used, run.containers.processor_time(run.found.unit)
            same = same + 1 if now == seen and used - before < _SETTLED_NANOSECONDS else 0
            seen = now
            listens = {"sockets": now, "settled": same >= _SETTLED_LOOKS}
            if listens != told and not is_up.is_set():
                run.reports.write(f"{run.places.checks}listens", listens)
                told = listens
        if looks >= _STARVED_AFTER_LOOKS and (looks - _STARVED_AFTER_LOOKS) % _STARVED_EVERY_LOOKS == 0:
            waited = waited_for_processor(run.containers.pids(run.found.unit))
            if waited is not None and not is_up.is_set():
                run.reports.write(f"{run.places.checks}starved", {"waited": waited})
