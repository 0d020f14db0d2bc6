"""Check apps: compare etcd, the scheduler and the running containers."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

from docker.errors import APIError, DockerException, NotFound

from nap_receiver.core.errors import NapError, some
from nap_receiver.deploy.rollout import Deploy, take_away_leftovers, withdraw_and_stop, work_of
from nap_receiver.engine.client import engine_at
from nap_receiver.model.release import UNIT, Instance, Release
from nap_receiver.store.announcements import PATIENCE, good
from nap_receiver.store.etcdctl import Entry
from nap_receiver.upkeep.finding import Finding, ok, problem
from nap_receiver.upkeep.inventory import Container, Inventory


def announcements(inventory: Inventory) -> Iterator[Finding]:
    """Check that each announced or healthy instance exists."""
    well, what = 0, "running container" if inventory.scheduler.runs_on == "this machine" else "unit"
    for entry, app, instance in _announced(inventory):
        if inventory.turn(app):
            continue
        runs, fact = inventory.runs(f"{app}.{instance}"), f"{app}: {instance} is announced ({entry.key})"
        if runs and entry.lease:
            well += 1
        elif runs:
            about, advice = (
                f"{fact} without a lease, so it would stay announced after its end",
                "announces it again",
            )
            yield problem(entry.key, about, f"nap doctor --fix {advice}.", app=app, repair=_renewing(entry))
        else:
            about, advice = f"{fact}, but has no {what}", "withdraws the announcement"
            yield problem(entry.key, about, f"nap doctor --fix {advice}.", app=app, repair=_forgetting(entry))
    yield ok(f"{well}, each with a {what}{inventory.left_out}")


def _announced(inventory: Inventory) -> Iterator[tuple[Entry, str, str]]:
    places = inventory.settings.etcd
    for key in inventory.etcd.keys:
        app, instance = "", ""
        if key.startswith(f"{places.announcements}/"):
            app, _, instance = key.removeprefix(f"{places.announcements}/").partition("/")
        elif key.startswith(f"{places.prefix}/apps/"):
            app, _, rest = key.removeprefix(f"{places.prefix}/apps/").partition("/")
            instance = rest.removeprefix("up/") if rest.startswith("up/") else ""
        # Others may announce there too, in their own ways.
        is_ours = instance and (app in inventory.apps or UNIT.fullmatch(f"{app}.{instance}"))
        if is_ours and (entry := inventory.etcd.get(key)):
            yield entry, app, instance


def _forgetting(announced: Entry) -> Callable[[Deploy], str]:
    def forget(deploy: Deploy) -> str:
        _forget(announced, deploy)
        return "The announcement was withdrawn."

    return forget


def _renewing(announced: Entry) -> Callable[[Deploy], str]:
    """Delete an announcement; its discovery unit writes it again, with its lease."""

    def renew(deploy: Deploy) -> str:
        since = _forget(announced, deploy)
        for change in deploy.etcd.changes([announced.key], since, PATIENCE):
            if change.key == announced.key and change.value is not None:
                return "It is announced again."
        return f"The announcement was withdrawn. It was not announced again within {PATIENCE:g} s."

    return renew


def _forget(announced: Entry, deploy: Deploy) -> int:
    """Delete this key if it is unchanged; return the revision of the delete."""
    revision = deploy.etcd.write({announced.key: None}, unchanged={announced.key: announced.revision})
    if not revision:
        raise NapError(f"{announced.key} has changed in the meantime")
    return revision


def releases(inventory: Inventory) -> Iterator[Finding]:
    """Check that every deploy has ended."""
    number = 0
    for app in inventory.idle:
        number += len(inventory.history(app)) - len(inventory.unfinished(app))
        for key in inventory.records(app).unreadable():
            about = f"{app}: {key} is not a record of a release; nap did not write it"
            yield problem(key, about, f"nap ignores it. To see it: etcdctl get {key}")
        for release in inventory.unfinished(app):
            yield problem(
                f"{app}.{release.name}",
                f"{app}: {release.name} never finished: its deploy was killed",
                "nap doctor --fix removes its leftovers; the next deploy does, too.",
                app=app,
                repair=_take_away_unfinished,
            )
    yield ok(f"{number} of {_count(len(inventory.idle), 'app')}, all finished{inventory.left_out}")


def _take_away_unfinished(deploy: Deploy) -> str:
    take_away_leftovers(deploy)
    return "Its leftovers were removed; it is recorded as failed."


def instances(inventory: Inventory) -> Iterator[Finding]:
    """Check that all instances of current releases run and are healthy."""
    if inventory.scheduler.runs_on == "nothing":
        yield ok("not checked: this scheduler runs nothing")
        return
    well = stopped = 0
    for app in inventory.idle:
        current = inventory.current(app)
        if current is None or current.stopped:
            stopped += bool(current)
            continue
        lacking = [each for each in current.instances if inventory.units.lacks(each.unit)]
        silent = [each for each in current.instances if each not in lacking and each.key not in inventory.good(app)]
        well += len(current.instances) - len(lacking) - len(silent)
        if not lacking and not silent:
            continue
        if inventory.units.started.isdisjoint(each.unit for each in current.instances):
            about = f"{app}: {current.name} is the current release, but no instance of it runs"
        else:
            faults = [f"{_some(lacking)} not started"] if lacking else []
            faults += [f"{_some(silent)} not healthy"] if silent else []
            about = f"{app}: of {current.name}, {'; '.join(faults)}"
        advice = "nap doctor --fix starts the missing instances." if lacking else _why(app)
        yield problem(f"{app}.{current.name}", about, advice, app=app, repair=_starting(current, lacking))
    several = f", and {_count(stopped, 'app')} stopped by their users" if stopped else ""
    yield ok(f"{well} of current releases, all healthy{several}{inventory.left_out}")


def _starting(current: Release, lacking: Sequence[Instance]) -> Callable[[Deploy], str]:
    def start(deploy: Deploy) -> str:
        if lacking:
            _start(lacking, deploy)
        _await_good(current, deploy.timeout if lacking else PATIENCE, deploy)
        return f"Started: {_some(lacking)}." if lacking else "All instances are healthy again."

    return start


def _start(lacking: Sequence[Instance], deploy: Deploy) -> None:
    app, release = deploy.app, lacking[0].release
    placement = deploy.scheduler.place(app.name, app.repository, release.formation)
    wanted = {each.key for each in lacking}
    work = work_of(release, deploy.ledger, deploy.scheduler, deploy.settings, placement)
    deploy.scheduler.start(work.only(wanted))


def _await_good(release: Release, seconds: float, deploy: Deploy) -> None:
    etcd, places, app = deploy.etcd, deploy.settings.etcd, release.app
    since = etcd.revision()
    missing = {each.key for each in release.instances} - good(etcd, places, app)
    if not missing:
        return
    for change in etcd.changes([places.announcements_of(app), places.up_of(app)], since, seconds):
        name = change.key.rpartition("/")[2]
        if change.value is not None:
            missing.discard(name)
        elif name in {each.key for each in release.instances}:
            missing.add(name)
        if not missing:
            return
    raise NapError(f"{', '.join(sorted(missing))} not healthy within {seconds:g} s", advice=_why(app))


def _why(app: str) -> str:
    return f"See nap logs {app}. Then push a fix, or restart it: nap ps:restart {app}"


def units(inventory: Inventory) -> Iterator[Finding]:
    """Check that each unit of the scheduler belongs to a current release."""
    well = 0
    for unit in inventory.units.instances:
        app, _, instance = unit.partition(".")
        if inventory.turn(app):
            continue
        current = inventory.current(app)
        wanted = {each.unit: each.key for each in current.instances} if current else {}
        if unit in wanted:
            well += 1
            continue
        if any(instance.startswith(f"{each.name}.") for each in inventory.unfinished(app)):
            continue  # told with that release
        answers = instance in inventory.good(app)
        if app in inventory.apps:
            serving = f"{current.name} is the current release" if current else "the app has no current release"
            about = f"{app}: {instance} has a unit, but {serving}"
            spared = answers and (current is None or not set(wanted.values()) <= inventory.good(app))
            advice = f"It is healthy, but the current release is not. To see that: nap ps {app}"
        elif not inventory.scheduler.is_ours(unit):
            continue
        else:
            about = f"{app}: {instance} has a unit, but etcd has no such app"
            spared = not inventory.is_gone(app)
            advice = "If etcd has lost data, restore it, or push the app again; else stop the app: "
            advice += inventory.scheduler.how_to_remove(app, unit)
        if inventory.scheduler.is_stopping(unit):
            continue
        yield problem(
            unit,
            about,
            advice if spared else "nap doctor --fix stops it and removes its unit.",
            app=app,
            repair=None if spared else _retiring(unit),
        )
    yield ok(f"of {_count(well, 'instance')}, all of current releases{inventory.left_out}")


def _retiring(unit: str) -> Callable[[Deploy], str]:
    def retire(deploy: Deploy) -> str:
        withdraw_and_stop(deploy.app.name, [unit], deploy)
        return "It was stopped and its unit removed."

    return retire


def containers(inventory: Inventory) -> Iterator[Finding]:
    """Check that each container belongs to a unit or to a one-off command."""
    on_cluster, well = inventory.scheduler.runs_on == "a cluster", 0
    if not inventory.sees_clients:
        yield ok("not checked: they run on other machines")
        return
    for each in inventory.containers:
        if inventory.turn(each.app):
            continue
        is_kept = each.is_instance and not each.runs and each.app in inventory.apps  # for its output
        if inventory.is_attended(each) or is_kept or (not on_cluster and each.unit in inventory.units.names):
            well += 1
            continue
        yield problem(
            each.id,
            f"{each.app}: container {each.name} has no unit and belongs to no running one-off command",
            "nap doctor --fix stops and removes it.",
            app=each.app,
            repair=_removing(each),
        )
    if on_cluster:
        counted = f"{_count(well, 'one-off command')}, each with its client; instances are on the cluster's machines"
    else:
        counted = f"{well}, each with a unit or the client of a one-off command"
    yield ok(f"{counted}{inventory.left_out}")


def _removing(container: Container) -> Callable[[Deploy], str]:
    def remove(deploy: Deploy) -> str:
        try:
            with engine_at(deploy.settings.engine.url) as engine, contextlib.suppress(NotFound):
                engine.api.stop(container.id, timeout=deploy.settings.deploy.grace)
                engine.api.remove_container(container.id, force=True, v=True)
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:  # the engine does it, for it was begun with --rm
                raise NapError(f"the engine cannot remove it: {error}") from error
        except (DockerException, OSError) as error:
            raise NapError(f"the engine cannot remove it: {error}") from error
        return "It was stopped and removed."

    return remove


def _some(which: Sequence[Instance]) -> str:
    return some([each.label for each in which])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
