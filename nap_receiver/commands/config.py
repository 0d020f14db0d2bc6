"""What an app is configured with: variables of its environment."""

import re
import sys

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

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAPS_OWN = re.compile(r"PORT|GIT_REV|NAP_.*")
_ENGINES = re.compile(r"DOCKER_.*|LD_.*|GCONV_PATH|GLIBC_TUNABLES")
_LONGEST_VALUE_BYTES = 1 << 16
_ENCODE = "Encode it, for example as base64."


@command("config", right="push")
@app_argument
@json_option
def list_config(caller: Caller, app: str, as_json: bool) -> None:
    """List the variables of APP, with their values."""
    show_listing(sorted(_configuration(caller, app).items()), "name", "value", as_json=as_json)


@command("config:get", right="push")
@app_argument
@click.argument("name")
def show_variable(caller: Caller, app: str, name: str) -> None:
    """Print the value of a variable of APP."""
    found = _configuration(caller, app)
    if name not in found:
        raise NapError(f"{app} has no variable {name[:80]!a}", advice=f"`config {app}` lists those it has.")
    click.echo(found[name])


@command("config:set", right="push")
@app_argument
@click.argument("variables", nargs=-1, required=True, metavar="NAME=VALUE...")
def set_variables(caller: Caller, app: str, variables: tuple[str, ...]) -> None:
    """Set variables of APP, all in one new release. The value of a NAME without one is read from standard input."""
    given = [variable.partition("=") for variable in variables]
    if [equals for _, equals, _ in given].count("") > 1:
        raise NapError("only one value can come from standard input", advice="Write the others as NAME=VALUE.")
    added = {_checked_name(name): value if equals else _read_value() for name, equals, value in given}
    for name, value in added.items():
        _check_value(name, value)
    _configure(caller, app, added, ())


@command("config:unset", right="push")
@app_argument
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def unset_variables(caller: Caller, app: str, names: tuple[str, ...]) -> None:
    """Remove variables of APP, all in one new release."""
    if missing := [name for name in names if name not in _configuration(caller, app)]:
        raise NapError(f"{app} has no variable {missing[0][:80]!a}", advice=f"`config {app}` lists those it has.")
    _configure(caller, app, {}, names)


def _configuration(caller: Caller, app: str) -> dict[str, str]:
    with ledger_of(caller, app) as ledger:
        current = ledger.current()
        return ledger.configuration(current.config if current else ledger.first_config())


def _configure(caller: Caller, app: str, added: dict[str, str], removed: tuple[str, ...]) -> None:
    from nap_receiver import changes

    change_app(caller, app, lambda it: changes.configure(it, added, removed))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NapError(f"{name[:80]!a} cannot be the name of a variable", advice="Use A to Z, a to z, 0 to 9 and _.")
    if _NAPS_OWN.fullmatch(name):
        raise NapError(f"{name} is nap's own to set")
    if _ENGINES.fullmatch(name):
        raise NapError(
            f"{name} would steer the engine's own programs on its machine",
            advice=f"Set it in the Dockerfile: ENV {name}=…",
        )
    return name


def _read_value() -> str:
    try:
        return sys.stdin.buffer.read(_LONGEST_VALUE_BYTES + 1).decode()
    except UnicodeDecodeError as error:
        raise NapError(
            "the value on standard input is not UTF-8", advice="Encode it, for example as base64."
        ) from error


def _check_value(name: str, value: str) -> None:
    """Raises `NapError` for what no variable of an environment, or none of a container's, can hold."""
    if "\0" in value:
        raise NapError(f"{name}: a variable cannot hold a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise NapError(f"{name}: the value is not UTF-8", advice=_ENCODE) from error
    if size > _LONGEST_VALUE_BYTES:
        raise NapError(f"{name}: the value has {size} bytes, and {_LONGEST_VALUE_BYTES} is the most")
