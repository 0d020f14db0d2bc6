"""What an app's domains are served with, where its owner brings that."""

import sys

import click

from nap_receiver.commands.table import Caller, app_argument, command, json_option, require_app, show_listing
from nap_receiver.errors import NapError

_LONGEST_BYTES = 1 << 17


@command("certs", right="read")
@app_argument
@json_option
def show_certificate(caller: Caller, app: str, as_json: bool) -> None:
    """Show the certificate that was brought for APP."""
    from nap_receiver.certificates import about
    from nap_receiver.etcd import connect
    from nap_receiver.settings import load

    require_app(caller, app)
    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        entry = etcd.get(places.certificate_of(app))
    rows = []
    if entry:
        found = about(entry.value["chain"])
        rows.append((", ".join(found.names), found.issuer, found.until))
    show_listing(rows, "names", "issuer", "until", as_json=as_json)


@command("certs:add", right="owner")
@app_argument
def add_certificate(caller: Caller, app: str) -> None:
    """Serve the domains of APP with a certificate: in PEM on standard input, with its chain and its key."""
    from nap_receiver.certificates import about, checked
    from nap_receiver.etcd import connect
    from nap_receiver.settings import load

    require_app(caller, app)
    settings = load(caller.state).settings
    if not settings.router.https:
        raise NapError("the router serves no HTTPS here", advice="Ask the operator of this nap to set router.https.")
    content = sys.stdin.buffer.read(_LONGEST_BYTES + 1)
    if len(content) > _LONGEST_BYTES:
        raise NapError(f"that is more than {_LONGEST_BYTES} bytes, which no certificate with its chain and key has")
    chain, key = checked(content)
    with connect(settings.etcd) as etcd:
        etcd.put(settings.etcd.certificate_of(app), {"chain": chain, "key": key})
    found = about(chain)
    click.echo(f"{app} is served with the certificate for {', '.join(found.names)}, until {found.until}")


@command("certs:remove", right="owner")
@app_argument
def remove_certificate(caller: Caller, app: str) -> None:
    """Serve the domains of APP with the router's own certificates again."""
    from nap_receiver.etcd import connect
    from nap_receiver.settings import load

    require_app(caller, app)
    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        if not etcd.get(places.certificate_of(app)):
            raise NapError(f"{app} has no certificate of its own")
        etcd.delete(places.certificate_of(app))
