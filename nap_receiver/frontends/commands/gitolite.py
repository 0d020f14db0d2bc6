"""`gitolite`: install nap in a gitolite, and remove it."""

import click

from nap_receiver.core.paths import State
from nap_receiver.frontends.commands.table import Caller, command


@command("gitolite:install")
def install_in_gitolite(caller: Caller) -> None:
    """Install nap in the gitolite of this account. gitolite.conf says which repositories deploy."""
    from nap_receiver.frontends import gitolite

    for line in gitolite.install(caller.state) or ["nap is already installed in this gitolite. Nothing was changed."]:
        click.echo(line)
    click.echo(f"\nTo make a repository deploy, add this option in gitolite.conf:\n\n{gitolite.CONF}")
    _show_troubles(caller.state)


@command("gitolite:uninstall")
def uninstall_from_gitolite(caller: Caller) -> None:
    """Remove nap from the gitolite of this account. Apps keep running."""
    from nap_receiver.frontends import gitolite

    for line in gitolite.uninstall() or ["nap is not installed in this gitolite. Nothing was changed."]:
        click.echo(line)
    _show_troubles(caller.state)


def _show_troubles(state: State) -> None:
    from nap_receiver.frontends import gitolite

    for line in gitolite.troubles(state):
        click.echo(f" !     {line}", err=True)
