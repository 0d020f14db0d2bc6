"""The `nap` command on its host, and the same commands over ssh."""

import importlib
import pkgutil
import sys

import click

from nap_receiver import commands
from nap_receiver.channel import plain
from nap_receiver.commands.table import Caller, guests, nap
from nap_receiver.errors import NapError
from nap_receiver.state import State

_LONGEST_COMPLAINT = 300

for module in pkgutil.iter_modules(commands.__path__):
    importlib.import_module(f"{commands.__name__}.{module.name}")


def over_ssh(words: list[str], state: State, user: str) -> int:
    """Call a command for `user`; ssh's exit status: 2 for one that is not understood. Raises `NapError`."""
    if words[0] in {"help", "--help", "-h"}:
        words = [*words[1:2], "--help"] if len(words) > 1 else []
        if not words:
            click.echo(guests.get_help(click.Context(guests, info_name="ssh HOST")))
            return 0
    try:
        return int(
            guests.main(words, "ssh HOST", standalone_mode=False, obj=Caller(state, user, is_operator=False)) or 0
        )
    except click.UsageError as error:
        complaint = plain(error.format_message().replace("\n", " "))
        click.echo(f" !     {complaint[:_LONGEST_COMPLAINT]}", err=True)
        click.echo(" !     What there is: ssh HOST help", err=True)
        return 2


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
