"""What Caddy is told: for each app its names and where its instances answer, as Caddy's JSON configuration.

The configuration says all of it, so that setting it twice changes nothing, and nothing is left of what was before.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from nap_receiver.domains import covers
from nap_receiver.settings import RouterSettings
from nap_receiver.state import State

_FAILS, _FORGET = 2, "500ms"
"""An instance that failed so often within so long is left alone for as long, where there are others."""

_CONNECT = "250ms"
"""How long an instance on another machine has to accept a connection before another is asked. Less than failures are
remembered, or one visitor alone would come to it again and again."""

_RETRIES = 8
"""So often at most another is asked: with as many that do not accept a connection, for 2 s."""

_NEVER: list[dict[str, Any]] = [{"method": []}]
"""Matches no request. One that an instance has already is asked of no other: what ended that one would end them all."""

STOP_SECONDS = 10
"""How long requests have to end when Caddy is stopped. Not Caddy's own `grace_period`: 2.6 applies it to every change,
and, because of a mistake, as no time at all."""

_FAREWELL_MS = 75
"""So long after a change the routes before it are used on too, for connections that are there, and each is told to
close after its next answer: one that Caddy closes by itself may have the next request on its way."""

_MOST_KEPT = 10_000
"""So many sites' routes are kept between changes."""

_GROUP = 32
"""Caddy asks one route after the other whether it is for a request; so many share one question before that."""

ACCESS_LOG = "http.log.access"
"""What Caddy calls its log of requests; of those to an app, a dot and the app's name follow."""

_LOG_MB, _LOGS = 20, 4

_STREAMS, _PROTOCOLS = RECENT = "stream_close_delay", "listen_protocols"
"""What Caddy knows from 2.7 and from 2.9 on."""

_STREAM_HOURS = 24
"""So long a WebSocket stays open over changes, where Caddy can do that."""

_SAID_BY_PROXIES = ["*forwarded*", "*real-ip", "*real_ip", "*request_id", "x_request-id"]
"""What an app would believe of its proxy, and so must not be a visitor's. With an underscore, a header is to many apps
the same as with a dash."""


@dataclass(frozen=True)
class Site:
    """An app as the web sees it."""

    app: str
    names: tuple[str, ...]
    instances: tuple[str, ...]
    """`10.0.0.12:32768`, where each answers."""
    silent_since: float = 0.0
    """Since when no instance answers, in seconds since the epoch, as far as the router has seen it; else 0."""


@dataclass(frozen=True)
class Certificate:
    """A certificate that an app's owner brought, with its chain and its key, in PEM."""

    app: str
    names: Sequence[str]
    """All that it is for."""
    chain: str
    key: str


def configuration(
    sites: Iterable[Site],
    certificates: Iterable[Certificate],
    state: State,
    router: RouterSettings,
    *,
    keeps_streams: bool,
) -> dict[str, Any]:
    """All that Caddy needs to know; `keeps_streams` says whether it can keep streams open over changes (from 2.9 on).

    One that cannot refuses a configuration that has it do so, and names one of `RECENT`.
    """
    found = list(sites)
    routes = [*_always(), *_grouped([route(site, keeps_streams) for site in _exact_first(found)]), _nobody()]
    logs = {"logger_names": {name: site.app for site in found for name in site.names}}
    servers: dict[str, Any] = {"web": {"listen": [router.http], "routes": routes, "logs": logs, **_PLAIN}}
    apps: dict[str, Any] = {"http": {"http_port": router.http.port, "shutdown_delay": f"{_FAREWELL_MS}ms"}}
    if router.https:
        given = _fitting(found, certificates)
        servers["web"] = {"listen": [router.https], "routes": routes, "logs": logs, **_secure(found, given)}
        servers["redirect"] = {"listen": [router.http], "routes": [_to_https(router)], "protocols": ["h1"]}
        apps["http"]["https_port"] = router.https.port
        apps["pki"] = {"certificate_authorities": {"local": {"install_trust": False}}}
        if given:
            pairs = [{"certificate": each.chain, "key": each.key} for each in given]
            apps["tls"] = {"certificates": {"load_pem": pairs}}
    apps["http"]["servers"] = servers
    told = {**base(state), "logging": _logging(state.router_log), "apps": apps}
    if keeps_streams:
        _say_farewell(told, state)
    return told


