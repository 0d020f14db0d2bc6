"""What an app is configured with: variables of its environment."""

import os
import sys

import click

from nap_receiver.commands.table import (
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    records_of,
    show_listing,
)
from nap_receiver.errors import NapError
from nap_receiver.variables import LONGEST_VALUE_BYTES, bytes_of, check_value, checked_name, is_text, value_of


@command("config", right="push")
@app_argument
@json_option
def list_config(caller: Caller, app: str, as_json: bool) -> None:
    """List the variables of APP, with their values."""
    found = sorted(_configuration(caller, app).items())
    show_listing([(name, _shown(value, as_json)) for name, value in found], "name", "value", as_json=as_json)


@command("config:get", right="push")
@app_argument
@click.argument("name")
def show_variable(caller: Caller, app: str, name: str) -> None:
    """Print the value of a variable of APP."""
    found = _configuration(caller, app)
    if name not in found:
        raise NapError(f"{app} has no variable {name[:80]!a}", advice=f"`config {app}` lists those it has.")
    click.echo(bytes_of(found[name]))


@command("config:set", right="push")
@app_argument
@click.argument("variables", nargs=-1, required=True, metavar="NAME=VALUE...")
def set_variables(caller: Caller, app: str, variables: tuple[str, ...]) -> None:
    """Set variables of APP, all in one new release. The value of a NAME without one is read from standard input."""
    given = [variable.partition("=") for variable in variables]
    if [equals for _, equals, _ in given].count("") > 1:
        raise NapError("only one value can come from standard input", advice="Write the others as NAME=VALUE.")
    added = {checked_name(name): _typed(value) if equals else _read_value(app, name) for name, equals, value in given}
    for name, value in added.items():
        check_value(name, value)
    _configure(caller, app, added, ())


@command("config:unset", right="push")
@app_argument
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def unset_variables(caller: Caller, app: str, names: tuple[str, ...]) -> None:
    """Remove variables of APP, all in one new release."""
    if missing := [name for name in names if name not in _configuration(caller, app)]:
        raise NapError(f"{app} has no variable {missing[0][:80]!a}", advice=f"`config {app}` lists those it has.")
    _configure(caller, app, {}, names)


def _shown(value: str, as_json: bool) -> str | None:
    if is_text(value):
        return value
    return None if as_json else f"({len(bytes_of(value))} bytes that are not UTF-8: config:get prints them)"


def _configuration(caller: Caller, app: str) -> dict[str, str]:
    records = records_of(caller, app)
    return records.configuration(records.config_in_force())


def _configure(caller: Caller, app: str, added: dict[str, str], removed: tuple[str, ...]) -> None:
    from nap_receiver import changes

    change_app(caller, app, lambda it: changes.configure(it, added, removed))


def _typed(value: str) -> str:
    return value_of(os.fsencode(value))


def _read_value(app: str, name: str) -> str:
    given = sys.stdin.buffer.read(LONGEST_VALUE_BYTES + 1)
    if not given:  # as with `</dev/null`: who forgot the value should not lose the one that is there
        raise NapError(
            f"there is no value for {name} on standard input", advice=f"To set it empty: config:set {app} {name}="
        )
    return value_of(given)
