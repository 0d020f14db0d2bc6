"""The front: the Caddy that holds visitors' connections, and sends each request to the Caddy with the routes.

Caddy closes idle connections at each change of its configuration. The front's configuration has no apps, domains or
instances, so changes of apps do not touch it; it has only the certificates that owners add. It requests the
certificates of all other domains when a visitor comes, after it has asked the second Caddy for permission
(`permitted`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_receiver.core.paths import State
from nap_receiver.core.settings import Address, RouterSettings
from nap_receiver.routing.caddy_configuration import (
    FAREWELL_MS,
    FRONT,
    FRONTS_WORD,
    NEVER,
    NOT_CADDYS,
    PERMISSION,
    PLAIN,
    PROTOCOLS,
    Site,
    base,
    inner_socket,
    passing_on,
    program_log,
    request_log,
    servers_of,
)
from nap_receiver.routing.domains import covers
from nap_receiver.routing.ownership import RESERVED, is_reserved

_WAIT, _LOOK_AGAIN = "5s", "50ms"
"""How long a request waits for the Caddy behind, where that starts again, and how often it is tried."""


_PERMISSION = "/certificate"
"""The path at which the front asks, with `?domain=NAME` after it, whether it may get a certificate of that name."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

_OWN = [{"module": "internal"}]
"""The authority that is this Caddy's own, for names that no public one knows."""

_RESERVED_NAMES = [f"{'*.' * stars}{name}" for name in RESERVED for stars in range(5)]
"""Those names and all below, as Caddy writes them: each star is for one label."""


@dataclass(frozen=True)
class Certificate:
    """A certificate that an app's owner added, with its chain and key, in PEM."""

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
    """Return the configuration of the front. It requests no certificate of the names in `waiting` (`issuing`).

    A Caddy before 2.9 rejects it and names one of `RECENT`.
    """
    servers: dict[str, dict[str, Any]] = {"web": {"routes": [_to(inner_socket(state, "web"))]}}
    tls: dict[str, Any] = {}
    if router.https:
        given = _fitting(sites, certificates)
        contested = _contested(sites, given)
        servers["web"] |= {"tls_connection_policies": _shown(given, contested), "automatic_https": {"disable": True}}
        servers["redirect"] = {"routes": [_permission(state, router), _to(inner_socket(state, "redirect"))]}
        at_once = [name for name in contested if name not in waiting]
        tls = {
            "certificates": {"automate": at_once, **_loaded(given)},
            "automation": {
                "policies": [
                    *_policies(at_once),
                    {"subjects": _RESERVED_NAMES, "issuers": _OWN, "on_demand": True},
                    {"on_demand": True},
                ],
                "on_demand": {"permission": {"module": "http", "endpoint": _endpoint(router)}},
            },
        }
    apps = _listening(servers, tls, router)
    _say_farewell(apps, state)
    return {**base(state, FRONT), "logging": {"logs": program_log()}, "apps": apps}


def whole(
    sites: Sequence[Site],
    certificates: Iterable[Certificate],
    state: State,
    router: RouterSettings,
    waiting: Collection[str] = (),
) -> dict[str, Any]:
    """Return the configuration of a front that also has the routes, for a Caddy without the features in `RECENT`.

    It requests the certificates of all names except those in `waiting` (`issuing`), before a visitor comes.
    """
    servers = servers_of(sites, router, is_behind=False)
    tls: dict[str, Any] = {}
    if router.https:
        given = _fitting(sites, certificates)
        servers["web"] |= {"tls_connection_policies": [{}], "automatic_https": _at_once(sites, given, waiting)}
        own = [name for site in sites for name in site.names if is_reserved(name)]
        tls = {"certificates": _loaded(given), "automation": {"policies": _policies(own)}}
    return {
        **base(state, FRONT),
        "logging": {"logs": {**program_log(), **request_log(state.router_log)}},
        "apps": _listening(servers, tls, router),
    }


def _listening(servers: Mapping[str, dict[str, Any]], tls: dict[str, Any], router: RouterSettings) -> dict[str, Any]:
    """Return Caddy's apps, with the addresses for visitors."""
    http: dict[str, Any] = {"http_port": router.http.port, "shutdown_delay": f"{FAREWELL_MS}ms"}
    if not router.https:
        return {"http": {**http, "servers": {"web": {"listen": [router.http], **servers["web"], **PLAIN}}}}
    http["https_port"] = router.https.port
    http["servers"] = {
        # A change of the front is handed over for TCP alone (`handover`), not for HTTP/3.
        "web": {"listen": [router.https], **servers["web"], "protocols": ["h1", "h2"]},
        "redirect": {"listen": [router.http], **servers["redirect"], **PLAIN},
    }
    pki = {"certificate_authorities": {"local": {"install_trust": False}}}
    return {"http": http, "pki": pki, "tls": tls}


