"""The story of a deploy, from the pushed commit to the printed address. Read `receive` from top to bottom.

Its first step, which of the pushed refs deploys, is `push.deploying`: most pushes end there, and need none of this.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dulwich.repo import Repo

from nap_receiver.channel import Channel
from nap_receiver.checkout import check_out
from nap_receiver.deadline import deadline
from nap_receiver.discovery import Announcement, Silent, announced, await_announcements
from nap_receiver.errors import NapError
from nap_receiver.etcd import Etcd, connect
from nap_receiver.image import Engine, Image, engine_at
from nap_receiver.local import Local
from nap_receiver.lock import deploy_lock
from nap_receiver.push import Deployment, repository_setting
from nap_receiver.release import Ledger, Release
from nap_receiver.scheduler import Scheduler
from nap_receiver.settings import Settings
from nap_receiver.state import State
from nap_receiver.units import render


def receive(asked: Deployment, state: State, settings: Settings, channel: Channel) -> None:
    """Make the pushed commit a running, announced release.

    Raises `NapError` when that fails; then the release before still serves, and nothing of the new one is left.
    """
    started = time.monotonic()
    channel.keep_log(deploy_log(state, asked))
    timeout = answer_timeout(asked, settings)
    scheduler: Scheduler = Local(state)
    with connect(settings.etcd) as etcd, engine_at(settings.engine.url) as engine:
        ledger = Ledger(etcd, settings.etcd.prefix, asked.app)
        with deploy_lock(etcd, ledger.root, asked, settings.deploy.build_timeout, channel):
            current = ledger.current()
            if current and (serving := all_announced(current, asked.commit, etcd, settings)):
                show(f"{current.app} {current.name} already runs {asked.commit[:7]}", serving, channel)
                return
            number = ledger.next_number(scheduler.running(asked.app))
            image = build_and_push(asked, number, engine, settings, channel)
            release = ledger.write(number, asked.commit, image, {"web": 1}, asked.pusher, f"Deploy {asked.commit[:7]}")
            units = [render(instance, settings, scheduler.machine, engine.url) for instance in release.instances]
            channel.step(f"Starting {release.name}: {', '.join(instance.label for instance in release.instances)}")
            with taken_away_on_failure(release, scheduler, ledger):
                before = etcd.revision()
                scheduler.start(units)
                addresses = await_announcements(etcd, settings.etcd, release, before, timeout, channel)
                ledger.make_current(release)
            retire_all_but(release, scheduler, channel)
    show(f"{release.app} {release.name} is live ({time.monotonic() - started:.1f} s)", addresses, channel)


def all_announced(release: Release, commit: str, etcd: Etcd, settings: Settings) -> list[Announcement]:
    """Where `release` answers, if it is of `commit` and every one of its instances does; else nothing."""
    if release.commit != commit:
        return []
    found = announced(etcd, settings.etcd, release)
    return found if len(found) == len(release.instances) else []


def build_and_push(asked: Deployment, number: int, engine: Engine, settings: Settings, channel: Channel) -> Image:
    """The commit's image, in the registry."""
    checkout = check_out(asked.repository, asked.commit, asked.app)
    channel.step(f"{asked.app}: building {asked.commit[:7]} from {asked.branch}")
    if checkout.submodules:
        channel.trouble(f"submodules are not fetched and arrive empty: {some(checkout.submodules)}")
    tag = f"{settings.registry.address}/{asked.app}:{asked.commit}"
    labels = {"nap.app": asked.app, "nap.commit": asked.commit, "nap.release": f"v{number}"}
    advice = "Make the build faster, or ask the operator to raise deploy.build_timeout; then push again."
    with deadline(settings.deploy.build_timeout, f"{asked.app}: building and pushing the image", advice):
        engine.build(checkout, asked.app, tag, labels, channel)
        if checkout.lfs_pointers:
            channel.trouble(f"Git LFS files are not fetched and arrived as pointers: {some(checkout.lfs_pointers)}")
        return engine.push(tag, asked.app, channel)


@contextmanager
def taken_away_on_failure(release: Release, scheduler: Scheduler, ledger: Ledger) -> Iterator[None]:
    """Whatever ends the block early leaves no unit, container or key of `release`, only its record."""
    try:
        yield
    except BaseException as error:
        try:
            if isinstance(error, Silent):
                error.words = scheduler.last_words(error.instance.unit)
            scheduler.discard([instance.unit for instance in release.instances])
            ledger.mark_failed(release, str(error) or type(error).__name__)
        except NapError as remains:
            raise NapError(
                f"{error}; and {release.name} could not be taken away: {remains}",
                advice=[*remains.advice, "The next deploy takes away what is left."],
            ) from error
        raise


def retire_all_but(release: Release, scheduler: Scheduler, channel: Channel) -> None:
    """Withdraw and stop every other instance of the app. A failure here is told, but the new release is live."""
    new = {instance.unit for instance in release.instances}
    try:
        with channel.waiting("retiring the release before"):
            old = [unit for unit in scheduler.running(release.app) if unit not in new]
            scheduler.withdraw(old)
            scheduler.stop(old)
    except NapError as error:
        channel.trouble(f"{release.app}: the release before could not be retired: {error}; the next deploy tries again")


def show(result: str, addresses: Sequence[Announcement], channel: Channel) -> None:
    """The last lines of a good push."""
    channel.result(result)
    for announcement in addresses:
        channel.detail(announcement.url)


def answer_timeout(asked: Deployment, settings: Settings) -> int:
    """Seconds that the app has to answer: `nap.timeout` of its repository's git config, else the settings'."""
    with Repo(str(asked.repository)) as repository:
        configured = repository_setting(repository, "timeout")
    if configured is None:
        return settings.deploy.answer_timeout
    if not configured.isdecimal():
        raise NapError(
            f'{asked.repository}/config: nap.timeout: expected a whole number of seconds, got "{configured}"',
            advice="Mend it there with: git config nap.timeout SECONDS",
        )
    return int(configured)


def deploy_log(state: State, asked: Deployment) -> Path:
    """A new file for all that this deploy says."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return state.deploy_logs / asked.app / f"{stamp}-{asked.commit[:7]}.log"


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
