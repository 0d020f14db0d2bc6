"""`ps`: list, scale, restart, stop and start the instances of an app."""

import re

import click

from nap_receiver.core.paths import State
from nap_receiver.frontends.commands.table import (
    Caller,
    app_argument,
    at_rest,
    change_app,
    command,
    json_option,
    records_of,
    show_listing,
)
from nap_receiver.model.release import MOST_INSTANCES, PROCESS_TYPE


@command("ps", right="read")
@app_argument
@json_option
def list_processes(caller: Caller, app: str, as_json: bool) -> None:
    """List the instances of APP with state and address."""
    from nap_receiver.core.settings import load
    from nap_receiver.model.app_url import url_of
    from nap_receiver.store.announcements import announced, good

    records = records_of(caller, app)
    current = records.current()
    healthy = good(records.reader, records.places, app)
    urls = {each.instance: each.url for each in announced(records.reader, records.places, app)}
    wanted = {instance.key: instance for instance in current.instances} if current else {}
    rows = []
    for key in [*wanted, *sorted(healthy - wanted.keys())]:
        release, _, process = key.partition(".")
        if key not in wanted:
            state = "stopping"
        else:
            state = "running" if key in healthy else "unhealthy"
        rows.append((process, release, state, urls.get(key, "")))
    rest = at_rest(current) if current else (f"{app} was never deployed", "To deploy it: git push nap master")
    if not rest and not healthy and _runs_nothing(caller.state):
        rows, rest = [], (f"{app} is released, and nap runs nothing here", f"Its image: releases:info {app}")
    if rows or as_json or not rest:
        show_listing(rows, "process", "release", "state", "address", as_json=as_json)
    if as_json:
        return
    if rest:
        click.echo(". ".join(rest))
    elif any(each.is_web for each in wanted.values()) and (url := url_of(app, load(caller.state).settings)):
        click.echo(f"\n{app} is reached at {url}")


def _runs_nothing(state: State) -> bool:
    """Whether the scheduler runs nothing."""
    from nap_receiver.core.settings import load
    from nap_receiver.schedulers.chosen import scheduler_of

    return scheduler_of(state, load(state).settings).runs_on == "nothing"


@command("ps:restart", right="push")
@app_argument
def restart_processes(caller: Caller, app: str) -> None:
    """Replace all instances of APP with new ones, in a new release. The app stays reachable."""
    from nap_receiver.deploy import operations

    change_app(caller, app, operations.restart)


@command("ps:stop", right="push")
@app_argument
def stop_processes(caller: Caller, app: str) -> None:
    """Stop all instances of APP, until ps:start or the next deploy."""
    from nap_receiver.deploy import operations

    change_app(caller, app, operations.stop)


@command("ps:start", right="push")
@app_argument
def start_processes(caller: Caller, app: str) -> None:
    """Start the instances of APP again after ps:stop."""
    from nap_receiver.deploy import operations

    change_app(caller, app, operations.start)


def _formation(context: click.Context, parameter: click.Parameter, counts: tuple[str, ...]) -> dict[str, int]:
    formation: dict[str, int] = {}
    for count in counts:
        process, _, number = count.partition("=")
        fits = PROCESS_TYPE.fullmatch(process) and re.fullmatch("[0-9]{1,9}", number)
        if not fits or int(number) > MOST_INSTANCES:
            raise click.UsageError(
                f'expected PROCESS=COUNT with a count from 0 to {MOST_INSTANCES}, got "{count[:80]}"'
            )
        if process in formation:
            raise click.UsageError(f"expected each PROCESS once, got {process} twice")
        formation[process] = int(number)
    return formation


@command("ps:scale", right="push")
@app_argument
@click.argument("formation", nargs=-1, callback=_formation, metavar="PROCESS=COUNT...")
@json_option
def scale_processes(caller: Caller, app: str, formation: dict[str, int], as_json: bool) -> None:
    """Run COUNT instances of each PROCESS of APP: ps:scale shop web=3. Without arguments, list the counts."""
    if not formation:
        records = records_of(caller, app)
        current = records.current()
        counts = current.formation if current else records.first_formation()
        show_listing(counts.items(), "process", "count", as_json=as_json)
        return
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.scale(target, formation))
