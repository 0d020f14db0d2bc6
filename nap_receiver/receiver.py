"""The story of a deploy, from the pushed commit to the printed address. Read `receive` from top to bottom.

Its first step, which of the pushed refs deploys, is `push.deploying`: most pushes end there, and need none of this.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nap_receiver.build_log import new_log
from nap_receiver.channel import Channel
from nap_receiver.checkout import check_out
from nap_receiver.deadline import deadline
from nap_receiver.discovery import (
    Announcement,
    Silent,
    Wait,
    announced,
    await_announcements,
    await_withdrawn,
    last_words,
    serving,
    show,
)
from nap_receiver.errors import NapError
from nap_receiver.etcd import Etcd, connect
from nap_receiver.image import Engine, Image, engine_at
from nap_receiver.local import Local
from nap_receiver.lock import Lock, Superseded, deploy_lock, turn, why_over
from nap_receiver.placement import Placement
from nap_receiver.push import Deployment, checked_setting, commit_of, mark_release
from nap_receiver.release import Ledger, Release
from nap_receiver.repository import remove
from nap_receiver.scheduler import Scheduler
from nap_receiver.settings import Settings
from nap_receiver.state import State
from nap_receiver.units import LEASE_SECONDS, render

WITHDRAW_SECONDS = LEASE_SECONDS + 10
"""How long an announcement may take to go: of a machine that was lost, until its lease ends."""


@dataclass(frozen=True)
class Deploy:
    """A deploy under way: what it works with while it holds the app's lock."""

    started: float
    """When, by the monotonic clock."""
    timeout: int
    """Seconds that the app has to answer."""
    settings: Settings
    scheduler: Scheduler
    etcd: Etcd
    ledger: Ledger
    lock: Lock
    channel: Channel


def receive(asked: Deployment, state: State, settings: Settings, channel: Channel) -> None:
    """Make the pushed commit a running, announced release.

    Raises `NapError` when that fails; then the release before still serves, and nothing of the new one is left.
    """
    commit, who = asked.commit[:7], asked.pusher
    with under_way(asked.app, asked.repository, who, commit, state, settings, channel, supersedes=True) as deploy:
        current = deploy.ledger.current()
        if current and current.commit == asked.commit and (there := serving(deploy.etcd, settings.etcd, current)):
            show(f"{current.app} {current.name} already runs {commit}", there, channel)
            return
        tip = commit_of(asked.repository, asked.branch)
        if current and tip != asked.commit and tip == current.commit:  # of two pushes at once, the newer was quicker
            raise Superseded(commit, f"{current.by}'s push of {current.commit[:7]}")
        formation = current.formation if current else {"web": 1}
        placement = deploy.scheduler.place(asked.app, asked.repository, formation)
        before = deploy.scheduler.running(asked.app)
        with engine_at(settings.engine.url) as engine:
            image = build_and_push(asked, engine, settings, channel)
        why = f"Deploy {commit}"
        config = current.config if current else deploy.ledger.first_config()
        release = write_down(asked.commit, image, formation, config, who, why, before, asked.repository, deploy)
        go_live(release, placement, before, deploy)


def scale(
    app: str, repository: Path, changes: dict[str, int], who: str, state: State, settings: Settings, channel: Channel
) -> None:
    """Make a release of what runs now, with these counts of instances. Raises `NapError` as `receive` does."""
    counts = " ".join(f"{process}={n}" for process, n in changes.items())
    with under_way(app, repository, who, counts, state, settings, channel) as deploy:
        current = require_current(deploy)
        if unknown := changes.keys() - current.formation.keys():
            there = ", ".join(current.formation)
            raise NapError(f"{app} has no process type {', '.join(sorted(unknown))}; there are: {there}")
        release_again(current, current.formation | changes, f"Scale {counts}", who, repository, deploy)


def restart(app: str, repository: Path, who: str, state: State, settings: Settings, channel: Channel) -> None:
    """Make a release that is the same as what runs now. Raises `NapError` as `receive` does."""
    with under_way(app, repository, who, "restart", state, settings, channel) as deploy:
        current = require_current(deploy)
        release_again(current, current.formation, "Restart", who, repository, deploy)


