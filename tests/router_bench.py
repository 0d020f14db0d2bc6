"""What the router costs, and how it takes change and failure, each beside the same without it. `make bench`."""

import asyncio
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nap_receiver.core.installed import path_of
from tests.conftest import free_address, fresh_nap
from tests.machine.test_router_change import echo, websocket
from tests.machine.test_router_kept import change_often, closed, kept
from tests.nap import HTTPD, Nap, Pusher, end_in_order, eventually
from tests.regulars import Asked, announced, instance, regulars

APPS, INSTANCES = 1000, 3
CHANGES = 20
RELOADS = 300
IDLE, IDLE_CHANGES = 400, 100
"""With as many files open as a process may have usually: 1,024."""
ROUNDS, SECONDS, CONNECTIONS = 5, 2, 16
PACE = 500
"""Requests a second when it is measured how long one takes."""

BY_HAND = "through Caddy by hand, with a log and ids"

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"

LOG = """\
    log {{
        output file {}
        format filter {{
            wrap json
            fields {{
                request>headers delete
                request>tls delete
                resp_headers>Set-Cookie delete
                resp_headers>Location delete
            }}
        }}
    }}
    request_header X-Request-Id {{http.request.uuid}}
    header >X-Request-Id {{http.request.uuid}}
"""


def main() -> None:
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    nap = fresh_nap(folder / "state")
    try:
        nap.run("up")
        nap.import_busybox()
        print_changes("a change, to its first answer", changes(nap))
        throughput(nap, folder)
        kept_connections(nap)
        idle_connections(nap)
        websockets(nap)
        (folder / "pusher").mkdir()
        pusher = Pusher(nap, "bench", folder / "pusher")
        redeploys(pusher)
        many_apps(nap)
    finally:
        nap.run("down")
        shutil.rmtree(folder)


def print_changes(what: str, found: Sequence[tuple[float, float]]) -> None:
    first, all_of = ([each[at] * 1000 for each in found] for at in (0, 1))
    print(
        f"{what}: median {statistics.median(first):.0f} ms, most {max(first):.0f}; "
        f"to its last answer as before: median {statistics.median(all_of):.0f}, most {max(all_of):.0f}"
    )


def changes(nap: Nap) -> list[tuple[float, float]]:
    """The seconds from each announcement in etcd to the first answer from there, and to the last from elsewhere."""
    found = []
    with instance("0") as one, instance("1") as two:
        announced(nap, "moves", [one.server_port])
        eventually(lambda: said(nap, "moves.localhost") == "0", 10, "it is routed")
        etcd = nap.etcd()
        for number in range(CHANGES):
            time.sleep(0.3)  # apart from the one before
            to = (number + 1) % 2
            began = time.monotonic()
            etcd.put("/services/moves/v1.web.0", {"host": "127.0.0.1", "port": (one, two)[to].server_port})
            first, last = 0.0, 0.0
            while (passed := time.monotonic() - began) < 0.4 + last and passed < 10:
                now = said(nap, "moves.localhost")
                if now == str(to):
                    first = first or time.monotonic() - began
                else:
                    last = time.monotonic() - began
            found.append((first, last))
        etcd.close()
    return found


def said(nap: Nap, name: str) -> str:
    """What `name` answers now to whoever comes anew."""
    router = nap.settings.router.http
    connection = http.client.HTTPConnection(router.host, router.port, timeout=10)
    try:
        connection.request("GET", "/", headers={"Host": name})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def many_apps(nap: Nap) -> None:
    """The same with many other apps, and how long a router that starts takes to have all in force."""
    etcd = nap.etcd()
    for number in range(APPS):
        value = {"host": "127.0.0.1", "port": 1024 + number}
        keys: dict[str, object] = {f"/services/many-{number}/v1.web.{index}": value for index in range(INSTANCES)}
        etcd.write(keys | {f"/nap/access/many-{number}": {"repository": "", "users": {}}})
    etcd.close()
    what = f"{APPS:,} apps of {INSTANCES} instances"
    eventually(lambda: said(nap, f"many-{APPS - 1}.localhost") != "No app has this domain.\n", 60, "all are there")
    print_changes(f"{what}: a change of one", changes(nap))
    nap.supervisor.call("stopProcess", "router")
    announced(nap, "last", [1])
    started = time.monotonic()
    nap.supervisor.call("startProcess", "router", False)
    eventually(lambda: "No app" not in said(nap, "last.localhost"), 60, "all are in force")
    print(f"{what}: the router's start, to all in force: {time.monotonic() - started:.2f} s")


