"""`ports`: the web port of an app."""

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

_MOST = 65535


def _port(context: click.Context, parameter: click.Parameter, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= _MOST:
        raise click.UsageError(
            f"expected the port that the app listens on, from 1 to {_MOST}, such as 8000, got {value[:40]!a}"
        )
    return int(value)


@command("ports", right="read")
@app_argument
@json_option
def list_ports(caller: Caller, app: str, as_json: bool) -> None:
    """List the published ports of APP and what chose them. The web port comes first."""
    records = records_of(caller, app)
    if current := records.current():
        first, *others = current.published
        rows = [(first, "yes", current.port_from), *((port, "no", "image") for port in others)]
    else:
        rows = [(f"{port}/tcp", "yes", "ports:set")] if (port := records.first_port()) else []
    if not rows and not as_json:
        click.echo(f"{app} was never deployed: its image may name a port. To choose one: ports:set {app} 8000")
        return
    show_listing(rows, "port", "web", "from", as_json=as_json)


@command("ports:set", right="push")
@app_argument
@click.argument("port", callback=_port)
def set_port(caller: Caller, app: str, port: int) -> None:
    """Set the web port of APP in a new release: ports:set shop 8000"""
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.set_port(target, port))


@command("ports:unset", right="push")
@app_argument
def unset_port(caller: Caller, app: str) -> None:
    """Use the port of the image as web port of APP again, in a new release."""
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.set_port(target, 0))
