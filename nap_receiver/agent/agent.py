"""The agent: it does what this machine's assignments say, follows the engine's events, and announces what is good.

It keeps no state of its own, so it can end at any time: the engine restarts containers by itself, announcements stay
while their lease lasts, and the next agent continues with both.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import requests
import urllib3
from docker.errors import APIError, DockerException

from nap_receiver.agent.announcer import Announcer, Reports
from nap_receiver.agent.attendance import Run, attend, places_of, tell_unhealthy
from nap_receiver.agent.containers import Found, InstanceContainers, NotStarted
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import log
from nap_receiver.core.ready import say_ready
from nap_receiver.core.settings import Settings, load
from nap_receiver.engine.client import engine_at
from nap_receiver.engine.container import DIGEST_LABEL
from nap_receiver.store.assignments import Assignment, Watched, assign, assignment, assignments, place_of
from nap_receiver.store.etcd import EtcdAway, connect

_EVENTS = ["start", "die", "pause", "unpause", "health_status", "oom"]
_AWAY = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError, NapError)
_TRY_AGAIN_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 60.0
_WATCH_SECONDS = 600
_NOT_STARTED_STATUS = 127  # docker-run(1), "Exit Status"


class Agent:
    """The agent of one machine."""

    def __init__(self, state: State, settings: Settings) -> None:
        self._state, self._settings = state, settings
        self._announcer = Announcer(settings.etcd, state.name)
        self._reports = Reports(settings.etcd)
        self._assignments: dict[str, Assignment] = {}
        self._knows_assignments = threading.Event()
        self._taken_over: set[str] = set()
        """The keys that an agent before this one announced, until it is known which of their instances still run."""
        self._runs: dict[str, Run] = {}
        self._good: dict[str, tuple[str, str]] = {}
        """By unit, the run that was good last: the container's id, and when it was started."""
        self._ended_by_agent: set[str] = set()
        self._out_of_memory: set[str] = set()
        self._is_ready = threading.Event()
        self._lock = threading.RLock()
        self._at_work: dict[str, bool] = {}
        """The units that something is done with, and whether it is to be looked at once more."""
        self._containers: InstanceContainers | None = None

    def run(self) -> NoReturn:
        """Do all of it until this process ends."""
        threading.Thread(target=self._follow_assignments, daemon=True).start()
        threading.Thread(target=self._say_ready, daemon=True).start()
        took_over = False
        is_away = False
        while True:
            try:
                with engine_at(self._settings.engine.url) as engine:
                    self._containers = InstanceContainers(self._state, self._settings, engine)
                    if not took_over:
                        self._take_over(self._containers)
                        took_over = True
                    is_away = False
                    self._follow(self._containers)
            except _AWAY as error:
                if not is_away:
                    log(f"the engine is away: {error}")
                is_away = True
            self._lose_sight()
            time.sleep(_TRY_AGAIN_SECONDS)

    def _say_ready(self) -> None:
        """Answer on the agent's socket that it is ready, once it follows the engine; never ends."""
        self._is_ready.wait()
        path = self._state.agent_socket
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            say_ready(listener)

    def _take_over(self, containers: InstanceContainers) -> None:
        """Go on with what an agent before this one announced, as far as it is true now; withdraw the rest."""
        places = self._settings.etcd
        with connect(places) as etcd:
            left = self._announcer.take_over(etcd)
            announced = {entry.key: entry.value for entry in etcd.below(f"{places.announcements}/").entries}
            given = assignments(etcd, places, self._state.name)
            for unit in containers.units():
                found = containers.find(unit)
                watched = found and (found.watched or (unit in given and given[unit].watched))
                if found and watched and found.runs and not found.paused:
                    key = places_of(watched, self._settings).announcement
                    if key in left and _leads_to(announced.get(key), found, watched):
                        self._good[unit] = (found.id, found.started)
                        left.discard(key)
                        self._taken_over.add(key)
            for key in left:
                etcd.delete(key)
        self._announcer.start()

    # The assignments

    def _follow_assignments(self) -> None:
        """Do what assignments say, as they come; for ever, also after etcd was away."""
        places, is_away = self._settings.etcd, False
        place, apps = place_of(places, self._state.name), f"{places.prefix}/apps/"
        while True:
            try:
                with connect(places) as etcd:
                    since = etcd.revision()
                    with self._lock:
                        before = set(self._assignments)
                        self._assignments = assignments(etcd, places, self._state.name)
                        units = before | set(self._assignments)
                    self._knows_assignments.set()
                    is_away = False
                    self._look_at_all(units)
                    for change in etcd.changes([place, apps], since, _WATCH_SECONDS):
                        if change.key.startswith(place):
                            self._take(change.key.removeprefix(place), assignment(change.value))
                        elif change.value is None and change.key.endswith("/current"):
                            self._in_thread(self._remove_stopped, change.key.removeprefix(apps).partition("/")[0])
            except EtcdAway as error:
                if not is_away:
                    log(error)
                is_away = True
                time.sleep(_TRY_AGAIN_SECONDS)

    def _take(self, unit: str, given: Assignment | None) -> None:
        with self._lock:
            if given is None:
                self._assignments.pop(unit, None)
            else:
                self._assignments[unit] = given
        self._look_at(unit)

    def _look_at_all(self, units: set[str]) -> None:
        for unit in sorted(units):
            self._look_at(unit)

    def _look_at(self, unit: str) -> None:
        """Do what the unit's assignment says, in a thread; one at a time for each unit."""
        with self._lock:
            if unit in self._at_work:
                self._at_work[unit] = True
                return
            self._at_work[unit] = False
        self._in_thread(self._work_on, unit)

    def _work_on(self, unit: str) -> None:
        pause = 1.0
        while True:
            is_done = self._is_done(unit)
            with self._lock:
                again, self._at_work[unit] = self._at_work[unit], False
                if is_done and not again:
                    del self._at_work[unit]
                    return
            if not is_done and not again:
                self._wait_for_news(unit, pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _wait_for_news(self, unit: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._at_work[unit]:
            time.sleep(_TRY_AGAIN_SECONDS)

    def _is_done(self, unit: str) -> bool:
        """Do what the unit's assignment says now; false where that has to be tried again."""
        given = self._assignments.get(unit)
        containers = self._containers
        if containers is None:
            return False
        try:
            if given is None:
                self._restore(unit, containers)
            elif given.is_to_run:
                self._have_run(unit, given, containers)
            elif given.state == "stopped":
                self._stop(unit, containers)
            else:
                self._discard(unit, given, containers)
            return True
        except NotStarted as error:
            log(f"{unit}: {error}")
            if given and given.watched:
                self._report(given.watched, _NOT_STARTED_STATUS, error=str(error))
        except _AWAY as error:
            log(f"{unit}: {error}")
        return False

    def _restore(self, unit: str, containers: InstanceContainers) -> None:
        """Where etcd has lost the assignment of an instance that runs, write it again as the container has it."""
        found = containers.find(unit)
        if found and found.runs and found.watched:
            log(f"{unit} runs, and etcd had no assignment of it")
            again = Assignment("running", found.digest, found.watched)
            with connect(self._settings.etcd) as etcd:
                assign(etcd, self._settings.etcd, self._state.name, [(unit, again)])

    def _have_run(self, unit: str, given: Assignment, containers: InstanceContainers) -> None:
        """Have an instance run, in a container that is as the assignment says."""
        found = containers.find(unit)
        if found and given.body and found.digest != given.body:
            self._end_run(unit)
            containers.stop(unit, self._settings.deploy.grace)
            containers.remove(unit)
            found = None
        if found is None:
            with connect(self._settings.etcd) as etcd:
                app, _, key = unit.partition(".")
                body = etcd.get(self._settings.etcd.container_of(app, key))
                if body is None:
                    log(f"{unit} cannot be created: etcd does not have what its container is to be")
                    etcd.delete(f"{place_of(self._settings.etcd, self._state.name)}{unit}")
                    return
            self._remove_stopped(app)
            containers.create(unit, given, body.value)
        if found:
            containers.have_restarted(found)
        if found is None or not (found.runs or found.restarting):
            containers.start(unit)
        if given.state == "withdrawn":
            self._end_run(unit)
        else:
            self._begin_run(unit, containers)

    def _stop(self, unit: str, containers: InstanceContainers) -> None:
        """Stop an instance, once requests that are on their way to it have arrived.

        Its container is kept for what it printed, until a new one of its app is created.
        """
        self._end_run(unit)
        found = containers.find(unit)
        if found and (found.runs or found.restarting):
            time.sleep(self._settings.deploy.drain)
            self._ended_by_agent.add(unit)
            containers.stop(unit, self._settings.deploy.grace)
        app = unit.partition(".")[0]
        with connect(self._settings.etcd) as etcd:
            is_destroyed = etcd.get(f"{self._settings.etcd.root_of(app)}/current") is None
        if is_destroyed or not found:
            containers.remove(unit)
            self._forget(unit)
        else:
            self._remove_stopped(app, but_newest=True)

    def _discard(self, unit: str, given: Assignment, containers: InstanceContainers) -> None:
        """End an instance at once, and report what it printed last."""
        self._end_run(unit)
        self._ended_by_agent.add(unit)
        found = containers.find(unit)
        if found:
            containers.stop(unit, 0)
            if given.watched and (ended := containers.find(unit)):
                state = ended.about["State"]
                self._report(given.watched, state["ExitCode"], output=containers.last_lines(unit))
            containers.remove(unit)
        self._forget(unit)

    def _forget(self, unit: str) -> None:
        self._good.pop(unit, None)
        with connect(self._settings.etcd) as etcd:
            etcd.delete(f"{place_of(self._settings.etcd, self._state.name)}{unit}")

    def _remove_stopped(self, app: str, *, but_newest: bool = False) -> None:
        """Remove the containers of an app that are kept for what they have printed, and their assignments.

        With `but_newest`, those of its last release that has stopped stay.
        """
        containers = self._containers
        with self._lock:
            given = self._assignments.items()
            stopped = [unit for unit, each in given if each.state == "stopped" and unit.startswith(f"{app}.")]
        if but_newest:
            newest = max(map(_release_of, stopped), default=0)
            stopped = [unit for unit in stopped if _release_of(unit) < newest]
        if containers is None:
            return
        for unit in stopped:
            found = containers.find(unit)
            if found is None or not (found.runs or found.restarting):
                containers.remove(unit)
                self._forget(unit)

    # The engine

    def _follow(self, containers: InstanceContainers) -> None:
        """Take up how all containers are now, and each event; until the engine is away."""
        filters = {"type": "container", "label": DIGEST_LABEL, "event": _EVENTS}
        events = containers.api.events(since=int(time.time()), filters=filters, decode=True)
        self._knows_assignments.wait()
        for unit in containers.units():
            self._begin_run(unit, containers)
            self._look_at(unit)
        with self._lock:
            attended = {run.places.announcement for run in self._runs.values()}
        for key in self._taken_over - attended:  # it ended before its events were followed
            self._announcer.withdraw(key)
        self._taken_over = set()
        self._is_ready.set()
        for event in events:
            actor = event["Actor"]
            if unit := containers.unit(actor["Attributes"].get("name", "")):
                self._take_event(unit, event["Action"], actor, containers)

    def _take_event(self, unit: str, action: str, actor: dict[str, Any], containers: InstanceContainers) -> None:
        if action in {"start", "unpause"}:
            self._begin_run(unit, containers)
        elif action == "pause":
            self._end_run(unit)
        elif action == "oom":
            self._out_of_memory.add(unit)
        elif action == "die":
            run = self._end_run(unit)
            was_ended, was_too_large = unit in self._ended_by_agent, unit in self._out_of_memory
            self._ended_by_agent.discard(unit)
            self._out_of_memory.discard(unit)
            given = self._assignments.get(unit)
            watched = (run.watched if run else None) or (given and given.watched)
            if watched and given and given.is_to_run and not was_ended:
                status = int(actor["Attributes"].get("exitCode", 0))
                self._in_thread(self._report_end, watched, status, was_too_large, containers)
            self._look_at(unit)  # the engine starts no container again that somebody has stopped by hand
        elif action == "health_status: unhealthy" and (run := self._runs.get(unit)):
            tell_unhealthy(run)
            self._fail(run, "its HEALTHCHECK fails", 0)

    def _begin_run(self, unit: str, containers: InstanceContainers) -> None:
        """Attend the run of a unit's container, if it is one to be announced."""
        found = containers.find(unit)
        given = self._assignments.get(unit)
        watched = given.watched if given else found and found.watched
        if not found or not watched or not found.runs or found.paused or (given and given.state != "running"):
            return
        with self._lock:
            before = self._runs.get(unit)
            this = (found.id, found.started)
            if before and (before.found.id, before.found.started) == this:
                return
            run = Run(found, watched, containers, self._announcer, self._reports, self._settings, self._fail)
            run.is_good = self._good.get(unit) == this
            self._runs[unit] = run
        if before:
            before.end()
        threading.Thread(target=self._attend, args=(run,), daemon=True).start()

    def _attend(self, run: Run) -> None:
        try:
            attend(run)
            if run.is_good:
                self._good[run.found.unit] = (run.found.id, run.found.started)
        except _AWAY as error:
            log(f"{run.found.unit}: {error}")

    def _end_run(self, unit: str) -> Run | None:
        """Withdraw what is announced of a unit; the run that was attended."""
        with self._lock:
            run = self._runs.pop(unit, None)
        if run:
            run.end()
        return run

    def _lose_sight(self) -> None:
        """Withdraw everything: without the engine no port leads anywhere."""
        self._containers = None
        for unit in list(self._runs):
            self._end_run(unit)

    def _fail(self, run: Run, why: str, check: int) -> None:
        """Withdraw an instance that is not good any more, report why, and restart it."""
        unit, containers = run.found.unit, run.containers
        if self._runs.get(unit) is run:
            self._end_run(unit)
        self._report(run.watched, 0, error=why, check=check, output=containers.last_lines(unit))
        self._ended_by_agent.add(unit)
        self._in_thread(containers.restart, unit, self._settings.deploy.grace)

    # Reports

    def _report_end(self, watched: Watched, status: int, was_too_large: bool, containers: InstanceContainers) -> None:
        found = containers.find(watched.unit)
        error = found.about["State"]["Error"] if found else ""
        if found and found.memory and (was_too_large or containers.was_too_large(found, status)):
            error = f"it used more memory than the {found.memory} bytes that it may"
        output = containers.last_lines(watched.unit)
        given = self._assignments.get(watched.unit)
        if given and given.is_to_run:  # else somebody has taken it away meanwhile
            self._report(watched, status, error=error, output=output)

    def _report(self, watched: Watched, status: int, *, error: str = "", check: int = 0, output: bytes = b"") -> None:
        told = {"status": status, "check": check, "error": error.encode(), "output": output}
        self._reports.write(places_of(watched, self._settings).exit, told)

    def _in_thread(self, function: Callable[..., None], *arguments: object) -> None:
        def called() -> None:
            with suppress(APIError):  # what it was done to is gone
                function(*arguments)

        threading.Thread(target=called, daemon=True).start()


def _leads_to(announcement: object, found: Found, watched: Watched) -> bool:
    """Whether an announcement leads to this container; one without a port is of an instance that answers nobody."""
    if not watched.port:
        return True
    return isinstance(announcement, dict) and announcement.get("port") == found.ports.get(f"{watched.port}/tcp")


def _release_of(unit: str) -> int:
    """The number of the release that `hello.v3.web.1` is of."""
    return int(unit.split(".")[1][1:])


def main() -> NoReturn:
    """Be the `nap-agent` program: the agent of the nap whose state directory is the first argument."""
    keep_private()
    state = state_at(sys.argv[1])
    fcntl.flock(os.open(state.run / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)
    # What this process got as its environment is that of the nap up that started supervisord.
    Agent(state, load(state, environ={}).settings).run()
