"""Caddy's admin API over its unix socket: load the whole configuration of the proxy."""

import http.client
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import UnixConnection

_ANSWER_SECONDS = 30
"""Caddy answers when the routes are in force; with thousands of them that takes a moment."""


class CaddyAway(NapError):
    """Caddy does not answer."""


def load(path: Path, configuration: dict[str, Any]) -> None:
    """Load the configuration into the Caddy at this socket; return when it is in force.

    Loading the same configuration again has no effect. Raises `CaddyAway`, or `NapError` if Caddy rejects it.
    """
    status, body = _ask(path, "POST", "/load", msgspec.json.encode(configuration, enc_hook=str))
    if status != http.client.OK:
        raise NapError(f"Caddy rejects the routes: {body.decode('utf-8', 'replace')[:500]}")


def process(path: Path) -> int:
    """Return the process id of the Caddy at this socket; 0 if it is not visible from here. Raises `CaddyAway`."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise CaddyAway(f"Caddy at {path} does not answer: {error}") from error
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def answers(path: Path) -> bool:
    """Return whether the Caddy at this socket answers."""
    try:
        return _ask(path, "GET", "/config/admin")[0] == http.client.OK
    except CaddyAway:
        return False


def _ask(path: Path, method: str, what: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request; return status and body. Raises `CaddyAway`."""
    connection = UnixConnection(path, _ANSWER_SECONDS)
    try:
        headers = {"Content-Type": "application/json", "Host": ""}  # the only Host that it takes
        connection.request(method, what, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise CaddyAway(f"Caddy at {path} does not answer: {error}") from error
    finally:
        connection.close()
