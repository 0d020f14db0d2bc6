"""People who ask an app through the router over connections that they keep, at a steady rate, and never twice."""

import http.client
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.nap import Nap

CONNECTIONS, PER_SECOND = 10, 200
LATE = "over a connection that was kept"

BUSY_SECONDS = 0.2
"""No answer takes as long where programs get their turn: some milliseconds are usual, also at a change."""


@dataclass
class Asked:
    """How it went."""

    answered: int = 0
    connections: int = 0
    failed: list[str] = field(default_factory=list)
    """When and how, one entry each."""
    longest: float = 0.0
    """The seconds of the answer that took longest."""

    @property
    def excuse(self) -> bool:
        """Whether all that failed came too late over a connection that was kept, and that is one, or one of a hundred.

        Who gets no turn for long, as on a busy machine, finds its connection closed in the very moment of asking. Where
        an answer took so long that the machine must be busy, that is one of ten at most.
        """
        most = max(1.0, self.answered / (10 if self.longest > BUSY_SECONDS else 100))
        return all(LATE in each for each in self.failed) and len(self.failed) <= most


@contextmanager
def regulars(
    nap: Nap, name: str, per_second: int = PER_SECOND, method: str = "GET", wanted: int = http.client.OK
) -> Iterator[Asked]:
    """Ask `name` for the block, and expect that status. Who finds the connection closed opens another; a request that
    fails stays failed."""
    asked, over, lock = Asked(), threading.Event(), threading.Lock()
    router = nap.settings.router.http
    interval = CONNECTIONS / per_second

    def ask(connection: http.client.HTTPConnection) -> str:
        connection.request(method, "/", b"x" if method == "POST" else None, {"Host": name})
        reply = connection.getresponse()
        reply.read()
        return "" if reply.status == wanted else str(reply.status)

    def come_and_go(number: int) -> None:
        connection = http.client.HTTPConnection(router.host, router.port, timeout=20)
        due = time.monotonic() + number * interval / CONNECTIONS
        while not over.wait(max(0.0, due - time.monotonic())):
            due = max(due + interval, time.monotonic() - interval)
            started = time.monotonic()
            if connection.sock and select.select([connection.sock], [], [], 0)[0]:
                connection.close()
            is_new = connection.sock is None
            try:
                trouble = ask(connection)
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{error!r} {'over a new connection' if is_new else LATE}"
                connection.close()
            with lock:
                asked.connections += is_new
                asked.answered += not trouble
                asked.longest = max(asked.longest, time.monotonic() - started)
                if trouble:
                    asked.failed.append(f"{time.strftime('%X')} {trouble}")
        connection.close()

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        over.set()
        for thread in threads:
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Instance"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/crash":
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.says)))
        self.end_headers()
        self.wfile.write(self.server.says.encode())

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Instance(ThreadingHTTPServer):
    """Answers as an instance of an app would; it ends the connection when it is asked for `/crash`."""

    request_queue_size = 128
    block_on_close = False

    def __init__(self, says: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.says = says
        self.requests: list[str] = []
        """The path of each request."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def instance(says: str = "here") -> Iterator[Instance]:
    """Such an instance, for the block."""
    server = Instance(says)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def announced(nap: Nap, app: str, ports: Sequence[int], **facts: object) -> None:
    """Have etcd say that instances of `app`, of which these facts are told, answer at these ports, and nowhere else."""
    wanted = {
        f"/services/{app}/v1.web.{index}": {"host": "127.0.0.1", "port": port, **facts}
        for index, port in enumerate(ports)
    }
    etcd = nap.etcd()
    try:
        there = {entry.key for entry in etcd.below(f"/services/{app}/").entries}
        etcd.write({f"/nap/access/{app}": {"repository": app, "users": {}}, **dict.fromkeys(there), **wanted})
    finally:
        etcd.close()
