"""Change an app without a push: each change is a release, made without a build.

Each function raises `NapError` as a deploy does: after a failure, the release before still serves. Before the first
release there is nothing to run; the change is stored for the first release.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from nap_receiver.core.errors import NapError, some
from nap_receiver.core.paths import State
from nap_receiver.core.settings import ContainerSettings, Settings
from nap_receiver.deploy.rollout import App, Deploy, release, under_way, withdraw_and_stop
from nap_receiver.git.repository import remove
from nap_receiver.model.bounds import require_instances, require_process_types, require_variables
from nap_receiver.model.release import EVERY, RUN, Limits, Protocol, Release, limits_among, never_deployed
from nap_receiver.model.retention_policy import before, live_among, require_kept, sort_out
from nap_receiver.routing.domains import give_up_all
from nap_receiver.schedulers.chosen import scheduler_of
from nap_receiver.store.ledger import Ledger


def scale(app: App, counts: dict[str, int]) -> None:
    """Set the number of instances of each of these process types. Before the first release, the numbers are stored for
    it."""
    counts_shown = " ".join(f"{process}={n}" for process, n in counts.items())
    with under_way(app, counts_shown, f"scaling to {counts_shown}") as deploy:
        current = deploy.ledger.current()
        if current is None:
            before = deploy.ledger.first_formation()
            after, limits = before | counts, app.settings.limits
            require_process_types(app.name, len(after), len(before), limits)
            require_instances(app.name, before, after, limits)
            deploy.ledger.set_first_formation(after)
            app.channel.result(f"{app.name}: {counts_shown}, for its first release")
            return
        require_processes(current, counts)
        release_again(
            replace(current, formation=current.formation | counts), f"Scale {counts_shown}", deploy, is_new=False
        )


def restart(app: App) -> None:
    """Replace all running instances by new ones."""
    with under_way(app, "restart", "restarting") as deploy:
        release_again(require_current(deploy), "Restart", deploy, is_new=False)


def stop(app: App) -> None:
    """Stop all instances, until the app is started or deployed."""
    with under_way(app, "stop", "stopping it") as deploy:
        current = require_current(deploy)
        if current.stopped:
            app.channel.result(f"{app.name} is already stopped")
            return
        release_again(replace(current, stopped=True), "Stop", deploy, is_new=False)


def start(app: App) -> None:
    """Start the instances of a stopped app."""
    with under_way(app, "start", "starting it") as deploy:
        current = require_current(deploy)
        if not current.stopped:
            app.channel.result(f"{app.name} is not stopped")
            return
        release_again(replace(current, stopped=False), "Start", deploy, is_new=False)


def set_protocol(app: App, protocol: Protocol) -> None:
    """Set the protocol between router and web instances. Before the first release, it is stored for it."""
    with under_way(app, "protocol", "changing its protocol") as deploy:
        current = deploy.ledger.current()
        if protocol == (current.protocol if current else deploy.ledger.first_protocol()):
            app.channel.result(f"{app.name}: nothing changed")
            return
        if current is None:
            deploy.ledger.set_first_protocol(protocol)
            app.channel.result(f"{app.name}: protocol {protocol}, for its first release")
            return
        changed = replace(current, protocol=protocol, rollback_to=0)
        release_again(changed, f"Set protocol {protocol}", deploy, is_new=False)


def limit(app: App, process: str, change: Callable[[Limits], Limits]) -> None:
    """Change the limits of a process type, or of `EVERY` one without limits of its own.

    Before the first release, the limits are stored for it.
    """
    with under_way(app, "limits", "changing its limits") as deploy:
        current = deploy.ledger.current()
        if current and process not in {EVERY, RUN}:
            require_processes(current, [process])
        before = current.limits if current else deploy.ledger.first_limits()
        had = limits_among(before, process)
        limits = before | {process: change(had)}
        if limits[process].cpus != had.cpus:
            require_processors(limits[process].cpus, app.state, app.settings)
        require_allowed(limits[process], app.settings.container)
        limits_left = {name: each for name, each in limits.items() if each != Limits() or name != EVERY}
        subject = process if process != EVERY else "every process type"
        if current is None:
            require_process_types(app.name, len(limits_left), len(before), app.settings.limits)
            deploy.ledger.set_first_limits(limits_left)
            app.channel.result(f"{app.name} has limits for {subject}, for its first release")
            return
        release_again(replace(current, limits=limits_left), f"Limit {subject}", deploy, is_new=False)


def set_port(app: App, port: int) -> None:
    """Set the web port, or with 0 use the port of the image.

    Before the first release, the port is stored for it.
    """
    with under_way(app, "port", "changing its port") as deploy:
        current = deploy.ledger.current()
        if port == (current.set_port if current else deploy.ledger.first_port()):
            app.channel.result(f"{app.name}: nothing changed")
            return
        if current is None:
            deploy.ledger.set_first_port(port)
            shown = str(port) if port else "of the image"
            app.channel.result(f"{app.name}: web port {shown}, for its first release")
            return
        why = f"Set port {port}" if port else "Unset port"
        changed = replace(current, set_port=port, found_port=0, rollback_to=0)
        release_again(changed, why, deploy, is_new=False)


def require_processes(release: Release, processes: Iterable[str]) -> None:
    """Raise `NapError` if the release lacks one of these process types."""
    if unknown := set(processes) - release.formation.keys():
        process_types = ", ".join(release.formation)
        raise NapError(f"{release.app} has no process type {', '.join(sorted(unknown))}; there are: {process_types}")


def require_allowed(limits: Limits, settings: ContainerSettings) -> None:
    """Raise `NapError` if the limits are above the operator's maximum."""
    most = (("--memory", limits.memory, settings.most_memory, "b"), ("--cpu", limits.cpus, settings.most_cpus, ""))
    for option, asked, allowed, unit in most:
        if allowed and asked > allowed:
            name = "memory" if unit else "cpus"
            raise NapError(
                f"{option}: expected {_number(allowed)}{unit} or less, got {_number(asked)}{unit}; nothing was changed",
                advice=f"For more, ask the operator to raise container.most_{name}.",
            )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def require_processors(number: float, state: State, settings: Settings) -> None:
    """Raise `NapError` if this machine runs the app and has fewer processors: no instance would start."""
    if not number or scheduler_of(state, settings).runs_on != "this machine":
        return
    from nap_receiver.engine.client import engine_at  # only this change needs its libraries

    with engine_at(settings.engine.url) as engine:
        processors = engine.processors()
    if number > processors:
        raise NapError(
            f"--cpu: expected {processors} or less, the processors of this machine, got {number:g}",
            advice=f"Nothing was changed. Use 0.01 to {processors}, or 0 for the default.",
        )


