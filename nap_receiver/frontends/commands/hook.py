"""nap's hook in a repository of another git server."""

from pathlib import Path

import click

from nap_receiver.frontends.commands.table import Caller, command


@command("hook:install")
@click.argument("repository", type=click.Path(path_type=Path))
def install_in_repository(caller: Caller, repository: Path) -> None:
    """Install nap's hook in a bare REPOSITORY of another git server."""
    from nap_receiver.frontends.hook_installation import install_hook, troubles
    from nap_receiver.model.app import app_name

    repository = repository.resolve()
    for line in install_hook(repository, caller.state) or ["The hook is already installed."]:
        click.echo(line)
    app = app_name(repository, caller.state, {})
    click.echo(f"\nNext: push to {repository} as before. Its deploy branch deploys the app {app}.")
    click.echo("`git push` exits with 0 even after a failed deploy: git ignores the exit status of post-receive.")
    for line in troubles(repository, caller.state):
        click.echo(f" !     {line}", err=True)
