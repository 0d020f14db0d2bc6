"""HTTP over a unix socket."""

import http.client
import socket
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection to the server that listens at a path; each step of it may take `timeout` seconds."""

    def __init__(self, path: str | Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(path: str | Path, what: str, timeout: float) -> tuple[int, bytes]:
    """The status and the text that a GET of `what` is answered with at this socket, each step within `timeout` seconds.

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
    """Whether a GET of `what` is answered with 200 there."""
    try:
        return get(path, what, timeout)[0] == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
