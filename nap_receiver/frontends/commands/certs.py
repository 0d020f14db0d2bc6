"""`certs`: certificates that owners add to their apps."""

import sys

import click

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import Caller, app_argument, command, json_option, require_app, show_listing


@command("certs", right="read")
@app_argument
@json_option
def show_certificate(caller: Caller, app: str, as_json: bool) -> None:
    """Show the certificate that the owner of APP added."""
    from nap_receiver.core.settings import load
    from nap_receiver.routing.certificates import about
    from nap_receiver.routing.domains import names_of
    from nap_receiver.store.etcdctl import Kept

    require_app(caller, app)
    settings = load(caller.state).settings
    reader = Kept(caller.state, [settings.etcd.certificate_of(app), f"{settings.etcd.domains}/"])
    entry = reader.get(settings.etcd.certificate_of(app))
    rows = []
    if entry:
        found = about(entry.value["chain"])
        rows.append((", ".join(found.names), found.issuer, found.until))
    show_listing(rows, "names", "issuer", "until", as_json=as_json)
    if entry and (lost := sorted(set(entry.value["names"]) - set(names_of(reader, settings, app)))):
        click.echo(f" !     This certificate is not used: {app} no longer has {lost[0]}", err=True)


@command("certs:add", right="owner")
@app_argument
def add_certificate(caller: Caller, app: str) -> None:
    """Add your own certificate for domains of APP. Standard input: certificate, chain and key in PEM."""
    from nap_receiver.auth.access import no_such
    from nap_receiver.core.settings import load
    from nap_receiver.routing.certificates import about, checked, require_own
    from nap_receiver.routing.domains import covers, names_of
    from nap_receiver.store.etcd import connect

    require_app(caller, app)
    settings = load(caller.state).settings
    if not settings.router.https:
        raise NapError("the router of this nap has no HTTPS", advice="Ask the operator to set router.https.")
    most = settings.router.max_certificate
    brought = checked(sys.stdin.buffer.read(most + 1), most)
    places = settings.etcd
    with connect(places) as etcd:
        names = names_of(etcd, settings, app)
        require_own(brought, app, names)
        value = {"names": brought.names, "chain": brought.chain, "key": brought.key}
        while access := etcd.get(places.access_of(app)):
            if etcd.write({places.certificate_of(app): value}, unchanged={access.key: access.revision}):
                break
        else:
            raise no_such(app)
    click.echo(f"{app} uses this certificate for {', '.join(brought.names)}, until {about(brought.chain).until}")
    if others := [name for name in names if not covers(brought.names, name)]:
        click.echo(f"Domains with another certificate: {', '.join(others)}")


@command("certs:remove", right="owner")
@app_argument
def remove_certificate(caller: Caller, app: str) -> None:
    """Remove the certificate of APP. The router uses its own certificates again."""
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcd import connect

    require_app(caller, app)
    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        if not etcd.get(places.certificate_of(app)):
            raise NapError(f"{app} has no certificate of its own")
        etcd.delete(places.certificate_of(app))
    click.echo(f"{app} uses the router's own certificates")
