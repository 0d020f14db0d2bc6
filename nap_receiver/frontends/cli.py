"""The `nap` command on its host, and the same commands over ssh."""

import os
import sys
from typing import NoReturn

import click

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import run
from nap_receiver.frontends.commands.table import Caller, guests, import_commands, nap

_LONGEST_COMPLAINT = 300


def program() -> NoReturn:
    """Run the `nap` program."""
    if "_NAP_COMPLETE" in os.environ:
        import_commands("completion")
    run(main)


def over_ssh(words: list[str], state: State, user: str) -> int:
    """Call a command for `user`; return the exit status for ssh. Raises `NapError`."""
    if words[0] in {"--help", "-h"}:
        words = ["help", *words[1:]]
    return _call(guests, "ssh HOST", words, Caller(state, user, is_operator=False))


def main() -> None:
    """Run the command; a failure is printed on standard error, with exit status 1."""
    keep_private()
    try:
        sys.exit(_call(nap, "nap", sys.argv[1:] or ["help"]))
    except NapError as error:
        for line in error.words:
            click.echo(f"       {line}", err=True)
        for line in (str(error), *error.advice):
            click.echo(f" !     {line}", err=True)
        sys.exit(1)


def _call(commands: click.Group, name: str, words: list[str], caller: Caller | None = None) -> int:
    """Call one of these commands; return the exit status: 2 for an invalid command. Raises `NapError`."""
    try:
        return int(commands.main(words, name, standalone_mode=False, obj=caller) or 0)
    except click.UsageError as error:
        complaint = plain(error.format_message().replace("\n", " "))
        click.echo(f" !     {complaint[:_LONGEST_COMPLAINT]}", err=True)
        if error.ctx and error.ctx.parent:
            click.echo(f" !     To see its usage: {name} help {error.ctx.info_name}", err=True)
        else:
            click.echo(f" !     To list the commands: {name} help", err=True)
        return 2
    except click.Abort:  # Ctrl-C, or no answer where it asks for one
        click.echo(" !     Interrupted", err=True)
        return 1
