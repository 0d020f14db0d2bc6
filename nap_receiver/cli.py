"""The `nap` command on its host."""

import getpass
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import click
from tabulate import tabulate

from nap_receiver import keys, machine
from nap_receiver.app import repository_of
from nap_receiver.channel import Channel, tell
from nap_receiver.errors import NapError
from nap_receiver.settings import fields, load
from nap_receiver.state import default_root, state_at

_MOST_INSTANCES = 100

_Command = TypeVar("_Command", bound=Callable[..., object])


def _state(command: _Command) -> _Command:
    """Give `command` the option that every command has."""
    about = f"The state directory. [NAP_STATE, else {default_root()}]"
    return click.option("--state", "root", metavar="DIR", help=about)(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def nap() -> None:
    """git push to a running, announced app."""


@nap.command()
@_state
def up(root: str | None) -> None:
    """Start the single-machine nap and wait until all of it answers."""
    state = state_at(root)
    settings = machine.up(state)
    click.echo(_standings(machine.status(state)))
    click.echo(f"\nnap is up. Its state is in {state.root}")
    if not keys.keys(state):
        click.echo(f"Let someone in:   nap keys:add YOU < ~/.ssh/id_ed25519.pub{_again(root)}")
    click.echo(f"In your app:      git remote add nap {machine.remote_url(settings, 'APP')}")
    click.echo("                  git push nap master")


@nap.command()
@_state
def down(root: str | None) -> None:
    """Stop the single-machine nap and the apps it runs; `nap up` brings them back."""
    click.echo("nap is down." if machine.down(state_at(root)) else "nap was not up.")


@nap.command()
@_state
def status(root: str | None) -> None:
    """Show nap's programs; exit status 1 unless all of them answer."""
    standings = machine.status(state_at(root))
    if not standings:
        raise NapError("nap is down", advice=f"Start it: nap up{_again(root)}")
    click.echo(_standings(standings))
    if not all(standing.answers for standing in standings):
        sys.exit(1)


@nap.command()
@_state
def settings(root: str | None) -> None:
    """Show the settings in force, and where each value came from."""
    loaded = load(state_at(root))
    rows = [(field.key, loaded.value(field) or '""', loaded.sources[field.key]) for field in fields()]
    click.echo(tabulate(rows, headers=("setting", "value", "from"), disable_numparse=True))


@nap.command("keys")
@_state
def list_keys(root: str | None) -> None:
    """List who may push, by key."""
    click.echo(tabulate([(key.user, key.fingerprint) for key in keys.keys(state_at(root))], headers=("user", "key")))


@nap.command("keys:add")
@click.argument("user")
@_state
def add_key(user: str, root: str | None) -> None:
    """Let USER push with the public key on standard input."""
    key = keys.add_key(state_at(root), user, sys.stdin.read())
    click.echo(f"{user} may push with {key.fingerprint}")


@nap.command("keys:remove")
@click.argument("user")
@_state
def remove_key(user: str, root: str | None) -> None:
    """Let USER push no longer."""
    click.echo(f"{user}: {keys.remove_keys(state_at(root), user)} removed")


@nap.command("ps:scale")
@click.argument("app")
@click.argument("counts", nargs=-1, required=True, metavar="PROCESS=COUNT...")
@_state
def scale_processes(app: str, counts: tuple[str, ...], root: str | None) -> None:
    """Run COUNT instances of each PROCESS of APP: nap ps:scale shop web=3"""
    state = state_at(root)
    formation = _formation(counts)
    repository = repository_of(app, state)
    if repository is None:
        raise NapError(f"there is no app {app} here", advice="A first `git push` creates it.")

    def story(channel: Channel) -> None:
        from nap_receiver.receiver import scale  # half a second of libraries

        who = os.environ.get("NAP_USER") or getpass.getuser()
        scale(app, repository, formation, who, state, load(state).settings, channel)

    if not tell(1, story):
        sys.exit(1)


def main() -> None:
    """Run the command; a failure is told in a few lines on standard error, with exit status 1."""
    try:
        nap(prog_name="nap")
    except NapError as error:
        for line in error.words:
            click.echo(f"       {line}", err=True)
        for line in (str(error), *error.advice):
            click.echo(f" !     {line}", err=True)
        sys.exit(1)


def _formation(counts: tuple[str, ...]) -> dict[str, int]:
    formation = {}
    for count in counts:
        process, _, number = count.partition("=")
        if not (process and number.isdecimal() and 1 <= int(number) <= _MOST_INSTANCES):
            raise NapError(f'expected PROCESS=COUNT with a count from 1 to {_MOST_INSTANCES}, got "{count}"')
        formation[process] = int(number)
    return formation


def _standings(standings: list[machine.Standing]) -> str:
    rows = [(s.program, s.state, "yes" if s.answers else "no", s.pid or "", s.address) for s in standings]
    return tabulate(rows, headers=("program", "state", "answers", "process", "address"), disable_numparse=True)


def _again(root: str | None) -> str:
    return f" --state {root}" if root else ""
