"""Completion of the commands in a shell."""

import click
from click.shell_completion import get_completion_class

from nap_receiver.commands.table import Caller, command, nap


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def print_completion(caller: Caller, shell: str) -> None:
    """Print what makes SHELL complete nap's commands: eval "$(nap completion bash)" in ~/.bashrc"""
    made = get_completion_class(shell)
    assert made
    click.echo(made(nap, {}, "nap", "_NAP_COMPLETE").source())
