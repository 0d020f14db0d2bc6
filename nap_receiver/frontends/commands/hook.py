"""nap's hook in a repository of another git server."""

from pathlib import Path

import click

from nap_receiver.frontends.commands.table import Caller, command


@command("hook:install")
@click.argument("repository", type=click.Path(path_type=Path))
def install_in_repository(caller: Caller, repository: Path) -> None:
    """Have a bare REPOSITORY of another git server deploy what is pushed to it."""
    from nap_receiver.frontends.hook_installation import install_hook, troubles
    from nap_receiver.model.app import app_name

    repository = repository.resolve()
    for line in install_hook(repository, caller.state) or ["The hook was there already."]:
        click.echo(line)
    app = app_name(repository, caller.state, {})
    click.echo(f"\nNext: push to {repository} as before; its deploy branch becomes the app {app}.")
    click.echo("The push exits 0 also when the deploy failed, because git ignores how post-receive ends.")
    for line in troubles(repository, caller.state):
        click.echo(f" !     {line}", err=True)