def kept_connections(nap: Nap) -> None:
    """Visitors with connections of their own, while routes change all the time."""
    with instance() as one, instance() as two:
        announced(nap, "kept", [one.server_port, two.server_port])
        eventually(lambda: said(nap, "kept.localhost") == "here", 10, "it is routed")
        time.sleep(0.2)  # no more by the routes before
        etcd = nap.etcd()
        with regulars(nap, "kept.localhost") as asked:
            for number in range(RELOADS):
                etcd.put("/services/moves/v1.web.0", {"host": "127.0.0.1", "port": 1024 + number})
                time.sleep(0.1)
        etcd.close()
    print_asked(f"{RELOADS} changes, one each 100 ms", asked)


def idle_connections(nap: Nap) -> None:
    """How many connections on which nothing is asked are closed by changes of another app."""
    with instance() as one:
        announced(nap, "idle", [one.server_port])
        eventually(lambda: said(nap, "idle.localhost") == "here", 10, "it is routed")
        with kept(nap, "idle.localhost", IDLE) as connections:
            began = time.monotonic()
            change_often(nap, ["moves"], IDLE_CHANGES)
            seconds = (time.monotonic() - began) / IDLE_CHANGES
            found = closed(connections)
    print(f"{IDLE} idle connections, {IDLE_CHANGES} changes of {seconds * 1000:.0f} ms each: {found} closed")


def print_asked(what: str, asked: Asked) -> None:
    print(
        f"{what}: {asked.answered} requests at 200 a second over 10 connections answered, {len(asked.failed)} failed, "
        f"the slowest took {asked.longest * 1000:.0f} ms {asked.failed[:5] or ''}"
    )


def websockets(nap: Nap) -> None:
    """How many stay open when another app changes."""
    stay = 0
    with echo() as port:
        announced(nap, "sockets", [port])
        eventually(lambda: said(nap, "sockets.localhost") == "", 10, "it is routed")
        for number in range(10):
            time.sleep(0.2)
            with websocket(nap, "sockets.localhost") as (say, heard):
                announced(nap, "moves", [1024 + number])
                time.sleep(0.2)
                try:
                    say(b"there?")
                    stay += heard() == b"there?"
                except OSError:
                    pass
    print(f"WebSockets that stay open over a change of another app: {stay} of 10")


def redeploys(pusher: Pusher) -> None:
    """20 redeploys and 10 scalings of an app of four instances, then instances that are killed, and that freeze."""
    nap = pusher.nap

    def scale(count: int) -> None:
        done = pusher.ssh_command("ps:scale", pusher.app, f"web={count}")
        assert done.returncode == 0, done.stdout

    def deploy(page: str) -> None:
        pusher.commit(index_html=page)
        pushed = pusher.push()
        assert pushed.status == 0, pushed.text

    pusher.commit(Dockerfile=HTTPD)
    deploy("0")
    scale(4)
    name = f"{pusher.app}.localhost"
    with regulars(nap, name) as asked:
        for number in range(20):
            deploy(str(number))
        for count in (3, 2, 4, 5, 4) * 2:
            scale(count)
    print_asked("20 redeploys and 10 scalings", asked)
    acts: dict[str, Callable[[str], object]] = {
        "killed": lambda container: nap.docker("kill", container),
        "frozen for 2 s": lambda container: freeze(nap, container),
    }
    for what, act in acts.items():
        for method in ("GET", "POST"):
            eventually(lambda: len(nap.keys(f"/services/{pusher.app}/")) == 4, 30, "all four answer")
            eventually(lambda: len(nap.containers(pusher.app)) == 4, 30, "and no others")
            wanted = {"GET": 200, "POST": 501}[method]  # httpd takes no POST
            with regulars(nap, name, method=method, wanted=wanted) as asked:
                act(nap.containers(pusher.app)[0])
                time.sleep(3)
            print_asked(f"one of four instances {what}, {method}", asked)


