"""The router with Debian's Caddy, which is older than the one that comes with nap, and is told less."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_nap
from tests.machine.test_router import served
from tests.machine.test_router_answer import (
    test_answer_arrives_as_the_app_gave_it,
    test_app_is_asked_for_no_encoding_that_the_visitor_did_not_ask_for,
)
from tests.machine.test_router_change import (
    app,
    test_websocket_passes,
)
from tests.nap import Nap
from tests.regulars import announced, instance, regulars

__all__ = [
    "app",
    "test_answer_arrives_as_the_app_gave_it",
    "test_app_is_asked_for_no_encoding_that_the_visitor_did_not_ask_for",
    "test_websocket_passes",
]


@pytest.fixture(scope="module")
def nap(short_folder: Path) -> Iterator[Nap]:
    """A nap that is told to run Debian's Caddy."""
    nap = fresh_nap(short_folder / "debian", NAP_ROUTER_CADDY="/usr/bin/caddy")
    nap.run("up")
    nap.import_busybox()
    yield nap
    nap.run("down")


def test_connections_that_are_kept_survive_changes(nap: Nap, app: str) -> None:
    with instance() as one, instance() as two:
        announced(nap, app, [one.server_port, two.server_port])
        served(nap, f"{app}.localhost", 200)
        with regulars(nap, f"{app}.localhost") as gets, regulars(nap, f"{app}.localhost", 50, "POST") as posts:
            for number in range(30):
                announced(nap, f"{app}-other", [1024 + number])
                announced(nap, app, [one.server_port] if number % 2 else [two.server_port, one.server_port])
        announced(nap, f"{app}-other", [])
    assert gets.answered > 50
    assert posts.answered > 10
    assert gets.excuse and posts.excuse, gets.failed + posts.failed


def test_connections_are_told_before_they_are_closed(nap: Nap, app: str) -> None:
    told, router = 0, nap.settings.router.http
    with instance() as one:
        announced(nap, app, [one.server_port])
        served(nap, f"{app}.localhost", 200)
        for number in range(10):
            connection = http.client.HTTPConnection(router.host, router.port, timeout=10)
            change = threading.Thread(target=announced, args=(nap, f"{app}-other", [1024 + number]))
            says, until = "", time.monotonic() + 10
            with contextlib.suppress(OSError, http.client.HTTPException):
                while says != "close" and time.monotonic() < until:
                    connection.request("GET", "/", headers={"Host": f"{app}.localhost"})
                    reply = connection.getresponse()
                    reply.read()
                    says = reply.headers["Connection"]
                    if change.ident is None:  # the connection is there before the change, or it need not be told
                        change.start()
                told += says == "close"
            if change.ident:
                change.join()
            connection.close()
        announced(nap, f"{app}-other", [])
    assert told >= 8
