"""The router with Debian's Caddy, which is older than the one that comes with nap, and is told less."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_nap
from tests.machine import Nap
from tests.test_router_change import (
    app,
    test_connections_are_told_before_they_are_closed,
    test_connections_that_are_kept_survive_changes,
    test_websocket_passes,
)

__all__ = [
    "app",
    "test_connections_are_told_before_they_are_closed",
    "test_connections_that_are_kept_survive_changes",
    "test_websocket_passes",
]

pytestmark = pytest.mark.machine


@pytest.fixture(scope="module")
def nap(short_folder: Path) -> Iterator[Nap]:
    """A nap that is told to run Debian's Caddy."""
    nap = fresh_nap(short_folder / "debian", NAP_ROUTER_CADDY="/usr/bin/caddy")
    nap.run("up")
    nap.import_busybox()
    yield nap
    nap.run("down")
