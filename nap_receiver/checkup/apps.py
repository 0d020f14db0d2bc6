"""What can be wrong with apps: what etcd tells, what the scheduler has and what runs, held against each other."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from docker.errors import DockerException, NotFound

from nap_receiver.checkup.finding import Finding, ok, problem
from nap_receiver.checkup.inventory import INSTANCE, Container, Inventory
from nap_receiver.discovery import PATIENCE, await_withdrawn, good
from nap_receiver.errors import NapError
from nap_receiver.image import engine_at
from nap_receiver.push import some
from nap_receiver.release import Instance, Release
from nap_receiver.rollout import WITHDRAW_SECONDS, Deploy, take_away_leftovers
from nap_receiver.supervision import Fault, Supervisor
from nap_receiver.units import render


def announcements(there: Inventory) -> Iterator[Finding]:
    """What is announced, or said to be up, is there."""
    well, what = 0, "container that runs" if there.settings.scheduler == "local" else "unit"
    for key, app, instance in _announced(there):
        if there.turn(app):
            continue
        if there.runs(f"{app}.{instance}"):
            well += 1
            continue
        yield problem(
            key,
            f"{app}: {instance} is announced ({key}) and has no {what}",
            "nap doctor --fix takes the announcement away.",
            app=app,
            mend=_forgetting(key, there.etcd.revision_of(key)),
        )
    yield ok(f"{well}, each with its {what.removesuffix(' that runs')}{there.left_out}")


def _announced(there: Inventory) -> Iterator[tuple[str, str, str]]:
    places = there.settings.etcd
    for key in there.etcd.keys:
        app, instance = "", ""
        if key.startswith(f"{places.announcements}/"):
            app, _, instance = key.removeprefix(f"{places.announcements}/").partition("/")
        elif key.startswith(f"{places.prefix}/apps/"):
            app, _, rest = key.removeprefix(f"{places.prefix}/apps/").partition("/")
            instance = rest.removeprefix("up/") if rest.startswith("up/") else ""
        # Others may announce there too, in their own ways.
        if instance and (app in there.apps or INSTANCE.fullmatch(f"{app}.{instance}")):
            yield key, app, instance


def _forgetting(key: str, revision: int) -> Callable[[Deploy], str]:
    def forget(deploy: Deploy) -> str:
        if not deploy.etcd.write({key: None}, unchanged={key: revision}):
            raise NapError(f"{key} was written anew meanwhile")
        return "The announcement is taken away."

    return forget


def releases(there: Inventory) -> Iterator[Finding]:
    """What was begun came to an end."""
    number = 0
    for app in there.idle:
        number += len(there.history(app)) - len(there.unfinished(app))
        for release in there.unfinished(app):
            yield problem(
                f"{app}.{release.name}",
                f"{app}: {release.name} never finished: its deploy was killed",
                "nap doctor --fix takes away what is left of it, and so does the next deploy.",
                app=app,
                mend=_take_away_unfinished,
            )
    yield ok(f"{number} of {_count(len(there.idle), 'app')}, each came to an end{there.left_out}")


def _take_away_unfinished(deploy: Deploy) -> str:
    take_away_leftovers(deploy)
    return "It is taken away, and written down as failed."


def instances(there: Inventory) -> Iterator[Finding]:
    """What the current release of an app is to run does run, and is announced or up."""
    well = stopped = 0
    for app in there.idle:
        current = there.current(app)
        if current is None or current.stopped:
            stopped += bool(current)
            continue
        lacking = [each for each in current.instances if there.units.lacks(each.unit)]
        silent = [each for each in current.instances if each not in lacking and each.key not in there.good(app)]
        well += len(current.instances) - len(lacking) - len(silent)
        if not lacking and not silent:
            continue
        if len(lacking) == len(current.instances):
            about = f"{app}: {current.name} is the current release, and nothing of it runs"
        else:
            told = [f"{_some(lacking)} not kept running and announced"] if lacking else []
            told += [f"{_some(silent)} neither announced nor up"] if silent else []
            about = f"{app}: of {current.name}, {'; '.join(told)}"
        advice = "nap doctor --fix starts what does not run." if lacking else _why(app)
        yield problem(f"{app}.{current.name}", about, advice, app=app, mend=_starting(lacking))
    several = f", and {_count(stopped, 'app')} stopped by their users" if stopped else ""
    yield ok(f"{well} of current releases, each answers or is up{several}{there.left_out}")


def _starting(lacking: Sequence[Instance]) -> Callable[[Deploy], str]:
    def start(deploy: Deploy) -> str:
        current = deploy.ledger.current()
        assert current
        if lacking:
            _start(lacking, deploy)
        _await_good(current, deploy.timeout if lacking else PATIENCE, deploy)
        return f"Started: {_some(lacking)}." if lacking else "All of it is announced, or up, again."

    return start


def _start(lacking: Sequence[Instance], deploy: Deploy) -> None:
    settings, scheduler, app = deploy.settings, deploy.scheduler, deploy.app
    placement = scheduler.place(app.name, app.repository, lacking[0].release.formation)
    units = [render(each, settings, scheduler.machine, settings.engine.url, placement) for each in lacking]
    scheduler.start(units)
    if settings.scheduler == "local":  # what it has already and somebody stopped
        supervisor = Supervisor(app.state.run / "scheduler.sock", "the local scheduler")
        for unit in (unit for pair in units for unit in (pair.app, pair.discovery)):
            supervisor.unless((Fault.ALREADY_STARTED,), "startProcess", unit.name, False)


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
    raise NapError(f"{', '.join(sorted(missing))} neither announced nor up within {seconds:g} s", advice=_why(app))


def _why(app: str) -> str:
    return f"See what it says: nap logs {app}; then mend and push it, or have it started anew: nap ps:restart {app}"


def units(there: Inventory) -> Iterator[Finding]:
    """What the scheduler has is of a release that is to run."""
    well = 0
    for unit in there.units.instances:
        app, _, instance = unit.partition(".")
        if there.turn(app):
            continue
        current = there.current(app)
        wanted = {each.unit: each.key for each in current.instances} if current else {}
        if unit in wanted:
            well += 1
            continue
        if any(instance.startswith(f"{each.name}.") for each in there.unfinished(app)):
            continue  # told with that release
        answers = instance in there.good(app)
        if app in there.apps:
            serving = f"{current.name} is the current release" if current else "no release is current"
            about = f"{app}: {instance} has a unit, but {serving}"
            spared = answers and (current is None or not set(wanted.values()) <= there.good(app))
            advice = f"It is good, where the current release is not; see that one: nap ps {app}"
        elif there.settings.scheduler == "fleet" and not _is_of_this_nap(unit, there):
            continue
        else:
            about = f"{app}: {instance} has a unit, but etcd knows of no such app"
            spared = not there.is_gone(app)
            advice = "If etcd has lost data, restore it, or push the app again; else stop the app: nap down, then "
            advice += f"rm {there.state.units}/{app}.*" if there.settings.scheduler == "local" else f"destroy {unit}"
        if there.is_at_work("nap_receiver.fleet", [unit]):
            continue
        yield problem(
            unit,
            about,
            advice if spared else "nap doctor --fix stops it, and takes its unit away.",
            app=app,
            mend=None if spared else _retiring(unit),
        )
    yield ok(f"of {_count(well, 'instance')}, each of its app's current release{there.left_out}")


def _is_of_this_nap(unit: str, there: Inventory) -> bool:
    """Whether a unit of the cluster's was made under these settings: it says where it tells how it ended."""
    from nap_receiver.fleet import Fleet  # its library is for those who call it

    places, app = there.settings.etcd, unit.partition(".")[0]
    text = Fleet(there.state, there.settings)._call("cat", f"{unit}.service")
    return places.exits_of(app) in text and places.url in text


