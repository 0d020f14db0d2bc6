"""Roll out a release: the steps that all changes of an app share, under the deploy lock.

`under_way` holds the lock; `release` writes a release down, renders its units, starts them, waits for them, makes it
the current one, and retires the one before.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from nap_receiver.core.channel import Channel
from nap_receiver.core.deploy_log import new_log, remove_old_logs
from nap_receiver.core.errors import NapError
from nap_receiver.core.interruption import uninterrupted
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.deploy.on_failure import call_url
from nap_receiver.deploy.one_off import OneOff, run_to_its_end
from nap_receiver.engine.container import write_down
from nap_receiver.git.push import checked_setting, mark_release
from nap_receiver.model.app_url import url_of
from nap_receiver.model.command import in_shell
from nap_receiver.model.release import WEB, Release
from nap_receiver.routing.caddy_configuration import dialled, is_routing, leads_to
from nap_receiver.schedulers.chosen import scheduler_of
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.scheduler import Scheduler, Work
from nap_receiver.schedulers.units import LEASE_SECONDS
from nap_receiver.store.announcements import (
    Announcement,
    ListensElsewhere,
    Silent,
    Wait,
    announced,
    await_announcements,
    await_withdrawn,
    good,
    last_words,
    show,
)
from nap_receiver.store.etcd import Etcd, connect
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.listening import how_to_name
from nap_receiver.store.lock import Lock, deploy_lock, turn, why_over

RELEASE_COMMAND, PREDEPLOY = "release.1", "predeploy.1"
"""How the containers are labelled that run a release's commands before anything of it starts."""

POSTDEPLOY = "postdeploy.1"
"""How the containers are labelled that run app.json's commands after a release is live."""

WITHDRAW_SECONDS = LEASE_SECONDS + 10
"""How long an announcement may take to go: of a machine that was lost, until its lease ends."""

_CAPABILITIES = re.compile(r"|[A-Z_]+(,[A-Z_]+)*")
_ROUTES_SECONDS = 2
_LOOK_AGAIN_SECONDS = 0.01


@dataclass(frozen=True)
class App:
    """An app that a user changes here, and what is needed for that."""

    name: str
    repository: Path
    who: str
    state: State
    settings: Settings
    channel: Channel


@dataclass(frozen=True)
class Deploy:
    """A running deploy: what it uses while it holds the app's lock."""

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
    """Hold the app's deploy lock for the block, with a deploy log; first remove the remains of a killed deploy.

    `what` names the log (`1a2b3c4`, `web=2`); `doing` is for those who wait (`deploying 1a2b3c4`).
    """
    log = app.channel.keep_log(new_log(app.state, app.name, what))
    remove_old_logs(app.state, app.name)
    with connect(app.settings.etcd) as etcd:
        ledger = Ledger(etcd, app.settings.etcd, app.name)
        mine = turn(app.who, what, doing, log)
        patience = app.settings.deploy.build_timeout
        with deploy_lock(etcd, ledger.root, mine, patience, app.channel, supersedes=supersedes) as lock:
            deploy = begun(app, etcd, ledger, lock)
            take_away_leftovers(deploy)
            if ledger.is_full(app.settings.limits.releases):
                from nap_receiver.deploy.image_pruning import prune_records  # it imports this module

                prune_records(deploy)
            yield deploy


def begun(app: App, etcd: Etcd, ledger: Ledger, lock: Lock) -> Deploy:
    """Return a new deploy of the app, under its lock. Raises `NapError` if `nap.timeout` is not a number."""
    timeout, scheduler = answer_timeout(app.repository, app.settings), scheduler_of(app.state, app.settings)
    return Deploy(app, time.monotonic(), timeout, scheduler, etcd, ledger, lock)


def take_away_leftovers(deploy: Deploy) -> None:
    """Remove the remains of a killed deploy: a release that never went live, or one not yet retired."""
    ledger, places = deploy.ledger, deploy.settings.etcd
    for release in ledger.unfinished():
        deploy.channel.step(f"Removing {release.name}, whose deploy was killed")
        take_away(release, "its deploy was killed", deploy)
    current = ledger.current()
    current_units = {instance.unit for instance in current.instances} if current else set()
    left = [f"{ledger.app}.{instance}" for instance in sorted(good(deploy.etcd, places, ledger.app))]
    retire(ledger.app, [unit for unit in left if unit not in current_units], deploy)


