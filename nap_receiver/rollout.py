"""From an image to a release that serves: what every change of an app has in common, under the app's lock.

`under_way` holds the lock; `release` writes a release down, renders its units, starts them, waits for them, makes it
the current one, and retires the one before.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.build_log import new_log, remove_old_logs
from nap_receiver.channel import Channel
from nap_receiver.discovery import (
    Announcement,
    Silent,
    Wait,
    announced,
    await_announcements,
    await_withdrawn,
    good,
    last_words,
    show,
)
from nap_receiver.domains import url_of
from nap_receiver.errors import NapError
from nap_receiver.etcd import Etcd, connect
from nap_receiver.local import Local
from nap_receiver.lock import Lock, deploy_lock, turn, why_over
from nap_receiver.one_off import OneOff, run_to_its_end
from nap_receiver.placement import Placement
from nap_receiver.push import checked_setting, mark_release
from nap_receiver.release import Ledger, Release, in_shell
from nap_receiver.routes import dialled, is_routing, leads_to
from nap_receiver.scheduler import Scheduler
from nap_receiver.settings import Settings
from nap_receiver.state import State
from nap_receiver.units import LEASE_SECONDS, render

RELEASE_COMMAND = "release.1"
"""How the container is labelled that runs a release's release command."""

WITHDRAW_SECONDS = LEASE_SECONDS + 10
"""How long an announcement may take to go: of a machine that was lost, until its lease ends."""

_ROUTES_SECONDS = 2
_LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True)
class App:
    """An app that somebody changes here, and what is needed for that."""

    name: str
    repository: Path
    who: str
    state: State
    settings: Settings
    channel: Channel


@dataclass(frozen=True)
class Deploy:
    """A deploy under way: what it works with while it holds the app's lock."""

    app: App
    started: float
    """When, by the monotonic clock."""
    timeout: int
    """Seconds that the app has to answer."""
    scheduler: Scheduler
    etcd: Etcd
    ledger: Ledger
    lock: Lock

    @property
    def settings(self) -> Settings:
        return self.app.settings

    @property
    def channel(self) -> Channel:
        return self.app.channel


@contextmanager
def under_way(app: App, what: str, doing: str, *, supersedes: bool = False) -> Iterator[Deploy]:
    """Hold the app's deploy lock for the block, and log what is said; first, take away what a killed deploy left.

    `what` names the log (`1a2b3c4`, `web=2`), `doing` tells those who wait (`deploying 1a2b3c4`).
    """
    log = app.channel.keep_log(new_log(app.state, app.name, what))
    remove_old_logs(app.state, app.name)
    timeout, scheduler = answer_timeout(app.repository, app.settings), scheduler_of(app.state, app.settings)
    with connect(app.settings.etcd) as etcd:
        ledger = Ledger(etcd, app.settings.etcd, app.name)
        mine = turn(app.who, what, doing, log)
        patience = app.settings.deploy.build_timeout
        with deploy_lock(etcd, ledger.root, mine, patience, app.channel, supersedes=supersedes) as lock:
            deploy = Deploy(app, time.monotonic(), timeout, scheduler, etcd, ledger, lock)
            take_away_leftovers(deploy)
            yield deploy


def take_away_leftovers(deploy: Deploy) -> None:
    """Take away what a deploy that was killed has left: a release that never went live, or one not yet retired."""
    ledger, places = deploy.ledger, deploy.settings.etcd
    for release in ledger.unfinished():
        deploy.channel.step(f"Taking away {release.name}, whose deploy was killed")
        take_away(release, "its deploy was killed", deploy)
    current = ledger.current()
    kept = {instance.unit for instance in current.instances} if current else set()
    left = [f"{ledger.app}.{instance}" for instance in sorted(good(deploy.etcd, places, ledger.app))]
    retire(ledger.app, [unit for unit in left if unit not in kept], deploy)


def scheduler_of(state: State, settings: Settings) -> Scheduler:
    """What runs units under these settings."""
    if settings.scheduler == "fleet":
        from nap_receiver.fleet import Fleet  # its library is for those who call it

        return Fleet(state, settings)
    return Local(state)


def release(draft: Release, placement: Placement, deploy: Deploy, *, is_new: bool = True) -> None:
    """Give the draft its number, write it down and roll it out.

    One that `is_new`, of other code or another configuration than the one before, runs its release command first.
    """
    before = deploy.scheduler.running(draft.app)
    written = deploy.ledger.write(draft, deploy.ledger.next_number(before))
    mark_release(deploy.app.repository, written.name, written.commit)
    with taken_away_on_failure(written, deploy):
        if is_new and written.release_command:
            run_release_command(written, deploy)
        addresses = roll_out(written, placement, deploy)
    seconds = time.monotonic() - deploy.started
    state = "is live"
    if rest := written.at_rest():
        why, how = rest
        state = f"is live, and {why}: {how} starts it"
    url = url_of(written.app, deploy.settings)
    show(f"{written.app} {written.name} {state} ({seconds:.1f} s)", url, addresses, deploy.channel)
    if before:
        retire(written.app, before, deploy)
    else:
        await_routes(deploy)


