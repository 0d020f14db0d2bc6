"""Rename an app: move its releases, units, repository and logs to the new name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from nap_receiver.auth.access import Access, claim, give_up
from nap_receiver.build.registry import registry_of
from nap_receiver.core.errors import NapError
from nap_receiver.deploy.operations import end, forget, release_again
from nap_receiver.deploy.rollout import App, Deploy, under_way
from nap_receiver.git.repository import move, name_of, repository_at
from nap_receiver.model.app import checked_app_name
from nap_receiver.model.release import RENAMED, Release
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.lock import deploy_lock


def rename(app: App, name: str, access: Access) -> None:
    """Rename the app to `name`, with its releases, variables, rights and logs.

    `access` is that of the app. The new name's instances answer before the old ones stop. Raises `NapError`; then the
    app is unchanged.
    """
    target = new_repository(app, name)
    with under_way(app, name, f"renaming it to {name}") as deploy:
        current = deploy.ledger.current()
        with claimed(name, replace(access, repository=name_of(target, app.state)), deploy) as new:
            take_over(deploy, new)
            if current:
                release_again(new.ledger.current() or current, f"{RENAMED} {app.name}", new, is_new=False)
        move(app.repository, target, app.state)
        logs = app.state.deploy_logs
        if (logs / app.name).is_dir() and not (logs / name).exists():
            (logs / app.name).rename(logs / name)
        not_removed = end(deploy, name)  # the registry has the images under the new name too
        app.channel.result(f"{app.name} is now named {name}")
        app.channel.detail(f"In your repository: git remote set-url nap …/{name_of(target, app.state)}")
        for what in not_removed:
            app.channel.detail(f"Not removed: {what}")


def new_repository(app: App, name: str) -> Path:
    """Return the new path of the app's repository. Raises `NapError` if it cannot be moved or the path exists."""
    state = app.state
    if not app.repository.is_relative_to(state.repositories):
        raise NapError(
            f"{app.name} is named after {app.repository}, which is not a repository of nap's gate",
            advice="Give that repository another name, push from it, and destroy the old app.",
        )
    target = repository_at(checked_app_name(name), state)
    if target.exists():
        raise NapError(f"repository name {name} is already in use", advice="Choose another name.")
    return target


@contextmanager
def claimed(name: str, access: Access, deploy: Deploy) -> Iterator[Deploy]:
    """A deploy of the app with the new name, for the block; if that fails, nothing of it is left."""
    etcd, settings = deploy.etcd, deploy.settings
    key = settings.etcd.access_of(name)
    if etcd.get(key):
        raise NapError(f"app name {name} is already in use", advice="Choose another name.")
    claim(etcd, key, access)
    ledger = Ledger(etcd, settings.etcd, name)
    turn, channel = deploy.lock.turn, deploy.channel
    try:
        with deploy_lock(etcd, ledger.root, turn, 0, channel, supersedes=False) as lock:
            new = replace(deploy, app=replace(deploy.app, name=name), ledger=ledger, lock=lock)
            try:
                yield new
            except BaseException:
                forget(new)
                raise
    except BaseException:
        give_up(etcd, key, access)
        raise


def take_over(deploy: Deploy, new: Deploy) -> None:
    """Copy the app's keys to its new name, and its images in the registry."""
    name, old, etcd = new.app.name, deploy.ledger.root, deploy.etcd
    releases = f"{old}/releases/"
    parts = ("lock", "next", "up/", "exits/", "containers/", "checks/")
    skipped = (*(f"{old}/{part}" for part in parts), *deploy.ledger.unreadable())
    with registry_of(deploy.app.state, deploy.settings) as registry:
        images: dict[str, str] = {}
        for key in etcd.keys_below(f"{old}/"):  # values one by one, for there may be much in all
            entry = None if key.startswith(skipped) else etcd.get(key)
            if not entry:
                continue
            value: Any = entry.value
            if entry.key.startswith(releases):
                release = msgspec.convert(value, Release)
                if release.image not in images:
                    images[release.image] = registry.copy(release.image, name)
                value = msgspec.structs.replace(release, app=name, image=images[release.image])
            etcd.put(f"{new.ledger.root}{entry.key.removeprefix(old)}", value)