def _retiring(unit: str) -> Callable[[Deploy], str]:
    def retire(deploy: Deploy) -> str:
        app, _, instance = unit.partition(".")
        deploy.scheduler.withdraw([unit])
        await_withdrawn(deploy.etcd, deploy.settings.etcd, app, [instance], WITHDRAW_SECONDS)
        deploy.scheduler.stop([unit])
        return "It is stopped, and its unit taken away."

    return retire


def containers(there: Inventory) -> Iterator[Finding]:
    """What runs is run by a unit, or is a one-off task of somebody's."""
    if there.settings.scheduler == "fleet":
        yield ok("not looked at: they are on the cluster's machines")
        return
    well = 0
    for each in there.containers:
        if there.turn(each.app):
            continue
        if each.unit in there.units.there or there.is_attended(each):
            well += 1
            continue
        yield problem(
            each.id,
            f"{each.app}: the container {each.unit}.{there.state.name} has no unit, and nobody waits for its end",
            "nap doctor --fix stops and removes it.",
            app=each.app,
            mend=_removing(each),
        )
    yield ok(f"{well}, each with its unit or whoever began it{there.left_out}")


def _removing(container: Container) -> Callable[[Deploy], str]:
    def remove(deploy: Deploy) -> str:
        try:
            with engine_at(deploy.settings.engine.url) as engine, contextlib.suppress(NotFound):
                engine.api.stop(container.id, timeout=deploy.settings.deploy.grace)
                engine.api.remove_container(container.id, force=True)
        except (DockerException, OSError) as error:
            raise NapError(f"the engine does not remove it: {error}") from error
        return "It is stopped and removed."

    return remove


def _some(which: Sequence[Instance]) -> str:
    return some([each.label for each in which])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