def destroy(app: str, repository: Path, who: str, state: State, settings: Settings, channel: Channel) -> None:
    """Stop the app and remove all that is kept of it but its images. Raises `NapError`; then it can be tried again."""
    with under_way(app, repository, who, "destroy", state, settings, channel) as deploy:
        running = deploy.scheduler.running(app)
        channel.step(f"Stopping {app}: {some(running) or 'nothing runs'}")
        deploy.scheduler.withdraw(running)
        keys = [unit.removeprefix(f"{app}.") for unit in running]
        await_withdrawn(deploy.etcd, settings.etcd, app, keys, WITHDRAW_SECONDS)
        deploy.scheduler.stop(running)
        for key in deploy.ledger.keys() - {deploy.lock.key}:
            deploy.etcd.delete(key)
        deploy.etcd.delete(settings.etcd.access_of(app))
        if repository.is_relative_to(state.repositories):
            remove(repository, state)
            kept = "its images, in the registry and on the engine"
        else:
            kept = f"its images, and {repository}, which is not nap's own"
        shutil.rmtree(state.deploy_logs / app, ignore_errors=True)
        channel.result(f"{app} is gone")
        channel.detail(f"Kept: {kept}")


def rollback(
    app: str, repository: Path, number: int | None, who: str, state: State, settings: Settings, channel: Channel
) -> None:
    """Make a new release of an earlier one's image, or of the last that was live before this one; nothing is built.

    Counts stay as they are now. Raises `NapError` as `receive` does.
    """
    with under_way(app, repository, who, f"v{number}" if number else "rollback", state, settings, channel) as deploy:
        current = require_current(deploy)
        target = rollback_target(deploy.ledger, current, number)
        release_again(target, current.formation, f"Rollback to {target.name}", who, repository, deploy)


def configure(
    app: str,
    repository: Path,
    added: dict[str, str],
    removed: Sequence[str],
    who: str,
    state: State,
    settings: Settings,
    channel: Channel,
) -> None:
    """Make a release of what runs now with these values added or removed. Raises `NapError` as `receive` does.

    Before the first release, they are kept for it.
    """
    with under_way(app, repository, who, "config", state, settings, channel) as deploy:
        ledger, current = deploy.ledger, deploy.ledger.current()
        before = ledger.configuration(current.config if current else ledger.first_config())
        after = {name: value for name, value in (before | added).items() if name not in removed}
        if after == before:
            channel.result(f"{app}: nothing changed")
            return
        number = ledger.write_configuration(after)
        if current is None:
            ledger.set_first_config(number)
            channel.result(f"{app} has {len(after)} variables, for its first release")
            return
        why = f"Config add {', '.join(added)}" if added else f"Config remove {', '.join(removed)}"
        configured = msgspec.structs.replace(current, config=number)
        release_again(configured, current.formation, why, who, repository, deploy)


def require_current(deploy: Deploy) -> Release:
    """The release that serves. Raises `NapError` where there is none."""
    if current := deploy.ledger.current():
        return current
    raise NapError(f"{deploy.ledger.app} was never deployed", advice="Push it first: git push nap master")


def rollback_target(ledger: Ledger, current: Release, number: int | None) -> Release:
    """The release of that number, or the last one before `current` that was live and of another image."""
    live = {release.number: release for release, ended in ledger.history() if ended and ended.state == "live"}
    if number is None:
        before = [each for each in live.values() if each.number < current.number and each.image != current.image]
        if not before:
            raise NapError(f"{ledger.app} has no release before {current.name} to go back to")
        return before[-1]
    if number not in live:
        raise NapError(
            f"{ledger.app} has no release v{number} that was live", advice=f"What there is: releases {ledger.app}"
        )
    return live[number]


def release_again(
    source: Release, formation: dict[str, int], why: str, who: str, repository: Path, deploy: Deploy
) -> None:
    """Make a new release of the image that `source` has, and roll it out."""
    placement = deploy.scheduler.place(source.app, repository, formation)
    before = deploy.scheduler.running(source.app)
    image = Image(source.image, source.ports, source.has_healthcheck)
    release = write_down(source.commit, image, formation, source.config, who, why, before, repository, deploy)
    go_live(release, placement, before, deploy)


def write_down(
    commit: str,
    image: Image,
    formation: dict[str, int],
    config: int,
    who: str,
    why: str,
    running: Sequence[str],
    repository: Path,
    deploy: Deploy,
) -> Release:
    """Write a release into the ledger, under the next number, and as a ref into the repository: `refs/nap/v3`."""
    ledger = deploy.ledger
    release = ledger.write(ledger.next_number(running), commit, image, formation, config, who, why)
    mark_release(repository, release.name, commit)
    return release


