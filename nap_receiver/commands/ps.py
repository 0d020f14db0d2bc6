"""The processes of an app."""

import re

import click

from nap_receiver.commands.table import (
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    ledger_of,
    show_listing,
)
from nap_receiver.errors import NapError

_MOST_INSTANCES = 100
_PROCESS_TYPE = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@command("ps", right="read")
@app_argument
@json_option
def list_processes(caller: Caller, app: str, as_json: bool) -> None:
    """List the instances of APP, and where they answer."""
    from nap_receiver.discovery import announced

    with ledger_of(caller, app) as ledger:
        current = ledger.current()
        there = {each.instance: each for each in announced(ledger.etcd, ledger.places, app)}
    wanted = [instance.key for instance in current.instances] if current else []
    rows = []
    for key in [*wanted, *sorted(there.keys() - set(wanted))]:
        release, _, process = key.partition(".")
        answers = "answers" if key in there else "does not answer"
        rows.append((process, release, answers if key in wanted else "leaves", there[key].url if key in there else ""))
    show_listing(rows, "process", "release", "state", "address", as_json=as_json)


@command("ps:restart", right="push")
@app_argument
def restart_processes(caller: Caller, app: str) -> None:
    """Put new instances in the place of those of APP, as a new release of the same; not a moment without one."""
    from nap_receiver import changes

    change_app(caller, app, changes.restart)


@command("ps:scale", right="push")
@app_argument
@click.argument("counts", nargs=-1, required=True, metavar="PROCESS=COUNT...")
def scale_processes(caller: Caller, app: str, counts: tuple[str, ...]) -> None:
    """Run COUNT instances of each PROCESS of APP: ps:scale shop web=3"""
    from nap_receiver import changes

    formation = _formation(counts)
    change_app(caller, app, lambda it: changes.scale(it, formation))


def _formation(counts: tuple[str, ...]) -> dict[str, int]:
    formation = {}
    for count in counts:
        process, _, number = count.partition("=")
        fits = _PROCESS_TYPE.fullmatch(process) and re.fullmatch("[0-9]{1,9}", number)
        if not fits or not 1 <= int(number) <= _MOST_INSTANCES:
            raise NapError(f'expected PROCESS=COUNT with a count from 1 to {_MOST_INSTANCES}, got "{count[:80]}"')
        formation[process] = int(number)
    return formation
