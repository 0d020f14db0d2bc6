"""`apps`: list, create, rename and destroy apps."""

import sys
from pathlib import Path

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import (
    ANYBODY,
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    require_app,
    show_listing,
)
from nap_receiver.git.repository import OBJECT_FORMATS, name_of, repository_at
from nap_receiver.model.app import app_name, checked_app_name


@command("apps", right=ANYBODY)
@json_option
def list_apps(caller: Caller, as_json: bool) -> None:
    """List the apps that you may read, with repository, owners and URL."""
    from nap_receiver.auth.access import everybodys
    from nap_receiver.core.settings import load
    from nap_receiver.model.app_url import url_of
    from nap_receiver.store.etcdctl import Kept

    settings = load(caller.state).settings
    prefix = settings.etcd.access
    found = everybodys(Kept(caller.state, [f"{prefix}/"]), prefix)
    rows = [
        (app, access.repository, ", ".join(access.owners), url_of(app, settings))
        for app, access in found.items()
        if caller.is_operator or access.allows(caller.user, "read")
    ]
    show_listing(rows, "app", "repository", "owners", "url", as_json=as_json)


@command("apps:create", right=ANYBODY)
@click.argument("app")
@click.option(
    "--object-format",
    type=click.Choice(OBJECT_FORMATS),
    default=OBJECT_FORMATS[0],
    help="sha256 if your repository was created with git init --object-format=sha256.",
)
def create_app(caller: Caller, app: str, object_format: str) -> None:
    """Create APP before the first push. Config, counts and domains that you set then apply to its first release.

    For a repository outside nap, such as one of gitolite's, the operator gives its whole path as APP.
    """
    from nap_receiver.auth.access import Access
    from nap_receiver.auth.keys import keys
    from nap_receiver.core.settings import load
    from nap_receiver.deploy import creation
    from nap_receiver.frontends.gitolite import named_by_gitolite
    from nap_receiver.machine.lifecycle import remote_url
    from nap_receiver.model.app_url import url_of

    if caller.is_operator and app.startswith("/"):
        repository = _repository_of_others(app)
        name = app_name(repository, caller.state, named_by_gitolite(repository))
        creation.adopt(name, repository, caller.state, caller.user)
        click.echo(f"=====> {name} is created")
        return
    repository = repository_at(app, caller.state)
    name, path = app_name(repository, caller.state, {}), name_of(repository, caller.state)
    owners = {} if caller.is_operator else {caller.user: "owner"}
    creation.create_app(name, Access(path, owners), repository, object_format, caller.state, caller.user)
    settings = load(caller.state).settings
    click.echo(f"=====> {name} is created")
    if url := url_of(name, settings):
        click.echo(f"       Address after the first deploy: {url}")
    place = remote_url(settings, path) if caller.is_operator else f"HOST:{path} (HOST: as in your ssh command)"
    click.echo(f"       To deploy, in your repository: git remote add nap {place}")
    click.echo("       git push nap master")
    if caller.is_operator:
        users = {key.user for key in keys(caller.state)}
        user = users.pop() if len(users) == 1 else "USER"
        click.echo(f" !     Nobody may push to it yet: nap access:add {name} {user} owner{caller.again}", err=True)


def _repository_of_others(path: str) -> Path:
    """Return the repository at this path, as its hook names it. Raises `NapError` if it does not exist."""
    repository = Path(path).resolve()
    if not ((repository / "HEAD").is_file() and (repository / "objects").is_dir()):
        raise NapError(
            f"{path[:80]!a} is not a bare git repository", advice="To create one in nap's gate: apps:create APP"
        )
    return repository


@command("apps:rename", right="owner")
@app_argument
@click.argument("name", callback=lambda context, parameter, value: checked_app_name(value))
def rename_app(caller: Caller, app: str, name: str) -> None:
    """Rename APP to NAME. Releases, variables, rights and logs are kept."""
    access = require_app(caller, app)
    from nap_receiver.deploy.rename import rename

    change_app(caller, app, lambda target: rename(target, name, access))


@command("apps:destroy", right="owner")
@app_argument
@click.option("--confirm", metavar="APP", help="The name of the app, to skip the question.")
def destroy_app(caller: Caller, app: str, confirm: str | None) -> None:
    """Stop APP and delete its instances, releases, rights, repository and logs. This cannot be undone."""
    require_app(caller, app)
    from nap_receiver.deploy import operations

    if confirm is None and sys.stdin.isatty():
        confirm = click.prompt(f" !     This stops {app} and removes it for good. Its name, to go on", default="")
    if confirm != app:
        raise NapError(
            f"{app} is not destroyed: that would stop it, and remove its releases, repository and logs for good",
            advice=f"To go on: apps:destroy {app} --confirm {app}",
        )
    change_app(caller, app, operations.destroy)