def _say_farewell(told: dict[str, Any], state: State) -> None:
    """Have each server listen at a socket too, for nobody.

    Caddies that keep streams apply `shutdown_delay` at a change only to servers of which an address goes away with it,
    for which they take a socket always.
    """
    for name, server in told["apps"]["http"]["servers"].items():
        server["listen"] = [*server["listen"], f"unix/{state.run / f'caddy-{name}.sock'}"]
        server[_PROTOCOLS] = [None, ["h1"]]


def base(state: State) -> dict[str, Any]:
    """What Caddy starts with where it was never told any routes."""
    return {
        "admin": {"listen": f"unix/{state.run / 'caddy.sock'}"},
        "storage": {"module": "file_system", "root": str(state.root / "caddy")},
    }


def prepare(state: State) -> Path:
    """Make the places that Caddy needs; the file to start it with."""
    for folder in (state.run, state.root / "caddy"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.router_log.parent.mkdir(exist_ok=True)
    path = state.run / "caddy.json"
    path.write_text(json.dumps(base(state)))
    return path


def told_last(state: State) -> Path:
    """Where Caddy keeps what it was told last."""
    return state.root / "caddy" / "caddy" / "autosave.json"


def dialled(host: str, port: int) -> str:
    """Where an instance answers, as Caddy says it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(_MOST_KEPT)
def route(site: Site, keeps_streams: bool) -> dict[str, Any]:
    """What becomes of a request to one of the site's names; kept, as a change is one site's of many."""
    handler = _proxy(site, keeps_streams) if site.instances else _silent(site)
    return {"match": _any_of(site.names), "handle": [handler]}


def _exact_first(sites: Sequence[Site]) -> list[Site]:
    """These sites with all their names but wildcards, then with those alone: a name is its app's before any other's."""
    with_wildcards = [site for site in sites if any(name.startswith("*") for name in site.names)]
    if not with_wildcards:
        return list(sites)
    exact = [replace(site, names=tuple(name for name in site.names if not name.startswith("*"))) for site in sites]
    wild = [replace(site, names=tuple(name for name in site.names if name.startswith("*"))) for site in with_wildcards]
    return [site for site in [*exact, *wild] if site.names]


def _fitting(sites: Sequence[Site], certificates: Iterable[Certificate]) -> list[Certificate]:
    """The certificates that are for names of their own app alone: Caddy shows one to visitors of all that it names."""
    names = {site.app: set(site.names) for site in sites}
    return [each for each in certificates if set(each.names) <= names.get(each.app, set())]


def _secure(sites: Sequence[Site], given: Sequence[Certificate]) -> dict[str, Any]:
    """Where certificates come from: those that were brought, and for all other names but wildcards Caddy gets them."""
    of = {each.app: each.names for each in given}
    brought = [name for site in sites for name in site.names if covers(of.get(site.app, ()), name)]
    wild = [name for site in sites for name in site.names if name.startswith("*")]
    return {
        "tls_connection_policies": [{}],
        "automatic_https": {
            "disable_redirects": True,
            "ignore_loaded_certificates": True,  # a wildcard of another app's
            "skip_certificates": sorted({*brought, *wild}),
        },
    }


def _grouped(routes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The same routes, in groups that ask for all names of their routes first."""
    if len(routes) <= _GROUP:
        return routes
    groups = [routes[start : start + _GROUP] for start in range(0, len(routes), _GROUP)]
    return [
        {
            "match": _any_of([name for each in group for match in each["match"] for name in match["host"]]),
            "handle": [{"handler": "subroute", "routes": group}],
        }
        for group in groups
    ]


def _any_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Matches a request to any of these names. Of more than 100 in one list, Caddy knows none in capital letters."""
    return [{"host": list(names[start : start + 100])} for start in range(0, len(names), 100)]


def _always() -> list[dict[str, Any]]:
    """What is done with every request first: it gets an id, and where it is answered by the routes before a change,
    its connection closes after it, unless it becomes another."""
    request_id = {"set": {"X-Request-Id": ["{http.request.uuid}"]}}
    # What Connection names is not passed on, so a visitor could have the id left out.
    for_next_hop_alone = {"Connection": [{"search_regexp": "(?i)x-request-id", "replace": ""}]}
    request = {**request_id, "delete": _SAID_BY_PROXIES, "replace": for_next_hop_alone}
    leaving = {"vars": {"{http.shutting_down}": ["true"]}, "not": [{"header": {"Upgrade": ["*"]}}]}
    return [
        {"handle": [{"handler": "headers", "request": request, "response": {**request_id, "deferred": True}}]},
        {"match": [leaving], "handle": [{"handler": "headers", "response": {"set": {"Connection": ["close"]}}}]},
    ]


def become_only_router(state: State) -> None:
    """Become the one that tells Caddy what to do, until this process ends: waits until there is no other."""
    lock = os.open(state.run / "router.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _told(state).unlink(missing_ok=True)


def say_told(state: State, sites: Iterable[Site]) -> None:
    """Let others know that Caddy does so, of who holds the lock."""
    draft = _told(state).with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode({site.app: site.instances for site in sites}))
    draft.replace(_told(state))


def has_told(state: State) -> bool:
    """Whether there is one that has told Caddy what etcd says."""
    return is_routing(state) and _told(state).exists()


def leads_to(state: State, app: str) -> set[str]:
    """Where Caddy sends visitors of `app` now, as far as the router has said."""
    try:
        return set(msgspec.json.decode(_told(state).read_bytes()).get(app, ()))
    except FileNotFoundError:
        return set()


def _told(state: State) -> Path:
    return state.run / "routes.json"


def is_routing(state: State) -> bool:
    """Whether there is one that may tell Caddy what to do."""
    with suppress(FileNotFoundError), (state.run / "router.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _proxy(site: Site, keeps_streams: bool) -> dict[str, Any]:
    proxy: dict[str, Any] = {"handler": "reverse_proxy", "upstreams": [{"dial": address} for address in site.instances]}
    if keeps_streams:
        proxy[_STREAMS] = f"{_STREAM_HOURS}h"
    others = len(site.instances) - 1
    if not others:  # nothing else to ask, and no reason ever to leave it alone
        return proxy
    if not all(address.startswith("127.") for address in site.instances):  # each setting costs, of thousands of sites
        proxy["transport"] = {"protocol": "http", "dial_timeout": _CONNECT}
    return proxy | {
        "load_balancing": {
            "selection_policy": {"policy": "least_conn"},
            "retries": min(_FAILS * others, _RETRIES),
            "retry_match": _NEVER,
        },
        "health_checks": {"passive": {"max_fails": _FAILS, "fail_duration": _FORGET}},
    }


def _silent(site: Site) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(site.silent_since))
    return _page(503, f"{site.app}: no instance of it answers, since {since}.\n", {"Retry-After": ["5"]})


def _nobody() -> dict[str, Any]:
    return {"handle": [_page(404, "No app of this name is here.\n", {})]}


def _to_https(router: RouterSettings) -> dict[str, Any]:
    port = "" if router.https.port == 443 else f":{router.https.port}"
    where = f"https://{{http.request.host}}{port}{{http.request.uri}}"
    return {"handle": [{"handler": "static_response", "status_code": 308, "headers": {"Location": [where]}}]}


def _page(status: int, text: str, headers: Mapping[str, list[str]]) -> dict[str, Any]:
    kind = {"Content-Type": ["text/plain; charset=utf-8"], "Cache-Control": ["no-store"]}
    return {"handler": "static_response", "status_code": status, "body": text, "headers": {**kind, **headers}}


_PLAIN = {"automatic_https": {"disable": True}, "protocols": ["h1"]}


def _logging(path: Path) -> dict[str, Any]:
    """Requests go to a file of their own, from which `logs -p router` reads; all else to where Caddy's output goes."""
    # Visitors' secrets have no place in it.
    unsaid = ("request>headers", "request>tls", "resp_headers>Set-Cookie", "resp_headers>Location")
    line = {"format": "filter", "wrap": {"format": "json"}, "fields": {each: {"filter": "delete"} for each in unsaid}}
    file = {"output": "file", "filename": str(path), "roll_size_mb": _LOG_MB, "roll_keep": _LOGS, "roll_gzip": False}
    return {
        "logs": {
            "default": {"exclude": [ACCESS_LOG], "level": "WARN", "encoder": line},
            "requests": {"include": [ACCESS_LOG], "writer": file, "encoder": line},
        }
    }
