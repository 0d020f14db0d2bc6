"""Check for leftovers: images, volumes and logs that can be removed."""

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from docker.errors import DockerException, NotFound

from nap_receiver.core.deploy_log import old_logs, remove_old_logs
from nap_receiver.core.errors import NapError
from nap_receiver.core.jobs import is_at_work
from nap_receiver.deploy.image_pruning import PRUNING, forget_all, remove_all_old
from nap_receiver.deploy.rollout import Deploy
from nap_receiver.engine.client import engine_at
from nap_receiver.engine.daemon import own_url
from nap_receiver.model.retention_policy import sort_out
from nap_receiver.upkeep.finding import Finding, ok, problem
from nap_receiver.upkeep.inventory import EngineImage, Inventory

_STORE = "registry/docker/registry/v2"


def images(inventory: Inventory) -> Iterator[Finding]:
    """Check that the engine and the registry have images of existing apps and kept releases only."""
    on_engine = defaultdict(list)
    for image in inventory.images:
        on_engine[image.repository].append(image)
    well = 0
    for app in inventory.idle:
        stay, unforgotten = _sorted(app, inventory)
        unneeded = [each for each in on_engine[app] if _is_unneeded(each, stay, inventory)]
        well += len(on_engine[app]) - len(unneeded)
        if (unneeded or unforgotten) and not is_at_work(inventory.state, PRUNING, app):
            setting = f"deploy.keep_releases is {inventory.settings.deploy.keep_releases}"
            yield problem(
                app,
                f"{app}: images of old releases ({setting}): {_where(len(unneeded), len(unforgotten))}",
                "nap doctor --fix removes them.",
                app=app,
                repair=_remove_old,
            )
    yield from _of_gone(on_engine, inventory)
    elsewhere = "" if inventory.settings.is_single_machine else "; the registry and the machines were not checked"
    yield ok(f"{well} on the engine, all of kept releases{elsewhere}{inventory.left_out}")


def _sorted(app: str, inventory: Inventory) -> tuple[frozenset[str], set[str]]:
    """Return the images of an app that stay, and those to delete in the registry."""
    history, keep = inventory.history(app), inventory.settings.deploy.keep_releases
    found = sort_out(history, keep, inventory.units.known_of(app))
    marked = inventory.etcd.get(f"{inventory.settings.etcd.root_of(app)}/removed")
    removed = int(marked.value) if marked else 0
    # What is spared for now holds up the mark of what was removed.
    before = min((release.number for release in found.spared), default=sys.maxsize)
    left = {release.image for release in found.going if removed < release.number < before}
    return found.images, left - found.images


def _is_unneeded(image: EngineImage, stay: frozenset[str], inventory: Inventory) -> bool:
    return stay.isdisjoint(image.names) and image.id not in inventory.images_in_use


def _remove_old(deploy: Deploy) -> str:
    remove_all_old(deploy)
    return "They were removed."


def _of_gone(on_engine: dict[str, list[EngineImage]], inventory: Inventory) -> Iterator[Finding]:
    """Report images that nap built for destroyed apps; others may have pushed theirs there."""
    in_registry = _registry_of_own(inventory)
    for app in sorted({*on_engine, *in_registry} - set(inventory.apps)):
        built = [each for each in on_engine.get(app, []) if each.built_for == app]
        digests = _built_for(app, in_registry[app]) if app in in_registry else []
        if not (built or digests) or is_at_work(inventory.state, PRUNING, app):
            continue
        if inventory.is_gone(app) and not inventory.left_anything(app):
            yield problem(
                app,
                f"{app}: images of an app that is gone: {_where(len(built), len(digests))}",
                "nap doctor --fix removes them.",
                app=app,
                repair=_forgetting(digests),
            )


def _forgetting(digests: Sequence[str]) -> Callable[[Deploy], str]:
    def forget(deploy: Deploy) -> str:
        name, registry = deploy.app.name, deploy.settings.registry.address
        forget_all(name, [f"{registry}/{name}@{each}" for each in digests], deploy.app.state, deploy.settings)
        return f"They were removed. Failures are in {deploy.app.state.deploy_logs / 'removed.log'}."

    return forget


