"""Check whether a server answers: HTTP over a unix socket, or over TCP."""

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

ANSWER_SECONDS = 2
"""How long a program on this machine may take to answer."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket; each step of it may take `timeout` seconds."""

    def __init__(self, path: str | Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(path: str | Path, what: str, timeout: float) -> tuple[int, bytes]:
    """Send a GET of `what` to this socket; return the status and the body. Each step may take `timeout` seconds.

    Raises `OSError` or `http.client.HTTPException` where none comes.
    """
    connection = UnixConnection(path, timeout)
    try:
        connection.request("GET", what)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def answers_well(path: str | Path, what: str, timeout: float) -> bool:
    """Return whether a GET of `what` at this socket is answered with 200."""
    try:
        return get(path, what, timeout)[0] == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


def serves(url: str | urllib.request.Request, context: ssl.SSLContext | None = None) -> bool:
    """Return whether a GET of `url` is answered with success within 2 s."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS, context=context) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False
