"""`access`: list and change rights to an app."""

import click

from nap_receiver.auth.access import RIGHTS
from nap_receiver.frontends.commands.table import Caller, app_argument, command, json_option, require_app, show_listing
from nap_receiver.git.repository import name_of, repository_of


@command("access", right="read")
@app_argument
@json_option
def list_access(caller: Caller, app: str, as_json: bool) -> None:
    """List the users of APP and their rights."""
    access = require_app(caller, app)
    show_listing(access.users.items(), "user", "right", as_json=as_json)


@command("access:add", right="owner")
@app_argument
@click.argument("user")
@click.argument("right", type=click.Choice(RIGHTS), default="push")
def add_access(caller: Caller, app: str, user: str, right: str) -> None:
    """Give USER a right to APP: read, push (includes read), or owner (includes push)."""
    from nap_receiver.auth.keys import keys

    _set_right(caller, app, user, right)
    click.echo(f"{user} has the right to {app}: {right}")
    if user not in {key.user for key in keys(caller.state)}:
        click.echo(f" !     User {user} has no key, so nobody can use this right", err=True)
        click.echo(f" !     If that is a mistake: access:remove {app} {user}. Else the operator adds a key:", err=True)
        click.echo(f" !     nap keys:add {user} < KEY.pub{caller.again}", err=True)


@command("access:remove", right="owner")
@app_argument
@click.argument("user")
def remove_access(caller: Caller, app: str, user: str) -> None:
    """Remove the right of USER to APP."""
    _set_right(caller, app, user, None)
    click.echo(f"{user} no longer has a right to {app}")


def _set_right(caller: Caller, app: str, user: str, right: str | None) -> None:
    from nap_receiver.auth.access import Access, claim, set_right
    from nap_receiver.auth.keys import checked_user
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcd import connect

    settings = load(caller.state).settings
    places = settings.etcd
    with connect(places) as etcd:
        key = places.access_of(app)
        if right and (repository := repository_of(app, caller.state)):
            claim(etcd, key, Access(name_of(repository, caller.state)))  # where nobody has; over ssh, somebody does
        set_right(etcd, key, checked_user(user), right, settings.limits)
