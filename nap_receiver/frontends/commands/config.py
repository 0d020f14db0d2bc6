"""`config`: environment variables of an app."""

import re
import sys

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import (
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    records_of,
    show_listing,
)
from nap_receiver.model.env_file import FORMS, LONGEST_BYTES, Form, read_env_file, written_as
from nap_receiver.model.variables import LONGEST_VALUE_BYTES, check_value, checked_name


@command("config", right="push")
@app_argument
@json_option
def list_config(caller: Caller, app: str, as_json: bool) -> None:
    """List the variables of APP and their values."""
    found = sorted(_configuration(caller, app).items())
    show_listing(found, "name", "value", as_json=as_json)


@command("config:get", right="push")
@app_argument
@click.argument("name")
def show_variable(caller: Caller, app: str, name: str) -> None:
    """Print the value of a variable of APP."""
    found = _configuration(caller, app)
    if name not in found:
        raise NapError(f"{app} has no variable {name[:80]!a}", advice=f"To list its variables: config {app}")
    click.echo(found[name].encode("utf-8", "surrogateescape"))


@command("config:set", right="push")
@app_argument
@click.argument("variables", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--raw", is_flag=True, help="Keep a newline at the end of standard input.")
def set_variables(caller: Caller, app: str, variables: tuple[str, ...], raw: bool) -> None:
    """Set variables of APP in one new release. NAME without = reads its value from standard input.

    One newline at the end of standard input is removed, unless you give --raw.
    """
    given = [variable.partition("=") for variable in variables]
    if [equals for _, equals, _ in given].count("") > 1:
        raise NapError("only one value can come from standard input", advice="Write the others as NAME=VALUE.")
    added = {checked_name(name): value if equals else _read_value(app, name, raw) for name, equals, value in given}
    for name, value in added.items():
        check_value(name, value)
    _configure(caller, app, added, ())


@command("config:import", right="push")
@app_argument
def import_variables(caller: Caller, app: str) -> None:
    """Set the variables of a .env file in one new release: config:import shop < .env"""
    found = read_env_file(sys.stdin.buffer.read(LONGEST_BYTES + 1))
    for notice in found.notices:
        click.echo(f" !     {notice}", err=True)
    if not found.values:
        raise NapError("no variables on standard input", advice=f"Give a file: config:import {app} < .env")
    _configure(caller, app, found.values, ())


@command("config:export", right="push")
@app_argument
@click.option("--format", "form", type=click.Choice(FORMS), default=FORMS[0], help="Default: .env file.")
def export_variables(caller: Caller, app: str, form: Form) -> None:
    """Print the variables of APP as a .env file, as shell commands, or as JSON."""
    text = written_as(_configuration(caller, app), form)
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)


@command("config:unset", right="push")
@app_argument
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def unset_variables(caller: Caller, app: str, names: tuple[str, ...]) -> None:
    """Remove variables of APP in one new release. Unknown names are skipped."""
    configured = _configuration(caller, app)
    for name in names:
        if name not in configured:
            click.echo(f" !     {app} has no variable {name[:80]!a}: skipped", err=True)
    _configure(caller, app, {}, tuple(name for name in names if name in configured))


def _configuration(caller: Caller, app: str) -> dict[str, str]:
    records = records_of(caller, app)
    return records.configuration(records.config_in_force())


def _configure(caller: Caller, app: str, added: dict[str, str], removed: tuple[str, ...]) -> None:
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.configure(target, added, removed))


def _read_value(app: str, name: str, raw: bool) -> str:
    given = sys.stdin.buffer.read(LONGEST_VALUE_BYTES + len(b"\r\n") + 1)
    value = given if raw else re.sub(rb"\r?\n\Z", b"", given)
    if not value:  # as with `</dev/null`: who forgot the value should not lose the one that is there
        raise NapError(f"no value for {name} on standard input", advice=f"To set it empty: config:set {app} {name}=")
    text = value.decode("utf-8", "surrogateescape")
    check_value(name, text)
    if value != given:
        click.echo(f" !     {name}: removed the newline at the end; --raw keeps it", err=True)
    return text
