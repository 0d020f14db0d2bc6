"""The URL that a check names is called when the check has failed, where its address is public."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import Networks
from nap_receiver.deploy.on_failure import call_url
from nap_receiver.model.health import Check, OnFailure

LOOPBACK = Networks("127.0.0.0/8").networks


class Called(BaseHTTPRequestHandler):
    """Keeps what is posted to `/hook`, and knows nothing else."""

    bodies: list[object]

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204 if self.path == "/hook" else 404)
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:
        pass


@contextmanager
def serving(bodies: list[object]) -> Iterator[str]:
    handler = type("Handler", (Called,), {"bodies": bodies})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "is_allowed", "said", "calls"),
    [
        ("/hook", True, "", 1),
        ("/none", True, "the check's onFailure.url was not called: HTTP Error 404: Not Found", 1),
        ("/hook", False, "the check's onFailure.url was not called: 127.0.0.1 is an address of the nap machine", 0),
    ],
)
def test_who_is_told_of_a_failed_check(tmp_path: Path, path: str, is_allowed: bool, said: str, calls: int) -> None:
    bodies: list[object] = []
    out = tmp_path / "out"
    with serving(bodies) as url, out.open("w") as file, Channel(file.fileno()) as channel:
        check = Check(name="up", path="/", on_failure=OnFailure(url=f"{url}{path}"))
        call_url(check, "shop v1 web.1: its check failed", LOOPBACK if is_allowed else (), channel)
        call_url(Check(path="/"), "a check without a URL", LOOPBACK, channel)
    assert bodies == [{"healthcheck_name": "up", "errors": ["shop v1 web.1: its check failed"]}] * calls
    assert said in out.read_text()
    assert bool(out.read_text()) == bool(said)
