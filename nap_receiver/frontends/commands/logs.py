"""`logs`: output of the instances of an app."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import Caller, app_argument, at_rest, command, records_of, release_number
from nap_receiver.model.release import ROUTER, Release, never_deployed

if TYPE_CHECKING:
    from nap_receiver.schedulers.log_source import Wanted
    from nap_receiver.store.ledger import Records

_USUAL_LINES = 100
_STANDARD_OUTPUT = 1


def _lines(context: click.Context, parameter: click.Parameter, value: str) -> int:
    from nap_receiver.deploy.logs import MOST_LINES

    if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) > MOST_LINES:
        raise click.UsageError(f"expected a number of lines from 0 to {MOST_LINES}, got {value[:40]!a}")
    return int(value)


def _process(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?(\.[1-9][0-9]{0,2})?", value):
        raise click.UsageError(f"expected a process such as web or web.1, got {value[:40]!a}")
    return value


@command("logs", right="read")
@app_argument
@click.option("-t", "--tail", is_flag=True, help="Follow the logs, also of instances that start later.")
@click.option(
    "-n",
    "--num",
    "most",
    metavar="LINES",
    callback=_lines,
    default=str(_USUAL_LINES),
    show_default=True,
    help="Number of lines.",
)
@click.option(
    "-p",
    "--process",
    metavar="PROCESS",
    callback=_process,
    default="",
    help=f"Only this process: web, or web.1. {ROUTER}: the HTTP requests to APP.",
)
@click.option("--release", "number", metavar="RELEASE", callback=release_number, help="Only this release: v3.")
def show_logs(caller: Caller, app: str, tail: bool, most: int, process: str, number: int | None) -> None:
    """Show the latest output of the instances of APP, merged by time. Default: the current release."""
    from nap_receiver.core.settings import load
    from nap_receiver.deploy.logs import follow, merged
    from nap_receiver.schedulers.chosen import scheduler_of
    from nap_receiver.schedulers.log_source import Wanted

    records = records_of(caller, app)
    if process == ROUTER:
        _show_requests(caller, records, tail, most, number)
        return
    release = current = records.current()
    wanted = Wanted(app, f"v{number}" if number is not None else "", process)
    rest = None
    if number is not None:
        release = next((each for each, _ in records.history() if each.number == number), None)
        if release is None:
            raise NapError(f"{app} has no release v{number}", advice=f"To list the releases: releases {app}")
    elif current and (rest := at_rest(current, process.partition(".")[0])):
        release = _last_that_ran(records, wanted)
    if release is None and not (tail or rest):
        if not records.history():
            raise never_deployed(app)
        raise NapError(
            f"{app} has no current release", advice=f"To see the log of its last deploy: builds:output {app}"
        )
    instances = [each for each in release.instances if wanted.includes(each.label)] if release else []
    if release and not instances:
        _refuse_unknown(release, process, tail)
    settings = load(caller.state).settings
    # Ctrl-C is how one stops to follow, and whoever reads it through a pipe may have seen enough.
    with suppress(BrokenPipeError, KeyboardInterrupt), scheduler_of(caller.state, settings).logs(app) as source:
        lines = source.past(instances, most)
        shown = merged(lines, most)
        for why in source.missing:
            click.echo(f" !     Not shown: the output of {why}", err=True)
        if rest:
            why, how = rest
            if not lines and not tail:
                raise NapError(f"{why}, and its earlier output is gone", advice=how)
            printed = f"; this is the output of {release.name}" if shown and release else ""
            click.echo(f" !     {why}{printed}", err=True)
            click.echo(f" !     {how}", err=True)
        elif not lines and release != current and release and not tail:
            raise NapError(
                f"the output of {app} {release.name} is gone",
                advice=f"To see the log of its deploy: builds {app}, then builds:output {app} BUILD",
            )
        if shown:
            click.echo("\n".join(map(str, shown)))
        if tail:
            follow(source, wanted, _STANDARD_OUTPUT, click.echo)


def _show_requests(caller: Caller, records: "Records", tail: bool, most: int, number: int | None) -> None:
    """Show the last requests to an app in the router's log."""
    from nap_receiver.core.settings import load
    from nap_receiver.deploy.logs import Requests, follow, merged, requests_since
    from nap_receiver.routing.caddy_configuration import is_routing
    from nap_receiver.routing.domains import names_of
    from nap_receiver.schedulers.log_source import Wanted

    settings, log = load(caller.state).settings, caller.state.router_log
    if number is not None:
        advice = f"To see all requests: logs {records.app} -p {ROUTER}"
        raise NapError("requests cannot be filtered by release", advice=advice)
    if not log.exists() and not is_routing(caller.state):  # Caddy makes it when it has answered somebody
        raise NapError(
            "no router has run on this machine; its log is on the machine where it runs",
            advice=f"Read it there: {log}, or below its state directory (docs/router.md).",
        )
    names = names_of(records.reader, settings, records.app)
    requests = Requests(records.app, log, names, requests_since(records.history()))
    with suppress(BrokenPipeError, KeyboardInterrupt):
        if shown := merged(requests.past([], most), most):
            click.echo("\n".join(map(str, shown)))
        if tail:
            follow(requests, Wanted(records.app), _STANDARD_OUTPUT, click.echo)


def _last_that_ran(records: "Records", wanted: "Wanted") -> Release | None:
    """Return the last live release with such an instance; its output may still exist."""
    for release, ended in reversed(records.history()):
        if ended and ended.state == "live" and any(wanted.includes(each.label) for each in release.instances):
            return release
    return None


def _refuse_unknown(release: Release, process: str, tail: bool) -> None:
    """Raise `NapError` for an unknown process; if it is followed, it may start later if its type is known."""
    if rest := release.at_rest(process.partition(".")[0]):
        raise NapError(
            f"{release.app} {release.name} ran no {process or 'instance'}: it was {rest[0]}",
            advice=f"To list the releases: releases {release.app}",
        )
    if tail and process.partition(".")[0] in release.formation:
        return
    labels = ", ".join(instance.label for instance in release.instances)
    raise NapError(f"{release.app} {release.name} has no process {process}; there are: {labels}")
