"""The front: the Caddy that holds visitors' connections, and sends each request to the Caddy with the routes.

Caddy closes idle connections at each change of its configuration. The front's says nothing of apps, their names and
their instances, so that no app that comes, goes or changes touches it; only the certificates that owners bring are in
it. Those of all other names it gets when a visitor comes, and asks the Caddy behind first whether it may (`permitted`).
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
    told = _listening(servers, tls, router)
    _say_farewell(told, state)
    return {**base(state, FRONT), "logging": {"logs": program_log()}, "apps": told}


def whole(
    sites: Sequence[Site],
    certificates: Iterable[Certificate],
    state: State,
    router: RouterSettings,
    waiting: Collection[str] = (),
) -> dict[str, Any]:
    """The same of a front that has the routes itself, for a Caddy that knows nothing of `RECENT`.

    It gets the certificates of all names but those that are `waiting` (`issuing`), before a visitor comes.
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
    """Caddy's apps, in which these servers have the addresses for visitors."""
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


def asked_for(sites: Sequence[Site], certificates: Iterable[Certificate]) -> list[tuple[str, str]]:
    """The names for which a public authority is asked, each with its app."""
    return [(name, app) for name, app in _lacking(sites, _fitting(sites, certificates)) if not is_reserved(name)]


def permitted(sites: Sequence[Site], certificates: Iterable[Certificate], waiting: Collection[str]) -> list[str]:
    """The names of which the front may get a certificate when a visitor comes: all but wildcards, those that are
    `waiting` (`issuing`), and those for which owners brought one."""
    return [name for name, _ in _lacking(sites, _fitting(sites, certificates)) if name not in waiting]


def _lacking(sites: Iterable[Site], given: Iterable[Certificate]) -> list[tuple[str, str]]:
    """The names but wildcards that none of these certificates of their app is for, each with its app."""
    of = {each.app: each.names for each in given}
    return [
        (name, site.app)
        for site in sites
        for name in site.names
        if not (name.startswith("*") or covers(of.get(site.app, ()), name))
    ]


def _contested(sites: Iterable[Site], given: Sequence[Certificate]) -> list[str]:
    """The names for which another app's owner brought a certificate, by a wildcard. Their own are got before a visitor
    comes, who would be shown that one."""
    return [name for name, _ in _lacking(sites, given) if any(covers(each.names, name) for each in given)]


def _loaded(given: Sequence[Certificate]) -> dict[str, Any]:
    """The certificates that were brought, each marked with its app's name."""
    pems = [{"certificate": each.chain, "key": each.key, "tags": [each.app]} for each in given]
    return {"load_pem": pems} if pems else {}


def _policies(names: Iterable[str]) -> list[dict[str, Any]]:
    """Which authority certificates of these names come from, before a visitor comes."""
    own = sorted(name for name in names if is_reserved(name))
    public = sorted(name for name in names if not is_reserved(name))
    return [
        *([{"subjects": own, "issuers": _OWN}] if own else []),
        *([{"subjects": public}] if public else []),
    ]


def _shown(given: Sequence[Certificate], contested: Sequence[str]) -> list[dict[str, Any]]:
    """Which certificate is shown to whom: one that was brought, for all its names, though Caddy may have another."""
    brought = [{"match": {"sni": list(each.names)}, "certificate_selection": {"any_tag": [each.app]}} for each in given]
    return [*([{"match": {"sni": list(contested)}}] if contested else []), *brought, {}]


def _endpoint(router: RouterSettings) -> str:
    """Where the front asks whether it may get a certificate: its own address for plain HTTP."""
    return f"http://{_loopback(router.http)}{_PERMISSION}"


def _permission(state: State, router: RouterSettings) -> dict[str, Any]:
    """Leads the front's own question to the Caddy behind."""
    asked = {"host": [_loopback(router.http).host.strip("[]")], "path": [_PERMISSION]}
    return {"match": [asked], **_to(inner_socket(state, PERMISSION)), "terminal": True}


def _loopback(address: Address) -> Address:
    """Where this machine reaches what listens at `address`."""
    return Address(f"{_LOOPBACK.get(address.host, address.host)}:{address.port}")


def _at_once(sites: Sequence[Site], given: Sequence[Certificate], waiting: Collection[str]) -> dict[str, Any]:
    """For which names Caddy gets a certificate by itself: all but wildcards, those that wait, and brought ones."""
    got = {name for name, _ in _lacking(sites, given) if name not in waiting}
    return {
        "disable_redirects": True,
        "ignore_loaded_certificates": True,  # a wildcard of another app's
        "skip_certificates": sorted({name for site in sites for name in site.names} - got),
    }