def rollback(app: App, number: int | None) -> None:
    """Run the code and configuration of an earlier release; without a number, of the last one that differs. Counts
    stay.

    Counts stay as they are now.
    """
    with under_way(app, f"v{number}" if number else "rollback", "rolling back") as deploy:
        current = require_current(deploy)
        target = rollback_target(deploy.ledger, current, number, app.settings.deploy.keep_releases)
        formation = {process: current.formation.get(process, n) for process, n in target.formation.items()}
        again = replace(
            target,
            formation=formation,
            limits=current.limits,
            stopped=current.stopped,
            rollback_to=target.rollback_to or target.number,
        )
        release_again(again, f"Rollback to {target.name}", deploy)


def configure(app: App, added: dict[str, str], removed: Sequence[str]) -> None:
    """Set and unset variables. Before the first release, they are stored for it."""
    with under_way(app, "config", "changing its variables") as deploy:
        ledger, current = deploy.ledger, deploy.ledger.current()
        before = ledger.configuration(ledger.config_in_force())
        after = {name: value for name, value in (before | added).items() if name not in removed}
        if after == before:
            app.channel.result(f"{app.name}: nothing changed")
            return
        if added:
            require_variables(app.name, before, after, app.settings.limits)
        number = ledger.write_configuration(after)
        if current is None:
            ledger.set_first_config(number)
            app.channel.result(f"{app.name} has {some(sorted(after)) or 'no variables'}, for its first release")
            return
        why = f"Config add {some(list(added))}" if added else f"Config remove {some(removed)}"
        release_again(replace(current, config=number, rollback_to=0), why, deploy)