def _to(socket: Path) -> dict[str, Any]:
    """Pass each request on over its own connection: the second Caddy closes idle ones at each change."""
    proxy = passing_on([f"unix/{socket}"], True, proxy_protocol="v2", keep_alive={"enabled": False})
    proxy["headers"] = {"request": {"set": {FRONTS_WORD: ["{http.request.proto}"]}}}
    proxy["load_balancing"] = {"try_duration": _WAIT, "try_interval": _LOOK_AGAIN, "retry_match": NEVER}
    return {"handle": [NOT_CADDYS, proxy]}


def _say_farewell(apps: dict[str, Any], state: State) -> None:
    """Add a socket that nobody uses to each server.

    Caddies that keep streams apply `shutdown_delay` at a change only to servers that lose an address with it; they
    count a socket as such.
    """
    for name, server in apps["http"]["servers"].items():
        server["listen"] = [*server["listen"], f"unix/{state.run / f'{FRONT}-{name}.sock'}"]
        server[PROTOCOLS] = [server["protocols"], ["h1"]]  # with None for the first, Caddy offers no HTTP/2


def _fitting(sites: Sequence[Site], certificates: Iterable[Certificate]) -> list[Certificate]:
    """Return the certificates that have only names of their own app: Caddy shows a certificate for all its names."""
    names = {site.app: set(site.names) for site in sites}
    return [each for each in certificates if set(each.names) <= names.get(each.app, set())]


def asked_for(sites: Sequence[Site], certificates: Iterable[Certificate]) -> list[tuple[str, str]]:
    """Return the names that need a public certificate, each with its app."""
    return [(name, app) for name, app in _lacking(sites, _fitting(sites, certificates)) if not is_reserved(name)]


def permitted(sites: Sequence[Site], certificates: Iterable[Certificate], waiting: Collection[str]) -> list[str]:
    """Return the names for which the front may request a certificate when a visitor comes: all except wildcards, those
    in `waiting` (`issuing`), and those with an owner's certificate."""
    return [name for name, _ in _lacking(sites, _fitting(sites, certificates)) if name not in waiting]


def _lacking(sites: Iterable[Site], given: Iterable[Certificate]) -> list[tuple[str, str]]:
    """Return the names, except wildcards, without a certificate of their app, each with its app."""
    of = {each.app: each.names for each in given}
    return [
        (name, site.app)
        for site in sites
        for name in site.names
        if not (name.startswith("*") or covers(of.get(site.app, ()), name))
    ]


def _contested(sites: Iterable[Site], given: Sequence[Certificate]) -> list[str]:
    """Return the names that another app's wildcard certificate covers. Their own certificates are requested in advance,
    because a visitor would get the other one."""
    return [name for name, _ in _lacking(sites, given) if any(covers(each.names, name) for each in given)]


def _loaded(given: Sequence[Certificate]) -> dict[str, Any]:
    """Return the owners' certificates, each tagged with its app's name."""
    pems = [{"certificate": each.chain, "key": each.key, "tags": [each.app]} for each in given]
    return {"load_pem": pems} if pems else {}


def _policies(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the authority for certificates of these names that are requested in advance."""
    own = sorted(name for name in names if is_reserved(name))
    public = sorted(name for name in names if not is_reserved(name))
    return [
        *([{"subjects": own, "issuers": _OWN}] if own else []),
        *([{"subjects": public}] if public else []),
    ]


def _shown(given: Sequence[Certificate], contested: Sequence[str]) -> list[dict[str, Any]]:
    """Return which certificate is shown: an owner's certificate for all its names, even if Caddy has another."""
    brought = [{"match": {"sni": list(each.names)}, "certificate_selection": {"any_tag": [each.app]}} for each in given]
    return [*([{"match": {"sni": list(contested)}}] if contested else []), *brought, {}]


def _endpoint(router: RouterSettings) -> str:
    """Return the URL at which the front asks for permission: its own address for plain HTTP."""
    return f"http://{_loopback(router.http)}{_PERMISSION}"


def _permission(state: State, router: RouterSettings) -> dict[str, Any]:
    """Route the front's own question to the second Caddy."""
    asked = {"host": [_loopback(router.http).host.strip("[]")], "path": [_PERMISSION]}
    return {"match": [asked], **_to(inner_socket(state, PERMISSION)), "terminal": True}


def _loopback(address: Address) -> Address:
    """Return the address at which this machine reaches `address`."""
    return Address(f"{_LOOPBACK.get(address.host, address.host)}:{address.port}")


def _at_once(sites: Sequence[Site], given: Sequence[Certificate], waiting: Collection[str]) -> dict[str, Any]:
    """Return the names for which Caddy requests a certificate in advance: all except wildcards, waiting ones, and those
    with an owner's certificate."""
    got = {name for name, _ in _lacking(sites, given) if name not in waiting}
    return {
        "disable_redirects": True,
        "ignore_loaded_certificates": True,  # a wildcard of another app's
        "skip_certificates": sorted({name for site in sites for name in site.names} - got),
    }