@contextmanager
def under_way(
    app: str,
    repository: Path,
    who: str,
    what: str,
    state: State,
    settings: Settings,
    channel: Channel,
    *,
    supersedes: bool = False,
) -> Iterator[Deploy]:
    """Hold the app's deploy lock for the block, and log what is said; first, take away what a killed deploy left."""
    log = channel.keep_log(new_log(state, app, what))
    timeout, scheduler = answer_timeout(repository, settings), scheduler_of(state, settings)
    with connect(settings.etcd) as etcd:
        ledger = Ledger(etcd, settings.etcd, app)
        mine = turn(who, what, log)
        patience = settings.deploy.build_timeout
        with deploy_lock(etcd, ledger.root, mine, patience, channel, supersedes=supersedes) as lock:
            deploy = Deploy(time.monotonic(), timeout, settings, scheduler, etcd, ledger, lock, channel)
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
    left = [f"{ledger.app}.{each.instance}" for each in announced(deploy.etcd, places, ledger.app)]
    retire(ledger.app, [unit for unit in left if unit not in kept], deploy)


def scheduler_of(state: State, settings: Settings) -> Scheduler:
    """What runs units under these settings."""
    if settings.scheduler == "fleet":
        from nap_receiver.fleet import Fleet  # its library is for those who call it

        return Fleet(state, settings)
    return Local(state)


def build_and_push(asked: Deployment, engine: Engine, settings: Settings, channel: Channel) -> Image:
    """The commit's image, in the registry."""
    checkout = check_out(asked.repository, asked.commit, asked.app)
    channel.step(f"{asked.app}: building {asked.commit[:7]} from {asked.branch}")
    if checkout.submodules:
        channel.trouble(f"submodules are not fetched and arrive empty: {some(checkout.submodules)}")
    tag = f"{settings.registry.address}/{asked.app}:{asked.commit}"
    labels = {"nap.app": asked.app}  # a step of the build for each
    advice = "Make the build faster, or ask the operator to raise deploy.build_timeout; then push again."
    with deadline(settings.deploy.build_timeout, f"{asked.app}: building and pushing the image", advice):
        engine.build(checkout, asked.app, tag, labels, channel)
        if checkout.lfs_pointers:
            channel.trouble(f"Git LFS files are not fetched and arrived as pointers: {some(checkout.lfs_pointers)}")
        return engine.push(tag, asked.app, channel)


def go_live(release: Release, placement: Placement, before: Sequence[str], deploy: Deploy) -> None:
    """Roll the release out, print its addresses, and retire the instances that were there `before`."""
    addresses = roll_out(release, placement, deploy)
    seconds = time.monotonic() - deploy.started
    show(f"{release.app} {release.name} is live ({seconds:.1f} s)", addresses, deploy.channel)
    retire(release.app, before, deploy)


def roll_out(release: Release, placement: Placement, deploy: Deploy) -> list[Announcement]:
    """Start the release's instances and wait until all of them answer; from then on it is the current one."""
    settings, scheduler, etcd = deploy.settings, deploy.scheduler, deploy.etcd
    units = [render(each, settings, scheduler.machine, settings.engine.url, placement) for each in release.instances]
    deploy.channel.step(f"Starting {release.name}: {', '.join(instance.label for instance in release.instances)}")
    with taken_away_on_failure(release, deploy):
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
            deploy.scheduler.withdraw(instances)
            keys = [unit.removeprefix(f"{app}.") for unit in instances]
            await_withdrawn(deploy.etcd, deploy.settings.etcd, app, keys, WITHDRAW_SECONDS)
            deploy.scheduler.stop(instances)
    except NapError as error:
        deploy.channel.trouble(f"{app}: the release before could not be retired: {error}; the next deploy tries again")


def answer_timeout(repository: Path, settings: Settings) -> int:
    """Seconds that the app has to answer: `nap.timeout` of its repository's git config, else the settings'."""
    configured = checked_setting(repository, "timeout", str.isdecimal, "a whole number of seconds", "SECONDS")
    return settings.deploy.answer_timeout if configured is None else int(configured)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
