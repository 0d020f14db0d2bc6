"""`keys`: ssh keys of users."""

import sys

import click

from nap_receiver.frontends.commands.table import Caller, command, json_option, show_listing


@command("keys")
@json_option
def list_keys(caller: Caller, as_json: bool) -> None:
    """List the users who can log in, with their keys."""
    from nap_receiver.auth import keys

    rows = [(key.user, key.fingerprint) for key in keys.keys(caller.state)]
    show_listing(rows, "user", "key", as_json=as_json)


@command("keys:add")
@click.argument("user")
def add_key(caller: Caller, user: str) -> None:
    """Add a public key of USER, from standard input."""
    from nap_receiver.auth import keys
    from nap_receiver.core.settings import load

    text = sys.stdin.buffer.read(keys.LONGEST_BYTES + 1).decode("utf-8", "replace")
    key = keys.add_key(caller.state, user, text, load(caller.state).settings.limits)
    click.echo(f"{user} can log in with {key.fingerprint}")


@command("keys:remove")
@click.argument("user")
@click.argument("fingerprint", required=False)
def remove_key(caller: Caller, user: str, fingerprint: str | None) -> None:
    """Remove all keys of USER, or only the key with FINGERPRINT."""
    from nap_receiver.auth import keys

    click.echo(f"{user}: {keys.remove_keys(caller.state, user, fingerprint)} removed")
