"""One try of a check of an instance, by its kind."""

import contextlib
import http.client
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from docker.errors import DockerException

from nap_receiver.model.health import Answer, Check, visitors_headers
from nap_receiver.store.assignments import Watched

_MOST_BODY_BYTES = 1 << 20
_FIRST_BYTES, _LINE_BYTES = 4096, 200
_PRINTED_BYTES = 2000
_PIECE_BYTES = 65536
_AWAY = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)

_ANY_CERTIFICATE = ssl._create_unverified_context  # it could not name the container


@dataclass(frozen=True)
class AskedContainer:
    """The container that is asked: its address on the engine's network, and the engine."""

    id: str
    address: str
    api: Any


@dataclass(frozen=True)
class Try:
    """How a try went, and what was answered where it failed and that is worth telling."""

    passed: bool
    answer: Answer | None = None
    goes_on: bool = False
    """Whether a command runs on, after its time."""


def tried(check: Check, watched: Watched, container: AskedContainer) -> Try:
    """Try a check once."""
    if check.path:
        return _asked(check, watched, container)
    if check.listening:
        return Try(is_open(container.address, check.port or watched.port, check.timeout))
    if check.command:
        return ran(check.command, check.timeout, container)
    time.sleep(check.uptime)
    return Try(True)


def is_open(address: str, port: int, seconds: float) -> bool:
    """Whether a TCP port of a container accepts a connection within these seconds.

    It is asked at the container's own address: the engine's proxy accepts on a published port before the app listens.
    """
    import socket

    try:
        socket.create_connection((address, port), seconds).close()
    except OSError:
        return False
    return True


def ran(words: Sequence[str], seconds: float, container: AskedContainer) -> Try:
    """Run a command in the container; it passes if it ends with status 0 within these seconds."""
    deadline = time.monotonic() + seconds
    printed = b""
    try:
        made = container.api.exec_create(container.id, list(words))["Id"]
        stream = container.api.exec_start(made, socket=True, demux=False)
        with contextlib.closing(stream):
            printed = _printed(stream, deadline)
        about = container.api.exec_inspect(made)
    except _AWAY as error:
        return Try(False, Answer("", 0, said=str(error).encode()[:_PRINTED_BYTES]))
    status = None if about["Running"] else about["ExitCode"]
    if status == 0:
        return Try(True)
    return Try(False, Answer("", status or 0, said=printed[-_PRINTED_BYTES:]), goes_on=status is None)


def _printed(stream: Any, deadline: float) -> bytes:
    """The end of what a command prints until it ends, or its time does (Docker Engine API, "Stream format")."""
    connection = getattr(stream, "_sock", stream)
    raw = b""
    printed = b""
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            piece = connection.recv(_PIECE_BYTES)
            if not piece:
                break
            raw += piece
            while len(raw) >= 8 and len(raw) >= 8 + (length := int.from_bytes(raw[4:8], "big")):
                printed = (printed + raw[8 : 8 + length])[-_PIECE_BYTES:]
                raw = raw[8 + length :]
    except OSError:
        pass
    return printed


def _asked(check: Check, watched: Watched, container: AskedContainer) -> Try:
    """Ask for a path over HTTP, as a visitor of the app does."""
    port = check.port or watched.port
    where = f"{container.address}:{port}"
    deadline = time.monotonic() + check.timeout
    connection: http.client.HTTPConnection
    if check.scheme == "https":
        connection = http.client.HTTPSConnection(
            container.address, port, timeout=check.timeout, context=_ANY_CERTIFICATE()
        )
    else:
        connection = http.client.HTTPConnection(container.address, port, timeout=check.timeout)
    status, body, error = 0, b"", b""
    try:
        connection.connect()
        _send(connection, check, watched, where)
        reply = connection.getresponse()
        status = reply.status
        wanted = check.content.encode()
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if connection.sock:
                connection.sock.settimeout(left)
            piece = reply.read1(_PIECE_BYTES)
            if not piece:
                error = b"the answer was cut off" if reply.length else b""
                break
            body = (body + piece)[:_MOST_BODY_BYTES]
            if wanted and (wanted in body or len(body) >= _MOST_BODY_BYTES):
                break
    except TimeoutError:
        error = f"timed out after {check.timeout} s".encode()
    except ConnectionRefusedError:
        error = f"Failed to connect to {container.address} port {port}: Connection refused".encode()
    except (OSError, http.client.HTTPException, ValueError) as failed:
        error = f"{getattr(failed, 'strerror', '') or failed or type(failed).__name__}".encode()
    finally:
        connection.close()
    is_good = 200 <= status < 400
    if is_good and ((check.content.encode() in body) if check.content else not error):
        return Try(True)
    return Try(False, Answer(where, status, error, _first_line(body)))


def _send(connection: http.client.HTTPConnection, check: Check, watched: Watched, where: str) -> None:
    path = quote(check.path.partition("#")[0], safe="/?&=%:@!$'()*+,;~")  # RFC 3986
    connection.putrequest("GET", path or "/", skip_host=True, skip_accept_encoding=True)
    headers = [*visitors_headers(check, watched.url), *check.http_headers]
    named = {each.name.lower() for each in headers}
    for name, value in (("Host", where), ("User-Agent", "nap"), ("Accept", "*/*")):
        if name.lower() not in named:
            connection.putheader(name, value)
    for each in headers:
        connection.putheader(each.name, each.value.encode())
    connection.endheaders()


def _first_line(body: bytes) -> bytes:
    lines = body[:_FIRST_BYTES].replace(b"\0", b"\n").split(b"\n")
    return next((line for line in lines if line.strip()), b"")[:_LINE_BYTES]


def sockets(pid: int, address: str) -> str | None:
    """Where the TCP sockets of a container listen (proc(5), /proc/PID/net/tcp): `00000000:1F90 …`.

    None where its first process is none of this machine's, which its addresses tell. The kernel lists sockets that
    listen first, so the beginning has them.
    """
    if f"|-- {address}\n" not in _beginning(f"/proc/{pid}/net/fib_trie"):
        return None
    found = set()
    for family in ("tcp", "tcp6"):
        for line in _beginning(f"/proc/{pid}/net/{family}").splitlines()[1:]:
            _, local, _, state, *_ = [*line.split(), "", "", "", ""]
            if state == "0A":
                found.add(local)
    return " ".join(sorted(found))


def waited_for_processor(pids: Sequence[int]) -> int | None:
    """Nanoseconds that the thread which waited longest for a processor has waited (the kernel's sched-stats.rst,
    /proc/PID/schedstat); None where that cannot be said."""
    longest = None
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 # bare names
                with contextlib.suppress(OSError, ValueError, IndexError):
                    waited = int(_beginning(f"/proc/{pid}/task/{thread}/schedstat").split()[1])
                    longest = max(longest or 0, waited)
    return longest


def _beginning(path: str) -> str:
    try:
        with open(path, "rb") as opened:  # noqa: PTH123
            return opened.read(_PIECE_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
