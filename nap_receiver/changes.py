"""What is done to an app after its first push, each as a release of its own: no image is built, nothing else differs.

Each raises `NapError` as a deploy does: when it fails, the release before still serves.
"""

import shutil
from collections.abc import Sequence

from msgspec.structs import replace

from nap_receiver.discovery import await_withdrawn
from nap_receiver.errors import NapError
from nap_receiver.push import some
from nap_receiver.release import Ledger, Release
from nap_receiver.repository import remove
from nap_receiver.retention import require_kept
from nap_receiver.rollout import WITHDRAW_SECONDS, App, Deploy, release, under_way


def scale(app: App, counts: dict[str, int]) -> None:
    """Run this many instances of each of these process types."""
    told = " ".join(f"{process}={n}" for process, n in counts.items())
    with under_way(app, told, f"scaling to {told}") as deploy:
        current = require_current(deploy)
        if unknown := counts.keys() - current.formation.keys():
            there = ", ".join(current.formation)
            raise NapError(f"{app.name} has no process type {', '.join(sorted(unknown))}; there are: {there}")
        release_again(replace(current, formation=current.formation | counts), f"Scale {told}", deploy)


def restart(app: App) -> None:
    """Put new instances in the place of those that run."""
    with under_way(app, "restart", "restarting") as deploy:
        release_again(require_current(deploy), "Restart", deploy)


def rollback(app: App, number: int | None) -> None:
    """Run an earlier release's image and variables, or those of the last that was live before this one.

    Counts stay as they are now.
    """
    with under_way(app, f"v{number}" if number else "rollback", "rolling back") as deploy:
        current = require_current(deploy)
        target = rollback_target(deploy.ledger, current, number, app.settings.deploy.keep_releases)
        release_again(replace(target, formation=current.formation), f"Rollback to {target.name}", deploy)


def configure(app: App, added: dict[str, str], removed: Sequence[str]) -> None:
    """Add and remove variables. Before the first release, they are kept for it."""
    with under_way(app, "config", "changing its variables") as deploy:
        ledger, current = deploy.ledger, deploy.ledger.current()
        before = ledger.configuration(current.config if current else ledger.first_config())
        after = {name: value for name, value in (before | added).items() if name not in removed}
        if after == before:
            app.channel.result(f"{app.name}: nothing changed")
            return
        number = ledger.write_configuration(after)
        if current is None:
            ledger.set_first_config(number)
            app.channel.result(f"{app.name} has {some(sorted(after)) or 'no variables'}, for its first release")
            return
        why = f"Config add {', '.join(added)}" if added else f"Config remove {', '.join(removed)}"
        release_again(replace(current, config=number), why, deploy)


def destroy(app: App) -> None:
    """Stop the app and remove all that is kept of it but its images. Where that fails, it can be tried again."""
    state, settings, channel = app.state, app.settings, app.channel
    with under_way(app, "destroy", "destroying it") as deploy:
        running = deploy.scheduler.running(app.name)
        channel.step(f"Stopping {app.name}: {some(running) or 'nothing runs'}")
        deploy.scheduler.withdraw(running)
        instances = [unit.removeprefix(f"{app.name}.") for unit in running]
        await_withdrawn(deploy.etcd, settings.etcd, app.name, instances, WITHDRAW_SECONDS)
        deploy.scheduler.stop(running)
        for key in deploy.ledger.keys() - {deploy.lock.key}:
            deploy.etcd.delete(key)
        deploy.etcd.delete(settings.etcd.access_of(app.name))
        if app.repository.is_relative_to(state.repositories):
            remove(app.repository, state)
            kept = "its images, in the registry and on the engine"
        else:
            kept = f"its images, and {app.repository}, which is not nap's own"
        shutil.rmtree(state.deploy_logs / app.name, ignore_errors=True)
        channel.result(f"{app.name} is gone")
        channel.detail(f"Kept: {kept}")


def require_current(deploy: Deploy) -> Release:
    """The release that serves. Raises `NapError` where there is none."""
    if current := deploy.ledger.current():
        return current
    raise NapError(f"{deploy.ledger.app} was never deployed", advice="Push it first: git push nap master")


def rollback_target(ledger: Ledger, current: Release, number: int | None, keep: int) -> Release:
    """The release of that number, or the last one before `current` that was live and of another image.

    Raises `NapError` where there is none, or where it is older than the `keep` releases whose images are kept.
    """
    history = ledger.history()
    live = {release.number: release for release, ended in history if ended and ended.state == "live"}
    if number is None:
        before = [each for each in live.values() if each.number < current.number and each.image != current.image]
        if not before:
            raise NapError(f"{ledger.app} has no release before {current.name} to go back to")
        return before[-1]
    if number not in live:
        raise NapError(
            f"{ledger.app} has no release v{number} that was live", advice=f"What there is: releases {ledger.app}"
        )
    require_kept(live[number], history, keep)
    return live[number]


def release_again(source: Release, why: str, deploy: Deploy) -> None:
    """Make a new release of what `source` says, and roll it out."""
    placement = deploy.scheduler.place(source.app, deploy.app.repository, source.formation)
    release(replace(source, by=deploy.app.who, why=why), placement, deploy)
