"""Prune images of old releases, registry space, and old deploy logs.

The registry forgets an image while the app's lock is held, so that nobody goes back to one that is going. The rest is
left to a process of its own, for which nobody waits: the engine's images, and the registry's `garbage-collect`, which
frees what no manifest names any more. A registry that serves must not do that, for it would take the layers of an image
that is just arriving; so nap's own is stopped for that moment, and no build is under way meanwhile (`registry_in_use`).

Below `<prefix>/apps/<app>/`:
    removed   the number of the last release whose image was removed
Below the state directory's `run/`:
    registry.lock           locked (flock(2)), shared by builds, and alone by who removes
    registry.uncollected    is there when the registry has something to free, and named
    registry.collecting     instead while it is stopped for that
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from docker.errors import APIError, DockerException, NotFound

from nap_receiver.build.registry import Unwilling, registry_of
from nap_receiver.core.deadline import deadline
from nap_receiver.core.errors import NapError
from nap_receiver.core.jobs import start_job
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import run
from nap_receiver.core.settings import Settings, load
from nap_receiver.core.supervision import Fault, Supervisor
from nap_receiver.deploy.rollout import App, Deploy
from nap_receiver.engine.client import Engine, engine_at
from nap_receiver.git.push import unmark_releases
from nap_receiver.model.retention_policy import out_of_ledger, sort_out
from nap_receiver.schedulers.chosen import scheduler_of
from nap_receiver.schedulers.scheduler import Scheduler
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.lock import whose_turn

_AT_ONCE = 20  # releases whose images one deploy has the registry forget, so that its pusher does not wait
_COLLECT_EVERY_SECONDS = 600
_COLLECT_SECONDS = 600
_PATIENCE_SECONDS = 300  # for builds to end
_SHORT_PATIENCE_SECONDS = 10  # likewise, while a pusher waits
PRUNING = "prune-images"
"""The kind of job that removes images of an app (`core.jobs`)."""

_REGISTRY_SECONDS = 20  # to answer again
_LOOK_AGAIN_SECONDS = 0.02


def keep_recent(deploy: Deploy, *, wait: bool = False) -> None:
    """Prune the images, records and logs of this app, under its lock. A failure is a warning; the next deploy tries
    again.

    Slow work continues in the background, unless `wait` is set.
    """
    app, channel = deploy.app, deploy.channel
    try:
        forgotten = _forget_images(deploy)
        if wait:
            remove_images(deploy.ledger, deploy.scheduler, app.state, deploy.settings, at_once=True)
        elif forgotten:
            _remove_later(app.name, app.state)
    except (NapError, OSError) as error:
        channel.trouble(
            f"{app.name}: some images of old releases were not removed: {error}; the next deploy tries again"
        )


def prune_records(deploy: Deploy) -> None:
    """Prune the oldest records of the ledger before a change, to make room for one more release.

    With a record, the image, configuration and ref of the release are removed, unless another release needs them. A
    failure is a warning; the next change tries again.
    """
    app, ledger, settings = deploy.app, deploy.ledger, deploy.settings
    history = ledger.history()
    running = deploy.scheduler.running(ledger.app)
    going = out_of_ledger(history, settings.limits.releases - 1, settings.deploy.keep_releases, running)
    numbers, removed = {release.number for release in going}, _removed(deploy)
    needed = {release.image for release, _ in history if release.number not in numbers}
    images = sorted({release.image for release in going if release.number > removed} - needed)[:_AT_ONCE]
    try:
        _forget(images, deploy)
    except NapError as error:
        app.channel.trouble(
            f"{app.name}: records of old releases were not removed: {error}; the next deploy tries again"
        )
        return
    gone = [each for each in going if each.number <= removed or each.image in needed or each.image in images]
    ledger.forget(gone)
    unmark_releases(app.repository, [release.name for release in gone])
    if images:
        _remove_later(app.name, app.state)


def remove_all_old(deploy: Deploy) -> None:
    """Prune the images of this app, under its lock. Raises `NapError`."""
    key, before = f"{deploy.ledger.root}/removed", deploy.etcd.get(f"{deploy.ledger.root}/removed")
    while _forget_images(deploy) and (now := deploy.etcd.get(key)) != before:
        before = now
    remove_images(deploy.ledger, deploy.scheduler, deploy.app.state, deploy.settings, at_once=True)


@contextmanager
def nothing_removed(state: State) -> Iterator[None]:
    """Prevent pruning during the block; waits for a running one first."""
    with _locked(state, fcntl.LOCK_SH, _SHORT_PATIENCE_SECONDS):
        yield


def is_collecting(state: State) -> bool:
    """Return whether nap's own registry is stopped for garbage collection."""
    if not _mark(state, "collecting").exists():
        return False
    with _mark(state, "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _forget_images(deploy: Deploy) -> bool:
    """Delete the images of old releases in the registry; return whether there were any."""
    ledger, settings = deploy.ledger, deploy.settings
    history = ledger.history()
    done = _removed(deploy)
    # The scheduler is asked only where there is something to remove; under fleet that takes a moment.
    if not any(release.number > done for release in sort_out(history, settings.deploy.keep_releases).going):
        return False
    found = sort_out(history, settings.deploy.keep_releases, deploy.scheduler.running(ledger.app))
    old = [release for release in found.going if release.number > done]
    now = [release for release in old if release.image not in found.images][:_AT_ONCE]
    images = sorted({release.image for release in now})
    if not _forget(images, deploy):
        return True  # to remove them from the engine
    # Below what is spared now, to come back to it, and not past what was left for the next time.
    limit = min((release.number for release in found.spared), default=sys.maxsize)
    if len(now) == _AT_ONCE:
        limit = min(limit, now[-1].number + 1)
    if reached := [release.number for release in old if release.number < limit]:
        deploy.etcd.put(f"{ledger.root}/removed", reached[-1])
    return bool(now)


def _removed(deploy: Deploy) -> int:
    """Return the number of the last release whose image was removed; 0 for none."""
    entry = deploy.etcd.get(f"{deploy.ledger.root}/removed")
    return int(entry.value) if entry else 0


def _forget(images: Sequence[str], deploy: Deploy) -> bool:
    """Delete these images in the registry; return whether it allows that. Raises `NapError` if it fails."""
    settings = deploy.settings
    try:
        _delete(images, deploy.app.state, settings)
    except Unwilling as error:
        if settings.is_single_machine:  # nap's own registry is configured to delete
            raise
        deploy.channel.log_only(
            f"{deploy.ledger.app}: images of old releases were not removed from the registry: {error}"
        )
        return False
    return True


def forget_all(app: str, images: Sequence[str], state: State, settings: Settings) -> None:
    """Remove these images of a destroyed app: in the registry now, on the engine when nothing uses them.

    Raises `NapError` if the registry fails; the engine's images are removed anyway.
    """
    try:
        _delete(images, state, settings)
    finally:
        _remove_later(app, state)


def _delete(images: Sequence[str], state: State, settings: Settings) -> None:
    """Delete the manifests and tags of these images. nap's own registry frees the space later (`_collect`)."""
    if settings.is_single_machine and images:
        _mark(state, "uncollected").touch()
    with registry_of(state, settings) as registry:
        for image in images:
            registry.delete(image)


def _remove_later(app: str, state: State) -> None:
    start_job(state, PRUNING, __name__, [app], "removed.log")


def remove_images(ledger: Ledger, scheduler: Scheduler, state: State, settings: Settings, *, at_once: bool) -> None:
    """Remove the app's old images from the engine, and let nap's own registry free their space.

    With `at_once`, free the space now; else at most every ten minutes. Raises `NapError`.
    """
    if not ledger.history():
        _await_removed(ledger.app, state, settings)
    with _locked(state, fcntl.LOCK_EX, _SHORT_PATIENCE_SECONDS if at_once else _PATIENCE_SECONDS):
        if not at_once and whose_turn(ledger.etcd, ledger.root):
            return  # what that has built may be no release yet; it removes what is old when it is live
        running = scheduler.running(ledger.app)  # first: where there is no release after that, these are of none
        history = ledger.history()
        found = sort_out(history, settings.deploy.keep_releases, running)
        with engine_at(settings.engine.url) as engine:
            _remove_from(engine, f"{settings.registry.address}/{ledger.app}", found.images)
        if settings.is_single_machine:
            if not history:  # and nobody builds one now; once what has ended is forgotten, the next one is v1
                scheduled = scheduler.status().names
                scheduler.discard([unit for unit in running if unit not in scheduled])
            _mend(state)
            _collect(state, settings, at_once=at_once)


def _await_removed(app: str, state: State, settings: Settings) -> None:
    """Wait until the containers of a destroyed app have ended."""
    patience = settings.deploy.drain + settings.deploy.grace + _PATIENCE_SECONDS
    with engine_at(settings.engine.url) as engine:
        for container in engine.api.containers(all=True, filters={"label": f"nap.app={app}", "name": state.name}):
            with suppress(NotFound):
                engine.api.wait(container["Id"], timeout=patience, condition="removed")


def _remove_from(engine: Engine, repository: str, stay: frozenset[str]) -> None:
    """Remove the images of this repository, except those in `stay` and those in use."""
    try:
        for image in engine.api.images(name=repository):
            tags, digests = image["RepoTags"] or [], image["RepoDigests"] or []
            if stay.isdisjoint(digests):
                for reference in (*tags, *digests):
                    if reference.startswith((f"{repository}:", f"{repository}@")):
                        _remove_reference(engine, reference)
    except DockerException as error:
        raise NapError(f"the engine cannot remove an image: {error}") from error


def _remove_reference(engine: Engine, reference: str) -> None:
    try:
        engine.api.remove_image(reference)
    except APIError as error:
        if error.status_code not in {404, 409}:  # it went with another, or is in use
            raise


def _collect(state: State, settings: Settings, *, at_once: bool) -> None:
    """Run garbage collection of nap's own registry, which is stopped meanwhile."""
    from nap_receiver.build.registry import registry_answers  # for those few who collect
    from nap_receiver.core.installed import path_of

    due, collecting = _mark(state, "uncollected"), _mark(state, "collecting")
    collected = _mark(state, "collected")
    last = collected.stat().st_mtime if collected.exists() else 0.0
    if not due.exists() or (not at_once and time.time() - last < _COLLECT_EVERY_SECONDS):
        return
    due.rename(collecting)
    supervisor = _supervisor(state)
    try:
        supervisor.unless((Fault.NOT_RUNNING,), "stopProcess", "registry", True)
        command = [path_of("docker-registry"), "garbage-collect", str(state.run / "registry.yml")]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COLLECT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NapError(f"the registry's garbage-collect did not end within {_COLLECT_SECONDS} s") from error
    finally:
        _mend(state)
    give_up = time.monotonic() + _REGISTRY_SECONDS  # what waits to build finds it answering
    while not registry_answers(state, settings) and time.monotonic() < give_up:
        time.sleep(_LOOK_AGAIN_SECONDS)
    if done.returncode:
        last_line = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()[-1:]
        raise NapError(f"the registry's garbage-collect exited with status {done.returncode}: {''.join(last_line)}")
    due.unlink(missing_ok=True)
    collected.touch()


def _mend(state: State) -> None:
    """Start the registry again if it was stopped for garbage collection, also after a kill."""
    collecting = _mark(state, "collecting")
    if collecting.exists():
        _supervisor(state).unless((Fault.ALREADY_STARTED,), "startProcess", "registry", False)
        with suppress(FileNotFoundError):  # another one was quicker
            collecting.rename(_mark(state, "uncollected"))


@contextmanager
def registry_in_use(app: App) -> Iterator[None]:
    """Prevent pruning in the registry during the block, in which an image is built and pushed."""
    with ExitStack() as held:
        with app.channel.waiting("waiting for the removal of old images"):
            held.enter_context(_locked(app.state, fcntl.LOCK_SH))
        _mend(app.state)
        yield


@contextmanager
def _locked(state: State, how: int, patience: float = 0) -> Iterator[None]:
    path = state.registry_lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise NapError(f"{path}: {error.strerror}") from error
    with lock:
        with deadline(patience, "waiting for builds to end", ""):
            fcntl.flock(lock, how)
        yield


def _mark(state: State, what: str) -> Path:
    return state.run / f"registry.{what}"


def _supervisor(state: State) -> Supervisor:
    return Supervisor(state.run / "supervisor.sock", "nap's supervisor")


def require_space(deploy: Deploy, engine: Engine) -> None:
    """Raise `NapError` if less disk is free than a build needs, even after pruning."""
    if not lack_of_space(deploy.app.state, deploy.settings, engine):
        return
    deploy.channel.step(f"{deploy.app.name}: the disk is nearly full; removing images of old releases first")
    with deploy.channel.waiting("removing images of old releases"):
        keep_recent(deploy, wait=True)
    if lack := lack_of_space(deploy.app.state, deploy.settings, engine):
        raise NapError(
            f"{deploy.app.name}: {lack}",
            advice=[
                "Ask the operator to free space (docker system df; a lower deploy.keep_releases keeps fewer images), "
                "then push again.",
                "The minimum is the setting deploy.free_space.",
            ],
        )


def lack_of_space(state: State, settings: Settings, engine: Engine) -> str:
    """Return where less disk is free than a build needs, and how much is missing; empty if there is enough."""
    needed = settings.deploy.free_space
    if not needed:
        return ""
    places = {"where the engine keeps images": _data_of(engine)}
    if settings.is_single_machine:
        places["where the registry keeps images"] = state.root / "registry"
    places["where nap keeps its state"] = state.root
    for what, path in places.items():
        with suppress(OSError):  # not there yet, or not to be looked at
            if path and (free := shutil.disk_usage(path).free) < needed:
                return (
                    f"not enough disk space {what} ({path}): {_size(needed)} needed, {_size(free)} free, "
                    f"{_size(needed - free + 2**20 - 1)} missing"
                )
    return ""


def _data_of(engine: Engine) -> Path | None:
    """Return the data folder of an engine on this machine; None for a remote engine."""
    if engine.api.base_url != "http+docker://localhost":  # the library's name for what is behind a unix socket
        return None
    try:
        return Path(engine.api.info()["DockerRootDir"])
    except (DockerException, OSError):
        return None  # the build will say what is wrong with it


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size // 2**20} MB"


def main() -> None:
    """Prune an app: `python -m nap_receiver.deploy.image_pruning STATE APP`."""
    from nap_receiver.store.etcd import connect

    keep_private()
    os.chdir("/")
    root, app = sys.argv[1:]
    state = state_at(root)
    try:
        settings = load(state).settings
        with connect(settings.etcd) as etcd:
            ledger = Ledger(etcd, settings.etcd, app)
            remove_images(ledger, scheduler_of(state, settings), state, settings, at_once=False)
    except (NapError, OSError) as error:
        print(time.strftime("%F %T"), app, error)


if __name__ == "__main__":
    run(main)