def destroy(app: App) -> None:
    """Stop the app and remove everything of it. After a failure it can be called again."""
    state, channel = app.state, app.channel
    with under_way(app, "destroy", "destroying it") as deploy:
        not_removed = end(deploy)
        if app.repository.is_relative_to(state.repositories):
            remove(app.repository, state)
        else:
            not_removed.append(f"{app.repository}, which is not a repository of nap's gate")
        shutil.rmtree(state.deploy_logs / app.name, ignore_errors=True)
        channel.result(f"{app.name} is destroyed")
        for what in not_removed:
            channel.detail(f"Kept: {what}")


def end(deploy: Deploy, heir: str = "") -> list[str]:
    """Stop all instances of the app, and remove its images and its keys in etcd except its lock.

    The app `heir`, if there is one, gets its domains. Returns what could not be removed, and why.
    """
    from nap_receiver.deploy.image_pruning import forget_all  # libraries that few other changes have need of

    app, etcd, settings = deploy.app.name, deploy.etcd, deploy.settings
    give_up_all(etcd, settings.etcd, app, heir)
    images = sorted({release.image for release, _ in deploy.ledger.history()})
    running = deploy.scheduler.running(app)
    deploy.channel.step(f"Stopping {app}: {some(running) or 'nothing runs'}")
    withdraw_and_stop(app, running, deploy)
    forget(deploy)
    etcd.delete(settings.etcd.access_of(app))
    give_up_all(etcd, settings.etcd, app, heir)  # what was added meanwhile; now nothing can be
    try:
        forget_all(app, images, deploy.app.state, settings)
    except NapError as error:
        return [f"its images in the registry: {error}"]
    return []


def forget(deploy: Deploy) -> None:
    """Remove the keys of the app except its lock."""
    deploy.etcd.delete_below(f"{deploy.ledger.root}/", {deploy.lock.key})


def require_current(deploy: Deploy) -> Release:
    """Return the current release. Raises `NapError` if there is none."""
    if current := deploy.ledger.current():
        return current
    raise never_deployed(deploy.ledger.app)


def rollback_target(ledger: Ledger, current: Release, number: int | None, keep: int) -> Release:
    """Return the release of that number, or the last live one before `current` that differs from it.

    Raises `NapError` if there is none, or if its image is not kept.
    """
    history = ledger.history()
    live = live_among(history)
    if number is None:
        target = before(live)
        if target is None:
            same = f", which is v{current.rollback_to} again," if current.rollback_to else ""
            raise NapError(
                f"{ledger.app} has nothing to go back to: no release before {current.name}{same} was live with other "
                "code, commands, checks, variables, port or protocol",
                advice=f"To list the releases: releases {ledger.app}",
            )
    else:
        target = next((each for each in live if each.number == number), None)
        if target is None:
            raise NapError(
                f"{ledger.app} has no release v{number} that was live",
                advice=f"To list the releases: releases {ledger.app}",
            )
    require_kept(target, history, keep)
    return target


def release_again(source: Release, why: str, deploy: Deploy, *, is_new: bool = True) -> None:
    """Make a new release of `source`, and roll it out."""
    current = require_current(deploy)
    require_instances(source.app, current.formation, source.formation, deploy.settings.limits)
    placement = deploy.scheduler.place(source.app, deploy.app.repository, source.formation)
    release(replace(source, by=deploy.app.who, why=why), placement, deploy, is_new=is_new)
    if sort_out(deploy.ledger.history(), deploy.settings.deploy.keep_releases).going:
        # Imported when the app is live, because its libraries take a quarter of a second.
        from nap_receiver.deploy.image_pruning import keep_recent

        keep_recent(deploy)