def _registry_of_own(inventory: Inventory) -> dict[str, Path]:
    """Return the folders of nap's own registry; other registries do not show whose an image is."""
    folder = inventory.state.root / _STORE / "repositories"
    if not inventory.settings.is_single_machine or not folder.is_dir():
        return {}
    return {path.name: path for path in folder.iterdir() if inventory.app in {"", path.name}}


def _built_for(app: str, repository: Path) -> list[str]:
    """Return the digests in this repository that nap built for the app."""
    links = (repository / "_manifests" / "revisions").glob("*/*/link")
    digests = [link.read_text(encoding="utf-8").strip() for link in links]
    return [digest for digest in digests if _app_of(digest, repository.parent.parent / "blobs") == app]


def _app_of(digest: str, blobs: Path) -> str:
    """Return the app in the label of an image; empty if there is none."""

    def blob(digest: str) -> dict[str, Any]:
        kind, _, name = digest.partition(":")
        return msgspec.json.decode((blobs / kind / name[:2] / name / "data").read_bytes(), type=dict[str, Any])

    try:
        labels = blob(blob(digest)["config"]["digest"])["config"]["Labels"] or {}
        return str(labels.get("nap.app", ""))
    except (OSError, msgspec.DecodeError, KeyError, TypeError):  # an image of another kind
        return ""


def _where(on_engine: int, in_registry: int) -> str:
    places = [f"{on_engine} on the engine"] if on_engine else []
    return " and ".join([*places, *([f"{in_registry} in the registry"] if in_registry else [])])


def volumes(inventory: Inventory) -> Iterator[Finding]:
    """Check that nap's own engine has no unused anonymous volumes; on another engine they may belong to others."""
    if not inventory.settings.is_single_machine:
        yield ok("not checked: they are on the cluster's machines, and are removed with their containers")
        return
    unused = inventory.unused_volumes
    if inventory.settings.engine.url != own_url(inventory.state):
        counted = f"{len(unused)} anonymous without a container" if unused else "no anonymous one without a container"
        yield ok(f"{counted}, kept because the engine is not nap's own: docker volume prune" if unused else counted)
        return
    if unused:
        about = f"anonymous volumes without a container: {len(unused)}"
        yield problem("volumes", about, "nap doctor --fix removes them.", repair=_removing_volumes(inventory, unused))
    yield ok("no anonymous one without a container" if not unused else "all others have a container")


def _removing_volumes(inventory: Inventory, names: Sequence[str]) -> Callable[[], str]:
    def remove() -> str:
        try:
            with engine_at(inventory.settings.engine.url) as engine:
                for name in names:
                    with suppress(NotFound):
                        engine.api.remove_volume(name)
        except (DockerException, OSError) as error:
            raise NapError(f"the engine cannot remove a volume: {error}") from error
        return "They were removed."

    return remove


def logs(inventory: Inventory) -> Iterator[Finding]:
    """Check that there are only logs of recent deploys and of existing units."""
    well = 0
    for app in inventory.idle:
        well += 1
        if old_logs(inventory.state, app):
            about, advice = f"{app}: logs of old deploys", "nap doctor --fix removes them."
            yield problem(f"{app} old", about, advice, app=app, repair=_remove_old_logs)
    for folder in inventory.state.deploy_logs.glob(f"{inventory.app or '*'}/"):
        app = folder.name
        if (
            app not in inventory.apps
            and not inventory.turn(app)
            and inventory.is_gone(app)
            and not inventory.left_anything(app)
        ):
            about, advice = f"{app}: logs of an app that is gone ({folder})", "nap doctor --fix removes them."
            yield problem(f"{app} gone", about, advice, app=app, repair=_removing_all([folder]))
    yield ok(f"of {well} apps{inventory.left_out}")


def _remove_old_logs(deploy: Deploy) -> str:
    remove_old_logs(deploy.app.state, deploy.app.name)
    return "They were removed."


def _removing_all(paths: Sequence[Path]) -> Callable[[Deploy], str]:
    def remove(deploy: Deploy) -> str:
        for path in paths:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise NapError(f"{path}: {error.strerror}") from error
        return "They were removed."

    return remove
