"""`domains` and `open`: web addresses of an app."""

import os
import sys

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import (
    Caller,
    app_argument,
    command,
    json_option,
    records_of,
    require_app,
    show_listing,
)
from nap_receiver.model.release import WEB


@command("domains", right="read")
@app_argument
@json_option
def list_domains(caller: Caller, app: str, as_json: bool) -> None:
    """List the domains of APP: its own name and the added ones."""
    from nap_receiver.core.settings import load
    from nap_receiver.model.app_url import has_router, own_name
    from nap_receiver.routing import domains
    from nap_receiver.store.etcdctl import Kept

    require_app(caller, app)
    settings = load(caller.state).settings
    brought = domains.domains_of(Kept(caller.state, [f"{settings.etcd.domains}/"]), settings.etcd, app)
    own = [(own_name(app, settings.router), "own")] if has_router(settings) else []
    show_listing([*own, *((domain, "added") for domain in brought)], "domain", "origin", as_json=as_json)


@command("domains:add", right="owner")
@app_argument
@click.argument("names", nargs=-1, required=True, metavar="DOMAIN...")
def add_domains(caller: Caller, app: str, names: tuple[str, ...]) -> None:
    """Add each DOMAIN to APP, such as www.example.org or *.example.org.

    Over ssh, a DNS record must prove that the domain is yours. The command prints the record that is missing.
    """
    from nap_receiver.core.settings import load
    from nap_receiver.model.app_url import has_router
    from nap_receiver.routing import domains, ownership
    from nap_receiver.store.etcd import connect

    require_app(caller, app)
    settings = load(caller.state).settings
    if not has_router(settings):
        raise NapError("this nap has no router", advice="Ask the operator to set router.domain.")
    router, places, user = settings.router, settings.etcd, None if caller.is_operator else caller.user
    checked = [domains.checked_domain(name, router, is_operator=caller.is_operator) for name in names]
    with connect(places) as etcd:
        if router.verify_domains == "yes" and not caller.is_operator:
            new = set(checked) - set(domains.domains_of(etcd, places, app))
            if unproved := sorted(name for name in new if not ownership.is_reserved(name)):
                ownership.require_proof(app, unproved, domains.token_of(etcd, places, app), router.dns_timeout)
        domains.add_domains(etcd, places, app, checked, router.max_domains, user)
    click.echo(f"{app} is reachable at {', '.join(checked)}")


@command("domains:remove", right="owner")
@app_argument
@click.argument("names", nargs=-1, required=True, metavar="DOMAIN...")
def remove_domains(caller: Caller, app: str, names: tuple[str, ...]) -> None:
    """Remove each DOMAIN from APP."""
    from nap_receiver.core.settings import load
    from nap_receiver.routing import domains
    from nap_receiver.store.etcd import connect

    require_app(caller, app)
    places = load(caller.state).settings.etcd
    checked = [domains.normal(name) for name in names]
    with connect(places) as etcd:
        domains.remove_domains(etcd, places, app, checked)
        certificate = etcd.get(places.certificate_of(app))
    click.echo(f"{app} is no longer reachable at {', '.join(checked)}")
    if certificate and (named := sorted(set(checked) & set(certificate.value["names"]))):
        click.echo(f" !     The certificate of {app} also names {named[0]}, so it is no longer used", err=True)
        click.echo(f" !     To add one for the other domains: certs:add {app}", err=True)


@command("open", right="read")
@app_argument
def open_app(caller: Caller, app: str) -> None:
    """Print the web address of APP. On a desktop, open it."""
    from nap_receiver.core.settings import load
    from nap_receiver.model.app_url import url_of

    require_app(caller, app)
    current = records_of(caller, app).current()
    if current and WEB not in current.formation:
        raise NapError(
            f"{app} has no process type {WEB}, so nothing answers at a web address",
            advice=f"Add a line to its Procfile, {WEB}: COMMAND, commit, and push. To see what runs: ps {app}",
        )
    url = url_of(app, load(caller.state).settings)
    if not url:
        raise NapError(f"this nap has no router, so {app} has no domain", advice=f"To list its addresses: ps {app}")
    click.echo(url)
    if current is None:
        click.echo(
            f" !     {app} was never deployed, so this address does not answer yet: git push nap master", err=True
        )
    on_a_desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if caller.is_operator and on_a_desktop and sys.stdout.isatty():
        click.launch(url)
