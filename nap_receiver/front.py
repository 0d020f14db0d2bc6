"""The front: the Caddy that holds visitors' connections, and passes each request on to the Caddy that has the routes.

Caddy closes idle connections at each change of its configuration. The front's says nothing of instances, so no deploy,
restart or scaling changes it: without HTTPS nothing does, and with it a name or a certificate that comes or goes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_receiver.domains import covers
from nap_receiver.ownership import is_reserved
from nap_receiver.routes import (
    FAREWELL_MS,
    FRONT,
    FRONTS_WORD,
    NEVER,
    NOT_CADDYS,
    PLAIN,
    PROTOCOLS,
    Site,
    any_of,
    base,
    inner_socket,
    passing_on,
    program_log,
    request_log,
    servers_of,
)
from nap_receiver.settings import RouterSettings
from nap_receiver.state import State

_WAIT, _LOOK_AGAIN = "5s", "50ms"
"""How long a request waits for the Caddy behind, where that starts again, and how often it is tried."""


@dataclass(frozen=True)
class Certificate:
    """A certificate that an app's owner brought, with its chain and its key, in PEM."""

    app: str
    names: Sequence[str]
    """All that it is for."""
    chain: str
    key: str


def front(
    sites: Sequence[Site],
    certificates: Iterable[Certificate],
    state: State,
    router: RouterSettings,
    waiting: Collection[str] = (),
) -> dict[str, Any]:
    """All that the front needs to know. It is to ask for no certificate of the names that are `waiting` (`issuing`).

    A Caddy before 2.9 refuses it, and names one of `RECENT`.
    """
    servers: dict[str, dict[str, Any]] = {"web": {"routes": [_to(inner_socket(state, "web"))]}}
    if router.https:
        names = [name for site in sites for name in site.names]
        # The first takes each request. From the second Caddy knows the names that need certificates.
        servers["web"]["routes"] += [{"match": any_of(names), "handle": []}] if names else []
        servers["redirect"] = {"routes": [_to(inner_socket(state, "redirect"))]}
    told = _listening(servers, sites, certificates, router, waiting)
    _say_farewell(told, state)
    return {**base(state, FRONT), "logging": {"logs": program_log()}, "apps": told}


def whole(
    sites: Sequence[Site],
    certificates: Iterable[Certificate],
    state: State,
    router: RouterSettings,
    waiting: Collection[str] = (),
) -> dict[str, Any]:
    """The same of a front that has the routes itself, for a Caddy that knows nothing of `RECENT`."""
    servers = servers_of(sites, router, is_behind=False)
    told = _listening(servers, sites, certificates, router, waiting)
    return {
        **base(state, FRONT),
        "logging": {"logs": {**program_log(), **request_log(state.router_log)}},
        "apps": told,
    }


def _listening(
    servers: Mapping[str, dict[str, Any]],
    sites: Sequence[Site],
    certificates: Iterable[Certificate],
    router: RouterSettings,
    waiting: Collection[str],
) -> dict[str, Any]:
    """Caddy's apps, in which these servers have the addresses and the certificates for visitors."""
    http: dict[str, Any] = {"http_port": router.http.port, "shutdown_delay": f"{FAREWELL_MS}ms"}
    if not router.https:
        return {"http": {**http, "servers": {"web": {"listen": [router.http], **servers["web"], **PLAIN}}}}
    given = _fitting(sites, certificates)
    http["https_port"] = router.https.port
    http["servers"] = {
        "web": {"listen": [router.https], **servers["web"], **_secure(sites, given, waiting)},
        "redirect": {"listen": [router.http], **servers["redirect"], **PLAIN},
    }
    tls: dict[str, Any] = {}
    if given:
        tls["certificates"] = {"load_pem": [{"certificate": each.chain, "key": each.key} for each in given]}
    if own := sorted(name for site in sites for name in site.names if is_reserved(name)):
        tls["automation"] = {"policies": [{"subjects": own, "issuers": [{"module": "internal"}]}]}
    pki = {"certificate_authorities": {"local": {"install_trust": False}}}
    return {"http": http, "pki": pki, **({"tls": tls} if tls else {})}


def _to(socket: Path) -> dict[str, Any]:
    """Passes each request on over a connection of its own: the Caddy behind closes those that wait for the next one."""
    proxy = passing_on([f"unix/{socket}"], True, proxy_protocol="v2", keep_alive={"enabled": False})
    proxy["headers"] = {"request": {"set": {FRONTS_WORD: ["{http.request.proto}"]}}}
    proxy["load_balancing"] = {"try_duration": _WAIT, "try_interval": _LOOK_AGAIN, "retry_match": NEVER}
    return {"handle": [NOT_CADDYS, proxy]}


def _say_farewell(told: dict[str, Any], state: State) -> None:
    """Have each server listen at a socket too, for nobody.

    Caddies that keep streams apply `shutdown_delay` at a change only to servers of which an address goes away with it,
    for which they take a socket always.
    """
    for name, server in told["http"]["servers"].items():
        server["listen"] = [*server["listen"], f"unix/{state.run / f'{FRONT}-{name}.sock'}"]
        server[PROTOCOLS] = [server["protocols"], ["h1"]]  # with None for the first, Caddy offers no HTTP/2


def _fitting(sites: Sequence[Site], certificates: Iterable[Certificate]) -> list[Certificate]:
    """The certificates that are for names of their own app alone: Caddy shows one to visitors of all that it names."""
    names = {site.app: set(site.names) for site in sites}
    return [each for each in certificates if set(each.names) <= names.get(each.app, set())]


def asked_for(sites: Iterable[Site], certificates: Iterable[Certificate]) -> list[tuple[str, str]]:
    """The names for which a public authority is asked, each with its app."""
    found = list(sites)
    of = {each.app: each.names for each in _fitting(found, certificates)}
    return [
        (name, site.app)
        for site in found
        for name in site.names
        if not (name.startswith("*") or is_reserved(name) or covers(of.get(site.app, ()), name))
    ]


def _secure(sites: Sequence[Site], given: Sequence[Certificate], waiting: Collection[str]) -> dict[str, Any]:
    """Where certificates come from: those that were brought, and for all other names but wildcards Caddy gets them."""
    of = {each.app: each.names for each in given}
    brought = [name for site in sites for name in site.names if covers(of.get(site.app, ()), name)]
    wild = [name for site in sites for name in site.names if name.startswith("*")]
    return {
        "protocols": ["h1", "h2"],  # a change of routes is handed over for TCP alone (`handover`), not for HTTP/3
        "tls_connection_policies": [{}],
        "automatic_https": {
            "disable_redirects": True,
            "ignore_loaded_certificates": True,  # a wildcard of another app's
            "skip_certificates": sorted({*brought, *wild, *waiting}),
        },
    }
