"""`protocol`: HTTP/1.1 or HTTP/2 between router and app."""

from typing import get_args

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
from nap_receiver.model.release import Protocol

_PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@command("protocol", right="read")
@app_argument
@json_option
def show_protocol(caller: Caller, app: str, as_json: bool) -> None:
    """Show the protocol between router and APP: http (HTTP/1.1) or h2c (HTTP/2 without TLS)."""
    records = records_of(caller, app)
    current = records.current()
    protocol = current.protocol if current else records.first_protocol()
    show_listing([(app, protocol)], "app", "protocol", as_json=as_json)


@command("protocol:set", right="push")
@app_argument
@click.argument("protocol", type=click.Choice(_PROTOCOLS))
def set_protocol(caller: Caller, app: str, protocol: Protocol) -> None:
    """Set the protocol between router and APP in a new release: protocol:set chat h2c.

    http is HTTP/1.1. h2c is HTTP/2 without TLS, for gRPC servers; WebSockets do not work with h2c.
    """
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.set_protocol(target, protocol))