def release(draft: Release, placement: Placement, deploy: Deploy, *, is_new: bool = True) -> Release:
    """Number the draft, write it and roll it out; return the release, which serves from then on.

    If `is_new`, it has other code or configuration than the one before, and runs its release command first. If it
    listens on another port than nap expects, and nothing sets the port, a second release with that port follows.
    """
    before = deploy.scheduler.running(draft.app)
    draft = replace(draft, capabilities=capabilities_of(deploy.app.repository))
    try:
        written, addresses = bring_up(draft, before, placement, deploy, is_new=is_new)
    except ListensElsewhere as found:
        deploy.channel.trouble(f"{found}. The image names no port, so nap uses {found.port}.")
        draft = replace(draft, found_port=found.port)
        deploy.channel.detail(f"To keep it: {how_to_name(draft, [found.port])}")
        written, addresses = bring_up(draft, before, placement, deploy, is_new=False)
    seconds = time.monotonic() - deploy.started
    if deploy.scheduler.runs_on == "nothing":
        show(f"{written.app} {written.name} is released ({seconds:.1f} s)", "", [], deploy.channel)
        deploy.channel.detail(f"Image: {written.image}")
        deploy.channel.detail("It is not running: this nap only builds and pushes images.")
        return written
    state = "is live"
    if rest := written.at_rest():
        why, how = rest
        state = f"is live, and {why}: {how} starts it"
    url = url_of(written.app, deploy.settings)
    show(f"{written.app} {written.name} {state} ({seconds:.1f} s)", url, addresses, deploy.channel)
    if WEB not in written.formation:
        deploy.channel.detail(f"It has no process type {WEB}, so it has no address.")
    if before:
        retire(written.app, before, deploy)
    else:
        await_routes(deploy)
    return written


def bring_up(
    draft: Release, before: Sequence[str], placement: Placement, deploy: Deploy, *, is_new: bool
) -> tuple[Release, list[Announcement]]:
    """Make the draft the current release, and return it with its announcements; `before` are the instances that ran."""
    written = deploy.ledger.write(draft, deploy.ledger.next_number(before))
    mark_release(deploy.app.repository, written.name, written.commit)
    with taken_away_on_failure(written, deploy):
        if is_new:
            run_commands_before(written, deploy)
        return written, roll_out(written, placement, deploy)


def run_commands_before(release: Release, deploy: Deploy) -> None:
    """Run app.json's predeploy, then the Procfile's `release`, before any instance of the release starts."""
    if deploy.scheduler.runs_on == "nothing":
        return
    for label, command, what in (
        (PREDEPLOY, release.predeploy, "scripts.dokku.predeploy"),
        (RELEASE_COMMAND, release.release_command, "the release command"),
    ):
        if command:
            deploy.channel.step(f"Running {what} of {release.name}: {command}")
            run_command(release, label, command, what, deploy)


def run_command(release: Release, label: str, command: str, what: str, deploy: Deploy) -> None:
    """Run a line of shell in a container with the configuration of the release; `what` names it in messages.

    Raises `NapError` where it fails.
    """
    settings, variables = deploy.settings, deploy.ledger.configuration(release.config)
    one_off = OneOff(release, label, in_shell(command), variables, deploy.app.state, settings)
    run_to_its_end(one_off, what, release.app, settings.deploy.build_timeout, deploy.channel)


def roll_out(release: Release, placement: Placement, deploy: Deploy) -> list[Announcement]:
    """Start the release's instances, wait until all are healthy, and make it the current release."""
    settings, scheduler, etcd = deploy.settings, deploy.scheduler, deploy.etcd
    addresses: list[Announcement] = []
    if release.instances and scheduler.runs_on != "nothing":
        work = work_of(release, deploy.ledger, scheduler, settings, placement)
        deploy.channel.step(f"Starting {release.name}: {', '.join(instance.label for instance in release.instances)}")
        before = etcd.revision()
        scheduler.start(work)
        allowed, channel = settings.build.private_networks.networks, deploy.channel
        wait = Wait(
            before,
            deploy.timeout,
            lambda: scheduler.require_placed(work),
            lambda check, what: call_url(check, what, allowed, channel),
            url_of(release.app, settings),
        )
        addresses = await_announcements(etcd, settings.etcd, release, wait, deploy.channel)
    if not deploy.ledger.make_current(release, deploy.lock):
        raise why_over(etcd, deploy.lock)
    return addresses


