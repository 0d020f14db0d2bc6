"""The configuration of the Caddy behind the front, as Caddy's JSON: the names and instances of each app.

The configuration is complete: loading it twice changes nothing, and nothing of the one before remains. Connections of
visitors are in the first Caddy (`front`).
"""

import fcntl
import itertools
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

from nap_receiver.core.drafts import put
from nap_receiver.core.paths import State
from nap_receiver.core.settings import RouterSettings
from nap_receiver.model.release import Protocol

_FAILS, _FORGET = 2, "500ms"
"""An instance that failed so often within so long is left alone for as long, where there are others."""

_CONNECT = "250ms"
"""How long an instance on another machine has to accept a connection before another is asked. Less than failures are
remembered, or one visitor alone would come to it again and again."""

_RETRIES = 8
"""So often at most another is asked: with as many that do not accept a connection, for 2 s."""

NEVER: list[dict[str, Any]] = [{"method": []}]
"""Matches no request. One that an instance has already is asked of no other: what ended that one would end them all."""

STOP_SECONDS = 10
"""How long requests have to end when Caddy is stopped. Not Caddy's own `grace_period`: 2.6 applies it to every change,
and, because of a mistake, as no time at all."""

FAREWELL_MS = 75
"""So long after a change a Caddy goes by its configuration before that too, for connections that are there. Each is
told to close after its next answer: one that Caddy closes by itself may have the next request on its way."""

_MOST_KEPT = 10_000
"""So many sites' routes are kept between changes."""

_GROUP = 32
"""Caddy asks one route after the other whether it is for a request; so many share one question before that."""

PERMISSION = "permission"
"""The server of the Caddy behind that the front asks before it gets a certificate."""

CADDY, FRONT = "caddy", "front"
"""The Caddy that has the routes, and the one before it that has visitors' connections."""

ACCESS_LOG = "http.log.access"
"""What Caddy calls its log of requests; of those to an app, a dot and the app's name follow."""

VISITORS_PROTOCOL = "visitors_protocol"
"""What the log calls the protocol of the visitor's request, such as `HTTP/2.0`; with the Caddy behind the front speaks
the front alone."""

FRONTS_WORD = "X-Nap-Protocol"
"""The header in which the front tells that protocol."""

NOT_CADDYS = {"handler": "headers", "response": {"delete": ["Server"]}}
"""Keeps Caddy from telling its own name; at once, for the app's own comes after it."""

_LOG_MB, _LOGS = 20, 4

PROTOCOLS, _PROXY_PROTOCOL = "listen_protocols", "proxy_protocol"

RECENT = (PROTOCOLS, _PROXY_PROTOCOL)
"""What Caddy knows from 2.9 and from 2.7 on."""

_STREAM_HOURS = 24
"""So long a WebSocket stays open over changes, where Caddy can do that."""

_UNSAID_TYPE: dict[str, Any] = {
    "match": {"headers": {"Content-Type": None}, "status_code": [2, 3, 4, 5]},
    "routes": [
        {
            "handle": [
                {
                    "handler": "subroute",
                    "routes": [{"handle": [{"handler": "static_response", "status_code": "none"}]}],
                    "errors": {"routes": []},
                },
                {"handler": "copy_response"},
            ]
        }
    ],
}
"""Passes an answer without a Content-Type on as it is: Go guesses one otherwise (net/http, DetectContentType).

A `static_response` forbids that (`StaticResponse.ServeHTTP` in modules/caddyhttp/staticresp.go), and would answer; this
one fails after that, because "none" is not a status. `errors` catches the failure and does nothing, so that the answer
is copied next.
"""

_CLAIMS = [
    # Who sends the request, and with which certificate (RFC 9440, section 4).
    *("remote-addr", "client-cert"),
    # What was asked for, and in which way.
    *("x-original-url", "x-rewrite-url", "x-host", "x-scheme", "script-name"),
    # Which request it is.
    "x-request-id",
    # What the proxy can do for the app (Rack::Sendfile), and by which proxy the app gets out (httpoxy).
    *("x-sendfile-type", "x-accel-mapping", "proxy"),
]


