"""`help`: list the commands, or describe one."""

import click

from nap_receiver.frontends.commands.table import ANYBODY, Caller, command


@command("help", right=ANYBODY)
@click.argument("name", required=False, metavar="[COMMAND]")
def show_help(caller: Caller, name: str | None) -> None:
    """List the commands, or show the help of COMMAND: help ps."""
    above = click.get_current_context().parent
    assert above
    if name is None:
        click.echo(above.get_help())
        return
    commands = above.command
    assert isinstance(commands, click.Group)
    _, found, _ = commands.resolve_command(above, [name])
    assert found
    click.echo(found.get_help(click.Context(found, above, name)))