def work_of(
    release: Release, ledger: Ledger, scheduler: Scheduler, settings: Settings, placement: Placement | None = None
) -> Work:
    """Return all instances of the release for the scheduler, after writing their create bodies to etcd."""
    bodies = write_down(release, ledger, settings, scheduler.asked_of_engine)
    return Work(tuple(release.instances), bodies, placement or Placement())


@contextmanager
def taken_away_on_failure(release: Release, deploy: Deploy) -> Iterator[None]:
    """If the block fails, remove all units, containers and keys of `release`, except its record."""
    try:
        yield
    except BaseException as error:
        reason, silent = str(error) or type(error).__name__, error if isinstance(error, Silent) else None
        try:
            with uninterrupted():
                take_away(release, reason, deploy, silent)
        except NapError as remains:
            raise NapError(
                f"{error}; {release.name} could not be removed: {remains}",
                advice=[*remains.advice, "The next deploy removes it."],
            ) from error
        raise


def take_away(release: Release, reason: str, deploy: Deploy, silent: Silent | None = None) -> None:
    """Remove all units, containers and keys of `release`, except its record; show the output of a `silent` instance."""
    etcd, places = deploy.etcd, deploy.settings.etcd
    for label, command in ((PREDEPLOY, release.predeploy), (RELEASE_COMMAND, release.release_command)):
        if command:
            OneOff(release, label, (), {}, deploy.app.state, deploy.settings).remove()
    deploy.scheduler.discard([instance.unit for instance in release.instances])
    if silent:
        silent.words = last_words(etcd, places, silent.instance, url_of(release.app, deploy.settings))
    keys = [each.key for each in release.instances]
    await_withdrawn(etcd, places, release.app, keys, WITHDRAW_SECONDS)
    deploy.ledger.forget_containers(keys)
    deploy.ledger.mark_failed(release, reason)


def retire(app: str, instances: Sequence[str], deploy: Deploy) -> None:
    """Withdraw and stop these instances of the app. A failure is a warning: the new release is live."""
    if not instances:
        return
    try:
        with deploy.channel.waiting("retiring the release before"):
            withdraw_and_stop(app, instances, deploy)
    except NapError as error:
        deploy.channel.trouble(f"{app}: the release before could not be retired: {error}; the next deploy tries again")


def withdraw_and_stop(app: str, instances: Sequence[str], deploy: Deploy) -> None:
    """Withdraw these instances of the app, and stop them after the router has stopped sending traffic."""
    deploy.scheduler.withdraw(instances)
    keys = [unit.removeprefix(f"{app}.") for unit in instances]
    await_withdrawn(deploy.etcd, deploy.settings.etcd, app, keys, WITHDRAW_SECONDS)
    await_routes(deploy)
    deploy.scheduler.stop(instances)
    deploy.ledger.forget_containers(keys)


def await_routes(deploy: Deploy) -> None:
    """Wait until the router of this machine sends new requests to the current announcements."""
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
        f"{app.name}: the router did not apply this within {_ROUTES_SECONDS} s; `nap status` shows what is down"
    )


def capabilities_of(repository: Path) -> list[str]:
    """Return the additional capabilities of the app's containers: `nap.capabilities` of its repository's git config."""
    expected = "names of capabilities(7) with commas between them, such as NET_RAW,SYS_PTRACE"
    given = checked_setting(repository, "capabilities", _CAPABILITIES.fullmatch, expected, "NET_RAW")
    return given.split(",") if given else []


def answer_timeout(repository: Path, settings: Settings) -> int:
    """Return the start timeout in seconds: `nap.timeout` of the repository's git config, else the settings'."""
    configured = checked_setting(repository, "timeout", str.isdecimal, "a whole number of seconds", "SECONDS")
    return settings.deploy.answer_timeout if configured is None else int(configured)
