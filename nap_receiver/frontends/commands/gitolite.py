"""nap in a gitolite that is there already."""

import click

from nap_receiver.core.paths import State
from nap_receiver.frontends.commands.table import Caller, command


@command("gitolite:install")
def install_in_gitolite(caller: Caller) -> None:
    """Have the gitolite of this account deploy what gitolite.conf tells it to."""
    from nap_receiver.frontends import gitolite

    for line in gitolite.install(caller.state) or ["All of it was there already."]:
        click.echo(line)
    click.echo(f"\nTo have a repository deploy, say so in its part of gitolite.conf:\n\n{gitolite.CONF}")
    _show_troubles(caller.state)


@command("gitolite:uninstall")
def uninstall_from_gitolite(caller: Caller) -> None:
    """Take nap out of the gitolite of this account; apps run on."""
    from nap_receiver.frontends import gitolite

    for line in gitolite.uninstall() or ["Nothing of nap's was there."]:
        click.echo(line)
    _show_troubles(caller.state)


def _show_troubles(state: State) -> None:
    from nap_receiver.frontends import gitolite

    for line in gitolite.troubles(state):
        click.echo(f" !     {line}", err=True)