def freeze(nap: Nap, container: str) -> None:
    """It accepts connections for 2 s, and answers none."""
    init = int(nap.docker("inspect", "--format", "{{.State.Pid}}", container))
    httpd = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    os.kill(httpd, signal.SIGSTOP)
    time.sleep(2)
    os.kill(httpd, signal.SIGCONT)


def throughput(nap: Nap, folder: Path) -> None:
    """Requests a second, and how long one takes, of the same upstreams: direct, through nap, through another Caddy."""
    addresses = [free_address() for _ in range(4)]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    upstreams = subprocess.Popen([sys.executable, __file__, *map(str, ports)])
    announced(nap, "speed", ports)
    proxy = f"    reverse_proxy {' '.join(addresses)} {{\n        lb_policy least_conn\n    }}\n"
    try:
        with caddy(folder / "bare", proxy) as bare, caddy(folder / "same", LOG.format(folder / "log") + proxy) as same:
            eventually(lambda: said(nap, "speed.localhost") == "hello\n", 10, "it is routed")
            of = {
                "direct": addresses[0],
                "through nap": str(nap.settings.router.http),
                BY_HAND: same,
                "through Caddy by hand, with neither": bare,
            }
            tool = shutil.which("wrk")
            loads: dict[str, list[float]] = {what: [] for what in of}
            tails: dict[str, list[float]] = {what: [] for what in of}
            for _ in range(ROUNDS):
                for what, address in of.items():
                    loads[what].append(by_wrk(tool, address) if tool else len(asyncio.run(load(address, 0))) / SECONDS)
                    tails[what].append(statistics.quantiles(asyncio.run(load(address, PACE)), n=100)[98] * 1000)
            assert (folder / "log").stat().st_size, "both logged"
    finally:
        upstreams.terminate()
        upstreams.wait()
    how = "by wrk" if tool else "by a client in Python, which is the slowest part: wrk is not installed"
    print(f"requests over {CONNECTIONS} connections, median of {ROUNDS}, in turn, {how}")
    for what in of:
        rate, tail = statistics.median(loads[what]), statistics.median(tails[what])
        apart = rate / statistics.median(loads[BY_HAND]) - 1
        print(f"{what:42}{rate:8.0f} a second ({apart:+.1%}); at {PACE} a second, 99 of 100 within {tail:.2f} ms")


@contextmanager
def caddy(folder: Path, site: str) -> Iterator[str]:
    """A Caddy with this in its Caddyfile; its address."""
    folder.mkdir()
    address = free_address()
    names = f"http://{address}, http://speed.localhost:{address.rpartition(':')[2]}"
    (folder / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{names} {{\n{site}}}\n")
    process = subprocess.Popen(
        [path_of("caddy"), "run", "--config", str(folder / "Caddyfile")],
        env=os.environ | {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    host, _, port = address.rpartition(":")
    eventually(lambda: socket.socket().connect_ex((host, int(port))) == 0, 10, "it listens")
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def host_at(address: str) -> str:
    """How a visitor calls it. With the port, without which a Caddyfile's log of the site leaves the request out."""
    return f"speed.localhost:{address.rpartition(':')[2]}"


def by_wrk(tool: str, address: str) -> float:
    """Requests a second that wrk gets answered."""
    words = [tool, "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}", "-H", f"Host: {host_at(address)}", f"http://{address}/"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])


async def load(address: str, per_second: int) -> list[float]:
    """The seconds of each answer; as fast as they come where `per_second` is 0."""
    host, _, port = address.rpartition(":")
    request = f"GET / HTTP/1.1\r\nHost: {host_at(address)}\r\n\r\n".encode()
    took: list[float] = []
    end = time.monotonic() + SECONDS
    interval = CONNECTIONS / per_second if per_second else 0

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        due = time.monotonic() + number * interval / CONNECTIONS
        while (now := time.monotonic()) < end:
            if interval:
                await asyncio.sleep(due - now)
                due += interval
            began = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(6)
            took.append(time.monotonic() - began)
        writer.close()

    await asyncio.gather(*(ask(number) for number in range(CONNECTIONS)))
    return took


class Upstream(asyncio.Protocol):
    """Says hello to each request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def serve(ports: Sequence[int]) -> None:
    """Be the upstreams at these ports, until ended."""
    for port in ports:
        await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1000)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(serve([int(word) for word in sys.argv[1:]]))
    else:
        main()