def run_release_command(release: Release, deploy: Deploy) -> None:
    """Run what the Procfile names `release`, before anything of the release starts."""
    deploy.channel.step(f"Running the release command of {release.name}: {release.release_command}")
    settings = deploy.settings
    one_off = OneOff(release, RELEASE_COMMAND, in_shell(release.release_command), deploy.app.state, settings)
    run_to_its_end(one_off, "the release command", release.app, settings.deploy.build_timeout, deploy.channel)


def roll_out(release: Release, placement: Placement, deploy: Deploy) -> list[Announcement]:
    """Start the release's instances and wait until all of them are good; from then on it is the current one."""
    settings, scheduler, etcd = deploy.settings, deploy.scheduler, deploy.etcd
    units = [render(each, settings, scheduler.machine, settings.engine.url, placement) for each in release.instances]
    addresses: list[Announcement] = []
    if units:
        deploy.channel.step(f"Starting {release.name}: {', '.join(instance.label for instance in release.instances)}")
        before = etcd.revision()
        scheduler.start(units)
        wait = Wait(before, deploy.timeout, lambda: scheduler.require_placed(units))
        addresses = await_announcements(etcd, settings.etcd, release, wait, deploy.channel)
    if not deploy.ledger.make_current(release, deploy.lock):
        raise why_over(etcd, deploy.lock)
    return addresses


@contextmanager
def taken_away_on_failure(release: Release, deploy: Deploy) -> Iterator[None]:
    """Whatever ends the block early leaves no unit, container or key of `release`, only its record."""
    try:
        yield
    except BaseException as error:
        try:
            take_away(
                release, str(error) or type(error).__name__, deploy, silent=error if isinstance(error, Silent) else None
            )
        except NapError as remains:
            raise NapError(
                f"{error}; and {release.name} could not be taken away: {remains}",
                advice=[*remains.advice, "The next deploy takes away what is left."],
            ) from error
        raise


def take_away(release: Release, reason: str, deploy: Deploy, silent: Silent | None = None) -> None:
    """Leave no unit, container or key of `release`, only its record; a `silent` instance says what it printed."""
    etcd, places = deploy.etcd, deploy.settings.etcd
    if release.release_command:
        OneOff(release, RELEASE_COMMAND, (), deploy.app.state, deploy.settings).remove()
    deploy.scheduler.discard([instance.unit for instance in release.instances])
    if silent:
        silent.words = last_words(etcd, places, silent.instance)
    await_withdrawn(etcd, places, release.app, [each.key for each in release.instances], WITHDRAW_SECONDS)
    deploy.ledger.mark_failed(release, reason)


def retire(app: str, instances: Sequence[str], deploy: Deploy) -> None:
    """Withdraw and stop these instances of the app. A failure here is told, but the new release is live."""
    if not instances:
        return
    try:
        with deploy.channel.waiting("retiring the release before"):
            withdraw_and_stop(app, instances, deploy)
    except NapError as error:
        deploy.channel.trouble(f"{app}: the release before could not be retired: {error}; the next deploy tries again")


def withdraw_and_stop(app: str, instances: Sequence[str], deploy: Deploy) -> None:
    """Withdraw these instances of the app, and stop them when no visitor is led to them any more."""
    deploy.scheduler.withdraw(instances)
    keys = [unit.removeprefix(f"{app}.") for unit in instances]
    await_withdrawn(deploy.etcd, deploy.settings.etcd, app, keys, WITHDRAW_SECONDS)
    await_routes(deploy)
    deploy.scheduler.stop(instances)


def await_routes(deploy: Deploy) -> None:
    """Wait until the router, where it runs here, sends visitors to what is announced now: who asks next gets that."""
    app = deploy.app
    if not is_routing(app.state):
        return
    give_up = time.monotonic() + _ROUTES_SECONDS
    while time.monotonic() < give_up:
        now = {dialled(each.host, each.port) for each in announced(deploy.etcd, app.settings.etcd, app.name)}
        if leads_to(app.state, app.name) == now:
            return
        time.sleep(_LOOK_AGAIN_SECONDS)
    deploy.channel.trouble(
        f"{app.name}: the router has not taken this up within {_ROUTES_SECONDS} s; `nap status` tells what is down"
    )


def answer_timeout(repository: Path, settings: Settings) -> int:
    """Seconds that the app has to answer: `nap.timeout` of its repository's git config, else the settings'."""
    configured = checked_setting(repository, "timeout", str.isdecimal, "a whole number of seconds", "SECONDS")
    return settings.deploy.answer_timeout if configured is None else int(configured)
