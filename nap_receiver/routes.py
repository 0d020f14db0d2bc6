"""What Caddy is told: for each app its names and where its instances answer, as Caddy's JSON configuration.

The configuration says all of it, so that setting it twice changes nothing, and nothing is left of what was before.
"""

import fcntl
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_receiver.settings import RouterSettings
from nap_receiver.state import State

_RETRY_SECONDS = 3
"""How long an instance is looked for that takes a request; what was sent to one already is sent to no other."""

_FAILS, _FORGET_SECONDS = 3, 1
"""An instance that failed so often within so long is left alone for as long."""

STOP_SECONDS = 10
"""How long Caddy waits for requests to end when it is stopped."""

_LOG_MB, _LOGS = 20, 4


@dataclass(frozen=True)
class Site:
    """An app as the web sees it."""

    app: str
    names: Sequence[str]
    instances: Sequence[str]
    """`10.0.0.12:32768`, where each answers."""
    silent_since: float = 0.0
    """Since when no instance answers, in seconds since the epoch, as far as the router has seen it; else 0."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its chain and its key, in PEM."""

    chain: str
    key: str


def configuration(
    sites: Iterable[Site], certificates: Iterable[Certificate], state: State, router: RouterSettings
) -> dict[str, Any]:
    """All that Caddy needs to know."""
    found = list(sites)
    routes = [route(site) for site in found] + [_nobody()]
    logs = {"logger_names": {name: site.app for site in found for name in site.names}}
    servers: dict[str, Any] = {"web": {"listen": [router.http], "routes": routes, "logs": logs, **_PLAIN}}
    apps: dict[str, Any] = {"http": {"http_port": router.http.port, "grace_period": f"{STOP_SECONDS}s"}}
    if router.https:
        servers["web"] = {"listen": [router.https], "routes": routes, "logs": logs, **_SECURE}
        servers["redirect"] = {"listen": [router.http], "routes": [_to_https(router)], **_SECURE}
        apps["http"]["https_port"] = router.https.port
        apps["pki"] = {"certificate_authorities": {"local": {"install_trust": False}}}
        given = [{"certificate": each.chain, "key": each.key} for each in certificates]
        if given:
            apps["tls"] = {"certificates": {"load_pem": given}}
    apps["http"]["servers"] = servers
    return {**base(state), "logging": _logging(state.router_log), "apps": apps}


def base(state: State) -> dict[str, Any]:
    """What Caddy starts with where it was never told any routes."""
    return {
        "admin": {"listen": f"unix/{state.run / 'caddy.sock'}"},
        "storage": {"module": "file_system", "root": str(state.root / "caddy")},
    }


def route(site: Site) -> dict[str, Any]:
    """What becomes of a request to one of the site's names."""
    return {"match": [{"host": list(site.names)}], "handle": [_proxy(site) if site.instances else _silent(site)]}


def only_router(state: State) -> int:
    """Become the one that tells Caddy what to do: waits until there is no other; a descriptor to keep open."""
    lock = os.open(state.run / "router.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def is_routing(state: State) -> bool:
    """Whether there is one."""
    with suppress(FileNotFoundError), (state.run / "router.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _proxy(site: Site) -> dict[str, Any]:
    request_id = {"X-Request-Id": ["{http.request.uuid}"]}
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": address} for address in site.instances],
        "load_balancing": {
            "selection_policy": {"policy": "least_conn"},
            "try_duration": f"{_RETRY_SECONDS}s",
            "try_interval": "50ms",
        },
        "health_checks": {"passive": {"max_fails": _FAILS, "fail_duration": f"{_FORGET_SECONDS}s"}},
        "headers": {"request": {"set": request_id}, "response": {"set": request_id}},
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


_PLAIN = {"automatic_https": {"disable": True}}
_SECURE = {"automatic_https": {"disable_redirects": True}}


def _logging(path: Path) -> dict[str, Any]:
    """Requests go to a file of their own, from which `logs -p router` reads; all else to where Caddy's output goes."""
    file = {"output": "file", "filename": str(path), "roll_size_mb": _LOG_MB, "roll_keep": _LOGS, "roll_gzip": False}
    return {
        "logs": {
            "default": {"exclude": ["http.log.access"], "level": "WARN"},
            "requests": {"include": ["http.log.access"], "writer": file, "encoder": {"format": "json"}},
        }
    }
