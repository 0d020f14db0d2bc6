"""`up`, `down`, `status` and `settings` of a single machine."""

import sys
from typing import TYPE_CHECKING

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import Caller, command, json_option, show_listing

if TYPE_CHECKING:
    from nap_receiver.machine.lifecycle import Standing


@command("up")
def up(caller: Caller) -> None:
    """Start nap on this machine and wait until all of its programs are ready."""
    from nap_receiver.auth import keys
    from nap_receiver.machine import firewall, lifecycle

    settings = lifecycle.up(caller.state)
    try:
        firewall.guard(caller.state, settings)
    except NapError as error:
        click.echo("\n".join([f" !     {error}", *(f"       {line}" for line in error.advice)]), err=True)
    _show(lifecycle.status(caller.state))
    click.echo(f"\nnap is up. Its state is in {caller.state.root}")
    if not keys.keys(caller.state):
        click.echo(f"Add your key:     nap keys:add YOU < ~/.ssh/id_ed25519.pub{caller.again}")
    click.echo(f"In your app:      git remote add nap {lifecycle.remote_url(settings, 'APP')}")
    click.echo("                  git push nap master")


@command("down")
def down(caller: Caller) -> None:
    """Stop nap and all apps on this machine. `nap up` starts them again."""
    from nap_receiver.machine import lifecycle

    click.echo("nap is down." if lifecycle.down(caller.state) else "nap was not up.")


@command("status")
@json_option
def status(caller: Caller, as_json: bool) -> None:
    """Show the state of nap's programs. Exit status 1 if one of them is not ready."""
    from nap_receiver.machine import lifecycle

    standings = lifecycle.status(caller.state)
    if not standings:
        raise NapError("nap is down", advice=f"Start it: nap up{caller.again}")
    _show(standings, as_json)
    if not all(standing.answers for standing in standings):
        sys.exit(1)


@command("settings")
@json_option
def settings(caller: Caller, as_json: bool) -> None:
    """Show all settings, with the source of each value."""
    from nap_receiver.core.settings import fields, load

    loaded = load(caller.state)
    rows = [(field.key, loaded.value(field) or '""', loaded.sources[field.key]) for field in fields()]
    show_listing(rows, "setting", "value", "from", as_json=as_json)


def _show(standings: "list[Standing]", as_json: bool = False) -> None:
    rows = [(s.program, s.state, "yes" if s.answers else "no", s.pid or "", s.address) for s in standings]
    ready = "answers" if as_json else "ready"  # programs read the JSON of earlier versions
    show_listing(rows, "program", "state", ready, "process", "address", as_json=as_json)
