"""`resource:limit`: limits on memory and CPU of instances."""

import re

import click

from nap_receiver.frontends.commands.table import (
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    records_of,
    show_listing,
)
from nap_receiver.model.release import EVERY, PROCESS_TYPE, RUN, Limits, limits_among

_UNITS = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}  # a bare number is one of MiB, as Dokku's
_LEAST_MEMORY = 6 << 20  # docker run refuses less
_MOST_MEMORY = 1 << 50
_MOST_CPUS = 1024


def _memory(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,16})([bkmg]?)", value.lower())
    size = int(match[1]) * _UNITS[match[2]] if match else -1
    if size != 0 and not _LEAST_MEMORY <= size <= _MOST_MEMORY:
        raise click.UsageError(
            f"--memory: expected a size of 6m or more, such as 512m or 2g, or 0 for the default, got {value[:40]!a}"
        )
    return size


def _cpus(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    number = float(value) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value) else -1
    if number != 0 and not 0.01 <= number <= _MOST_CPUS:
        raise click.UsageError(
            f"--cpu: expected a number of 0.01 or more, such as 0.5 or 2, or 0 for the default, got {value[:40]!a}"
        )
    return number


def _process(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if value is not None and not PROCESS_TYPE.fullmatch(value):
        raise click.UsageError(f"{value[:40]!a} is not a valid process type")
    return value or EVERY


@command("resource:limit", right="push")
@app_argument
@click.option("--process-type", "-p", "process", callback=_process, help="Only for this process type.")
@click.option("--memory", callback=_memory, metavar="SIZE", help="512m, 2g. Without a letter: MiB. 0: the default.")
@click.option("--cpu", "cpus", callback=_cpus, metavar="NUMBER", help="Number of CPUs, such as 0.5. 0: the default.")
@json_option
def limit_resources(
    caller: Caller, app: str, process: str, memory: int | None, cpus: float | None, as_json: bool
) -> None:
    """Limit memory and CPU of each instance of APP, in a new release. Without options, list the limits."""
    given = {name: value for name, value in {"memory": memory, "cpus": cpus}.items() if value is not None}
    if not given:
        _list(caller, app, as_json)
        return
    from msgspec.structs import replace

    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.limit(target, process, lambda limits: replace(limits, **given)))


def _list(caller: Caller, app: str, as_json: bool) -> None:
    from nap_receiver.core.settings import load
    from nap_receiver.engine.container import in_force

    records = records_of(caller, app)
    current = records.current()
    defaults = load(caller.state).settings.container
    limits = current.limits if current else records.first_limits()
    process_types = (
        current.formation if current else sorted((records.first_formation().keys() | limits.keys()) - {EVERY, RUN})
    )
    processes = [*process_types, RUN]
    found = {process: in_force(limits_among(limits, process), defaults) for process in processes}
    rows = [(process, *((each.memory, each.cpus) if as_json else shown(each))) for process, each in found.items()]
    show_listing(rows, "process", "memory", "cpu", as_json=as_json)


def shown(limits: Limits) -> tuple[str, str]:
    """Memory and processors as they are given, each empty where there is no limit: `512m`, `0.5`."""
    return _size(limits.memory) if limits.memory else "", f"{limits.cpus:g}" if limits.cpus else ""


def _size(size: int) -> str:
    for letter in "gmk":
        if size % _UNITS[letter] == 0:
            return f"{size // _UNITS[letter]}{letter}"
    return f"{size}b"
