"""`help`: list the commands, or describe one."""

import click

from nap_receiver.frontends.commands.table import ANYBODY, Caller, command


@command("help", right=ANYBODY)
@click.argument("name", required=False, metavar="[COMMAND]")
def show_help(caller: Caller, name: str | None) -> None:
    """List the commands, or show the help of COMMAND: help ps."""
    above = click.get_current_context().find_root()
    if name is None or not isinstance(above.command, click.Group):
        click.echo(above.get_help())
        return
    _, found, _ = above.command.resolve_command(above, [name])  # raises `UsageError` where there is none
    if found:
        click.echo(found.get_help(click.Context(found, above, name)))
