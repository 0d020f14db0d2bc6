"""One try of a check: what passes, and what is told of one that fails."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from nap_receiver.agent.tries import AskedContainer, is_open, sockets, tried, waited_for_processor
from nap_receiver.model.health import Check, Header
from nap_receiver.store.assignments import Watched

HELLO = Watched("hello", 3, "web", "web.1", 8080, url="http://hello.example.org:8080")


class App(BaseHTTPRequestHandler):
    """Answers as its path says, and notes what it was asked."""

    asked: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers.items())))
        if self.path == "/slow":
            time.sleep(2)
        status = int(self.path[1:4]) if self.path[1:4].isdecimal() else 200
        body = b"\n\0 \nfirst line\nsecond line\n" + (b"x" * (2 << 20) if self.path == "/large" else b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (100 if self.path == "/cut" else 0)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:  # who asked has seen enough
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def app() -> Iterator[int]:
    """The port of an app."""
    App.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


CONTAINER = AskedContainer("26ed77", "127.0.0.1", None)


def asked(port: int, path: str, **more: Any) -> tuple[bool, int, bytes, bytes]:
    """Whether a check of this path passes; what it was answered: status, error, first line."""
    result = tried(Check(path=path, port=port, timeout=more.pop("timeout", 5), **more), HELLO, CONTAINER)
    answer = result.answer
    return (result.passed, *((answer.status, answer.error, answer.said) if answer else (0, b"", b"")))


@pytest.mark.parametrize(
    ("path", "passes"), [("/", True), ("/204", True), ("/302", True), ("/404", False), ("/500", False)]
)
def test_a_path_passes_by_its_status(app: int, path: str, passes: bool) -> None:
    passed, status, error, said = asked(app, path)
    assert passed == passes
    if not passes:
        assert (status, error, said) == (int(path[1:]), b"", b"first line")


def test_what_must_be_in_the_answer(app: int) -> None:
    assert asked(app, "/", content="line\nsecond")[0]
    assert asked(app, "/", content="third") == (False, 200, b"", b"first line")
    assert not asked(app, "/404", content="first")[0]


def test_no_more_than_the_first_mebibyte_is_looked_at(app: int) -> None:
    assert asked(app, "/large", content="first line")[0]
    assert not asked(app, "/large", content="nothing of this")[0]
    assert asked(app, "/large")[0]


def test_an_answer_that_is_cut_off_does_not_pass(app: int) -> None:
    passed, status, error, _ = asked(app, "/cut", timeout=1)
    assert (passed, status) == (False, 200)
    assert error


def test_an_answer_that_comes_too_late(app: int) -> None:
    began = time.monotonic()
    assert asked(app, "/slow", timeout=1)[:3] == (False, 0, b"timed out after 1 s")
    assert time.monotonic() - began < 1.9


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert is_open("127.0.0.1", port, 1)
        assert tried(Check(listening=True, port=port), HELLO, CONTAINER).passed
    assert not is_open("127.0.0.1", port, 1)
    assert not tried(Check(listening=True, port=port), HELLO, CONTAINER).passed
    error = f"Failed to connect to 127.0.0.1 port {port}: Connection refused".encode()
    assert asked(port, "/") == (False, 0, error, b"")


def test_a_path_is_asked_as_a_visitor_does(app: int) -> None:
    odd = 'it\'s "quoted" \\ é'
    assert asked(app, "/a b?c=d%20e#f", http_headers=[Header("X-Odd", odd), Header("Accept", "text/html")])[0]
    ((path, headers),) = App.asked
    assert path == "/a%20b?c=d%20e"
    assert headers["Host"] == "hello.example.org:8080"
    assert headers["X-Forwarded-Proto"] == "http"
    assert headers["X-Odd"].encode("latin-1").decode() == odd
    assert headers["Accept"] == "text/html"


def test_where_this_process_listens_is_seen() -> None:
    pid = os.getpid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        seen = sockets(pid, "127.0.0.1")
    assert seen is not None
    assert f"0100007F:{port:04X}" in seen.split()
    assert sockets(pid, "192.0.2.1") is None, "no address of that process"


def test_how_long_this_process_has_waited_for_a_processor() -> None:
    pid = os.getpid()
    waited = waited_for_processor([pid])
    assert waited is not None
    assert waited > 0
    assert waited_for_processor([]) is None
