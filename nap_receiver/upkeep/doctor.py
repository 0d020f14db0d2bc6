"""`nap doctor`: find problems of a nap, and repair them. Read `examine` from top to bottom.

Repairs of an app run under its deploy lock, after a second look. Apps change during the checks, because of deploys,
restarts and exits; so a problem is reported only if it is seen twice.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nap_receiver.core.channel import Channel
from nap_receiver.core.deploy_log import new_log
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import load
from nap_receiver.deploy.rollout import App, Deploy, begun
from nap_receiver.store.etcd import connect
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.lock import deploy_lock, turn
from nap_receiver.upkeep import app_checks, leftover_checks, machine_checks
from nap_receiver.upkeep.finding import Finding, unseen
from nap_receiver.upkeep.inventory import Inventory

DoctorCheck = Callable[[Inventory], Iterator[Finding]]

CHECKS: dict[str, DoctorCheck] = {
    "programs": machine_checks.programs,  # what is started here, the others can look at
    "versions": machine_checks.versions,
    "clocks": machine_checks.clocks,
    "announcements": app_checks.announcements,  # before those that wait for them to go
    "releases": app_checks.releases,
    "instances": app_checks.instances,  # the current release is there before others go
    "units": app_checks.units,
    "containers": app_checks.containers,
    "images": leftover_checks.images,
    "volumes": leftover_checks.volumes,
    "logs": leftover_checks.logs,
    "privacy": machine_checks.privacy,
    "firewall": machine_checks.firewall,
    "disk": machine_checks.disk,
}
"""The checks in their order, by the names that `doctor --json` has for them."""

PATIENCE = 5.0
"""Seconds that a deploy is waited for before what is wrong with its app stays as it is."""


def examine(state: State, who: str, *, fix: bool) -> Iterator[Finding]:
    """Run each check; with `fix`, repair the problems."""
    settings = load(state).settings
    first, second = Inventory(state, settings), Inventory(state, settings)
    for check in CHECKS:
        found = _made(check, first)
        if any(finding.state == "problem" for finding in found):
            found = _seen_again(found, _made(check, second))
            if fix:
                found = _repaired(check, found, who, second)
                settings = load(state).settings
                first, second = Inventory(state, settings), Inventory(state, settings)
        yield from found


def _made(check: str, inventory: Inventory) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(CHECKS[check](inventory))
    except NapError as error:
        found.append(unseen(f"not checked: {error}", " ".join(error.advice)))
    except Exception as error:  # noqa: BLE001 -- the others are made all the same
        found.append(unseen(f"not checked, because nap itself failed: {type(error).__name__}: {error}"))
    return [replace(finding, check=check) for finding in found]


def _seen_again(before: Sequence[Finding], now: Sequence[Finding]) -> list[Finding]:
    subjects = {finding.subject for finding in before}
    return [finding for finding in now if finding.state != "problem" or finding.subject in subjects]


def _repaired(check: str, found: Sequence[Finding], who: str, inventory: Inventory) -> list[Finding]:
    result: dict[str, Finding] = {}
    for app in dict.fromkeys(finding.app for finding in found if finding.repair):
        for finding in _repair([each for each in found if each.repair and each.app == app], check, who, inventory):
            result[finding.subject] = finding
    return [result.get(finding.subject, finding) if finding.repair else finding for finding in found]


def _repair(wrong: Sequence[Finding], check: str, who: str, inventory: Inventory) -> Iterator[Finding]:
    app = wrong[0].app
    if not app:
        yield from (_put_right(finding) for finding in wrong)
        return
    try:
        with _under_lock(app, who, inventory) as deploy:
            now = {each.subject: each for each in _made(check, replace(inventory, app=app, kept={}))}
            for finding in wrong:
                again = now.get(finding.subject)
                if again is None:
                    yield replace(finding, state="repaired", advice="The problem was gone at the second check.")
                else:
                    yield _put_right(again, deploy)
    except NapError as error:
        yield from (_not_repaired(finding, error) for finding in wrong)


def _put_right(finding: Finding, *deploy: Deploy) -> Finding:
    if finding.repair is None:
        return finding
    try:
        return replace(finding, state="repaired", advice=finding.repair(*deploy))
    except NapError as error:
        return _not_repaired(finding, error)


def _not_repaired(finding: Finding, error: NapError) -> Finding:
    return replace(finding, state="failed", advice=" ".join([f"Not repaired: {error}.", *error.advice]))


@contextmanager
def _under_lock(app: str, who: str, inventory: Inventory) -> Iterator[Deploy]:
    """Hold the app's lock for the block; if the app exists, repairs are logged as a deploy is."""
    state, settings = inventory.state, inventory.settings
    repository = inventory.repository(app) or state.repositories / f"{app}.git"
    with Path(os.devnull).open("w") as nobody, Channel(nobody.fileno()) as channel:
        log = new_log(state, app, "doctor")
        if app in inventory.apps:
            log = channel.keep_log(log)
        with connect(settings.etcd) as etcd:
            ledger = Ledger(etcd, settings.etcd, app)
            mine = turn(who, "doctor", "repairing it", log)
            with deploy_lock(etcd, ledger.root, mine, PATIENCE, channel, supersedes=False) as lock:
                subject = App(app, repository, who, state, settings, channel)
                yield begun(subject, etcd, ledger, lock)