def _spellings(name: str) -> list[str]:
    """`name` with an underscore in place of each dash or not: to CGI and what came after it, all are one header."""
    pairs = zip(name.split("-"), [*itertools.repeat("-_", name.count("-")), [""]], strict=True)
    return ["".join(parts) for parts in itertools.product(*([word + mark for mark in marks] for word, marks in pairs))]


_SET = "x-request-id"
"""Is set, and Caddy would delete it after that."""

_SAID_BY_PROXIES = [
    "*forwarded*",
    "*-ip",
    "*_ip",
    *sorted({each for name in _CLAIMS for each in _spellings(name)} - {_SET}),
]
"""What an app would believe of its proxy, and so must not be a visitor's. Each costs each request: a name a quarter of
a microsecond or so, a pattern with a star five times as much."""


@dataclass(frozen=True)
class Site:
    """An app for the router: its domains, instances and protocol."""

    app: str
    names: tuple[str, ...]
    instances: tuple[str, ...]
    """`10.0.0.12:32768`, where each answers."""
    protocol: Protocol = "http"
    """What they speak."""
    silent_since: float = 0.0
    """Since when no instance answers, in seconds since the epoch, as far as the router has seen it; else 0."""


def behind(
    sites: Iterable[Site], state: State, router: RouterSettings, permitted: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the configuration of the second Caddy. A Caddy before 2.7 rejects it and names one of `RECENT`.

    The front may request certificates of the names in `permitted`.
    """
    # From the front comes whose request it is, and nobody else may write to these sockets.
    wrappers = [{"wrapper": _PROXY_PROTOCOL}]
    served = servers_of(list(sites), router, is_behind=True)
    if router.https:
        served[PERMISSION] = _permission(permitted)
    servers = {
        name: {"listen": [f"unix/{inner_socket(state, name)}"], "listener_wrappers": wrappers, **server, **PLAIN}
        for name, server in served.items()
    }
    logs = {**program_log(), **request_log(state.router_log)}
    return {**base(state, CADDY), "logging": {"logs": logs}, "apps": {"http": {"servers": servers}}}


def inner_socket(state: State, server: str) -> Path:
    """Return the socket of the second Caddy for this server of the front."""
    return state.run / f"{CADDY}-{server}.sock"


def servers_of(sites: Sequence[Site], router: RouterSettings, *, is_behind: bool) -> dict[str, dict[str, Any]]:
    """Return the servers: `web`, and with HTTPS also `redirect` for plain HTTP.

    `is_behind` is true if the server is behind a front, and can keep streams open over changes.
    """
    always = [*(_from_front() if is_behind else []), *_always()]
    routes = [route(site, is_behind, bool(router.https) and is_behind) for site in _exact_first(sites)]
    logs = {"logger_names": {name: site.app for site in sites for name in site.names}}
    servers: dict[str, dict[str, Any]] = {"web": {"routes": [*always, *_grouped(routes), _nobody()], "logs": logs}}
    if router.https:
        servers["redirect"] = {"routes": [{"handle": [NOT_CADDYS]}, *_to_https(sites, router)]}
    return servers


def base(state: State, program: str) -> dict[str, Any]:
    """Return the configuration with which this Caddy, `CADDY` or the front, starts for the first time."""
    return {
        "admin": {"listen": f"unix/{admin_socket(state, program)}"},
        "storage": {"module": "file_system", "root": str(storage_of(state))},
    }


def admin_socket(state: State, program: str) -> Path:
    """Return the admin socket of this Caddy."""
    return state.run / f"{program}.sock"


def prepare(state: State) -> list[Path]:
    """Create the folders of both Caddies; return their configuration files for the start."""
    for folder in (state.run, storage_of(state)):
        folder.mkdir(parents=True, exist_ok=True)
    state.router_log.parent.mkdir(exist_ok=True)
    paths = {program: state.run / f"{program}.json" for program in (CADDY, FRONT)}
    for program, path in paths.items():
        path.write_text(json.dumps(base(state, program)))
    return list(paths.values())


def told_last(state: State, program: str) -> Path:
    """Return the file in which this Caddy keeps its last configuration."""
    return state.root / program / "caddy" / "autosave.json"


def storage_of(state: State) -> Path:
    """Return the folder of Caddy's certificates."""
    return state.root / "caddy"


def dialled(host: str, port: int) -> str:
    """Format the address of an instance for Caddy."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(_MOST_KEPT)
def route(site: Site, keeps_streams: bool, is_secured: bool) -> dict[str, Any]:
    """Return the route of a site; cached, because a change concerns one of many sites.

    `is_secured` says that it came to the front over HTTPS.
    """
    handler = _proxy(site, keeps_streams) if site.instances else _silent(site)
    if is_secured and site.instances:
        handler["headers"] = {"request": {"set": {"X-Forwarded-Proto": ["https"]}}}
    return {"match": any_of(site.names), "handle": [handler]}


def _exact_first(sites: Sequence[Site]) -> list[Site]:
    """Return these sites with their exact names, then with their wildcards: exact names go first."""
    with_wildcards = [site for site in sites if any(name.startswith("*") for name in site.names)]
    if not with_wildcards:
        return list(sites)
    exact = [replace(site, names=tuple(name for name in site.names if not name.startswith("*"))) for site in sites]
    wild = [replace(site, names=tuple(name for name in site.names if name.startswith("*"))) for site in with_wildcards]
    return [site for site in [*exact, *wild] if site.names]


def _grouped(routes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the same routes in groups that match all names of their routes first."""
    if len(routes) <= _GROUP:
        return routes
    groups = [routes[start : start + _GROUP] for start in range(0, len(routes), _GROUP)]
    return [
        {
            "match": any_of([name for each in group for match in each["match"] for name in match["host"]]),
            "handle": [{"handler": "subroute", "routes": group}],
        }
        for group in groups
    ]


def any_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Match a request to any of these names. In one list of more than 100, Caddy misses names in capital letters."""
    return [{"host": list(names[start : start + 100])} for start in range(0, len(names), 100)]


def _from_front() -> list[dict[str, Any]]:
    """Log the protocol between visitor and front, and hide the header from the app."""
    variable = {"handler": "vars", "protocol": f"{{http.request.header.{FRONTS_WORD}}}"}
    logged = {"handler": "log_append", "key": VISITORS_PROTOCOL, "value": "{http.vars.protocol}"}
    return [{"handle": [variable, logged, {"handler": "headers", "request": {"delete": [FRONTS_WORD]}}]}]


def _always() -> list[dict[str, Any]]:
    """Return the handlers for every request: set a request id; close connections that use routes before a change."""
    request_id = {"set": {"X-Request-Id": ["{http.request.uuid}"]}}
    # What Connection names is not passed on, so a visitor could have the id left out.
    for_next_hop_alone = {"Connection": [{"search_regexp": "(?i)x-request-id", "replace": ""}]}
    request = {**request_id, "delete": _SAID_BY_PROXIES, "replace": for_next_hop_alone}
    leaving = {"vars": {"{http.shutting_down}": ["true"]}, "not": [{"header": {"Upgrade": ["*"]}}]}
    headers = {"handler": "headers", "request": request, "response": {**request_id, "deferred": True}}
    return [
        {"handle": [headers, NOT_CADDYS]},
        {"match": [leaving], "handle": [{"handler": "headers", "response": {"set": {"Connection": ["close"]}}}]},
    ]


def become_only_router(state: State) -> None:
    """Become the only router process of this state directory; waits until no other runs."""
    lock = os.open(state.run / "router.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _told(state).unlink(missing_ok=True)


def say_told(state: State, sites: Iterable[Site]) -> None:
    """Let others know that Caddy does so, of who holds the lock."""
    put(_told(state), msgspec.json.encode({site.app: site.instances for site in sites}), 0o600)


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


def passing_on(addresses: Sequence[str], keeps_streams: bool, **transport: object) -> dict[str, Any]:
    """Has one of these addresses answer, and changes nothing of the answer."""
    proxy: dict[str, Any] = {"handler": "reverse_proxy", "upstreams": [{"dial": address} for address in addresses]}
    if keeps_streams:
        proxy["stream_close_delay"] = f"{_STREAM_HOURS}h"
    # Else Go asks the app for gzip, and unpacks it, where the visitor did not.
    proxy["transport"] = {"protocol": "http", "compression": False, **transport}
    proxy["handle_response"] = [_UNSAID_TYPE]
    return proxy


def _proxy(site: Site, keeps_streams: bool) -> dict[str, Any]:
    proxy = passing_on(site.instances, keeps_streams)
    if site.protocol == "h2c":
        proxy["transport"]["versions"] = ["h2c", "2"]
    others = len(site.instances) - 1
    if not others:  # nothing else to ask, and no reason ever to leave it alone
        return proxy
    if not all(address.startswith("127.") for address in site.instances):  # each setting costs, of thousands of sites
        proxy["transport"]["dial_timeout"] = _CONNECT
    return proxy | {
        "load_balancing": {
            "selection_policy": {"policy": "least_conn"},
            "retries": min(_FAILS * others, _RETRIES),
            "retry_match": NEVER,
        },
        "health_checks": {"passive": {"max_fails": _FAILS, "fail_duration": _FORGET}},
    }


def _silent(site: Site) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(site.silent_since))
    return _page(503, f"{site.app} does not answer: no healthy instance since {since}.\n", {"Retry-After": ["5"]})


def _nobody() -> dict[str, Any]:
    return {"handle": [_page(404, "No app has this domain.\n", {})]}


def _to_https(sites: Sequence[Site], router: RouterSettings) -> list[dict[str, Any]]:
    """Redirect the apps' domains to HTTPS; other names could redirect visitors anywhere."""
    port = "" if router.https.port == 443 else f":{router.https.port}"
    where = f"https://{{http.request.host}}{port}{{http.request.uri}}"
    redirect = {"handler": "static_response", "status_code": 308, "headers": {"Location": [where]}}
    names = [name for site in sites for name in site.names]
    return [*([{"match": any_of(names), "handle": [redirect]}] if names else []), _nobody()]


def _permission(names: Sequence[str]) -> dict[str, Any]:
    """Answer the front whether it may request a certificate."""
    answers = {200: [{"query": {"domain": list(names)}}] if names else NEVER, 403: []}
    return {
        "routes": [
            {"match": match, "handle": [{"handler": "static_response", "status_code": status}]}
            for status, match in answers.items()
        ]
    }


def _page(status: int, text: str, headers: Mapping[str, list[str]]) -> dict[str, Any]:
    kind = {"Content-Type": ["text/plain; charset=utf-8"], "Cache-Control": ["no-store"]}
    return {"handler": "static_response", "status_code": status, "body": text, "headers": {**kind, **headers}}


PLAIN = {"automatic_https": {"disable": True}, "protocols": ["h1"]}


_UNSAID = ("request>headers", "request>tls", "resp_headers>Set-Cookie", "resp_headers>Location")
"""Parts of a line of the log in which visitors' secrets may be."""

_LINE = {"format": "filter", "wrap": {"format": "json"}, "fields": {each: {"filter": "delete"} for each in _UNSAID}}


def program_log() -> dict[str, Any]:
    """Send all logs except requests to Caddy's output."""
    return {"default": {"exclude": [ACCESS_LOG], "level": "WARN", "encoder": _LINE}}


def request_log(path: Path) -> dict[str, Any]:
    """Write requests to a separate file, which `logs -p router` reads."""
    file = {"output": "file", "filename": str(path), "roll_size_mb": _LOG_MB, "roll_keep": _LOGS, "roll_gzip": False}
    return {"requests": {"include": [ACCESS_LOG], "writer": file, "encoder": _LINE}}
