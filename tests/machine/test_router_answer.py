"""What the router leaves as it is: the app's answer, and what the app is asked."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread

from tests.machine.test_router import served
from tests.machine.test_router_change import app
from tests.nap import Nap
from tests.regulars import announced

__all__ = ["app"]

OWN = [
    b"Server: mine/1.0",
    b"Date: Sun, 06 Nov 1994 08:49:37 GMT",
    b"Vary: Accept",
    b"Vary: Cookie",
    b"X-Powered-By: me",
    b"Content-Length: 13",
]
"""Headers of an answer that a proxy may be tempted to change."""


@contextmanager
def answering(head: list[bytes], body: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """An app that answers every request so; its port, and the heads of requests that it got."""
    requests: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while asked := b"".join(itertools.takewhile(b"\r\n".__ne__, stream)):
                requests.append(asked)
                with suppress(BrokenPipeError):
                    stream.write(b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in head) + b"\r\n" + body)
                    stream.flush()

    def accept() -> None:
        with suppress(OSError):
            while True:
                Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], requests
        listener.shutdown(socket.SHUT_RDWR)


def raw(nap: Nap, name: str, *headers: str) -> tuple[list[bytes], bytes]:
    """The lines of the head of the answer, and its body, as they come."""
    router = nap.settings.router.http
    with socket.create_connection((router.host, router.port), 10) as connection:
        lines = ["GET / HTTP/1.1", f"Host: {name}", "Connection: close", *headers]
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def test_answer_arrives_as_the_app_gave_it(nap: Nap, app: str) -> None:
    name, page = f"{app}.localhost", b"<html>one\r\n\r\n"
    routers = {b"HTTP/1.1 200 OK", b"Connection: close"}
    with ExitStack() as stack:
        for head in (OWN, [*OWN, b"Content-Type: text/x-mine"], OWN[1:], [*OWN, b"Content-Encoding: gzip"]):
            port, _ = stack.enter_context(answering(head, page))
            announced(nap, app, [port])
            served(nap, name, 200)
            found, body = raw(nap, name)
            own = [line for line in found if line not in routers and not line.startswith(b"X-Request-Id: ")]
            assert (sorted(own), body) == (sorted(head), page)
    announced(nap, app, [])
    served(nap, name, 503)
    found, _ = raw(nap, name)
    assert not [line for line in found if line.startswith(b"Server:")]
    assert b"Content-Type: text/plain; charset=utf-8" in found


def test_app_is_asked_for_no_encoding_that_the_visitor_did_not_ask_for(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with answering(OWN, b"<html>one\r\n\r\n") as (port, requests):
        announced(nap, app, [port])
        served(nap, name, 200)
        for headers in ([], ["Accept-Encoding: br;q=0.5"]):
            raw(nap, name, *headers)
            asked = requests[-1].decode().splitlines()
            assert [line for line in asked if line.startswith("Accept-Encoding")] == headers
            assert not [line for line in asked if line.startswith("User-Agent")]
