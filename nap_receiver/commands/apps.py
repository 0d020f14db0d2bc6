"""The apps there are, and doing away with one."""

import sys

import click

from nap_receiver.app import checked_app_name
from nap_receiver.commands.table import (
    ANYBODY,
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    require_app,
    show_listing,
)
from nap_receiver.errors import NapError


@command("apps", right=ANYBODY)
@json_option
def list_apps(caller: Caller, as_json: bool) -> None:
    """List the apps that you may read, and whose they are."""
    from nap_receiver.access import everybodys
    from nap_receiver.domains import url_of
    from nap_receiver.kept import Kept
    from nap_receiver.settings import load

    settings = load(caller.state).settings
    prefix = settings.etcd.access
    found = everybodys(Kept(caller.state, [f"{prefix}/"]), prefix)
    rows = [
        (app, access.repository, ", ".join(access.owners), url_of(app, settings))
        for app, access in found.items()
        if caller.is_operator or access.allows(caller.user, "read")
    ]
    show_listing(rows, "app", "repository", "owners", "url", as_json=as_json)


@command("apps:rename", right="owner")
@app_argument
@click.argument("name", callback=lambda context, parameter, value: checked_app_name(value))
def rename_app(caller: Caller, app: str, name: str) -> None:
    """Call APP by another NAME from now on; its releases, variables, rights and logs go with it."""
    access = require_app(caller, app)
    from nap_receiver.rename import rename

    change_app(caller, app, lambda it: rename(it, name, access))


@command("apps:destroy", right="owner")
@app_argument
@click.option("--confirm", metavar="APP", help="The app's name again, instead of being asked for it.")
def destroy_app(caller: Caller, app: str, confirm: str | None) -> None:
    """Stop APP and remove it for good: its instances, releases, rights, repository and logs."""
    require_app(caller, app)
    from nap_receiver import changes

    if confirm is None and sys.stdin.isatty():
        confirm = click.prompt(f" !     This stops {app} and removes it for good. Its name, to go on", default="")
    if confirm != app:
        raise NapError(
            f"{app} is not destroyed: that would stop it, and remove its releases, repository and logs for good",
            advice=f"To go on: apps:destroy {app} --confirm {app}",
        )
    change_app(caller, app, changes.destroy)
