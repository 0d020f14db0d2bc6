"""The router under change and failure: what is asked meanwhile is answered, and what was missed is taken up."""

import base64
import contextlib
import hashlib
import http.client
import ipaddress
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nap_receiver.core.installed import script
from nap_receiver.routing.caddy_configuration import inner_socket, leads_to, told_last
from nap_receiver.store.etcd import EtcdAway
from tests.conftest import free_address, fresh_nap
from tests.fleet_apps import named_after, pushed
from tests.machine.test_router import ask, own, served
from tests.nap import HTTPD, ROOT, Nap, Pusher, eventually, runs, throughout
from tests.regulars import announced, instance, regulars

LONG = "#!/bin/sh\nsleep 0.8\nprintf 'Content-Type: text/plain\\n\\nat last'\n"
EVENTS = (
    "#!/bin/sh\nprintf 'Content-Type: text/event-stream\\n\\n'\nwhile sleep 0.1; do echo 'data: tick'; echo; done\n"
)
CGI = HTTPD.replace("EXPOSE", "RUN chmod +x /www/cgi-bin/*\nEXPOSE")


@pytest.fixture
def app(nap: Nap, request: pytest.FixtureRequest) -> Iterator[str]:
    """An app that is nothing but keys in etcd, named after the test; they are gone afterwards."""
    name = named_after(request)
    yield name
    etcd = nap.etcd()
    etcd.write(dict.fromkeys([f"/nap/access/{name}", *nap.keys(f"/services/{name}/")]))
    etcd.close()


def scripted(pusher: Pusher) -> None:
    """Push an app that takes its time, and one page that never ends."""
    (pusher.repository / "cgi-bin").mkdir()
    (pusher.repository / "cgi-bin" / "long").write_text(LONG)
    (pusher.repository / "cgi-bin" / "events").write_text(EVENTS)
    pusher.commit(Dockerfile=CGI, index_html="one")
    pushed(pusher)
    served(pusher.nap, own(pusher), 200, "one")


@contextmanager
def visit(nap: Nap, name: str, path: str) -> Iterator[http.client.HTTPResponse]:
    """The answer to a visitor, as it comes."""
    router = nap.settings.router.http
    connection = http.client.HTTPConnection(router.host, router.port, timeout=30)
    connection.request("GET", path, headers={"Host": name})
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def put(nap: Nap, key: str, value: bytes) -> None:
    """Write `value` as it is."""
    subprocess.run(
        ["etcdctl", "put", key],
        env=os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": nap.settings.etcd.url},
        input=value,
        check=True,
        capture_output=True,
    )


@contextmanager
def stopped(nap: Nap, program: str) -> Iterator[None]:
    """One of nap's programs does not run for the block."""
    nap.supervisor.call("stopProcess", program)
    try:
        yield
    finally:
        nap.supervisor.call("startProcess", program, False)


def kill(nap: Nap, program: str) -> None:
    """End it without warning; another is there, and answers."""
    before = nap.process(program)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: nap.process(program) not in (0, before), 10, f"{program} runs")
    eventually(lambda: nap.answers(program), 10, f"{program} answers")


def says(nap: Nap, name: str, text: str) -> bool:
    try:
        return ask(nap, name)[1] == text
    except (OSError, http.client.HTTPException):
        return False


def test_who_connects_when_routes_change_is_not_cut_off(nap: Nap, app: str) -> None:
    name, router = f"{app}.localhost", nap.settings.router.http
    with instance("one") as one, instance("two") as two, contextlib.ExitStack() as stack:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        announced(nap, app, [two.server_port])
        eventually(partial(says, nap, name, "two"), 5, "the routes before the change go at this moment")
        caddy = nap.process("caddy")
        os.kill(caddy, signal.SIGSTOP)
        try:
            visitors = [socket.create_connection((router.host, router.port), 10) for _ in range(64)]
            for visitor in visitors:
                stack.enter_context(visitor)
                visitor.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            assert select.select(visitors, [], [], 0.2)[0] == []
        finally:
            os.kill(caddy, signal.SIGCONT)
        assert {visitor.makefile("rb").read()[-3:] for visitor in visitors} <= {b"one", b"two"}


def is_led_to(nap: Nap, app: str, port: int) -> bool:
    """Whether the router has said that the app's visitors are led to this port, and no other."""
    return leads_to(nap.state, app) == {f"127.0.0.1:{port}"}


def test_change_is_in_force_for_everybody_at_once(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance("one") as one, instance("two") as two:
        for number in range(10):
            port, answers = (one, two)[number % 2].server_port, ["one", "two"][number % 2]
            announced(nap, app, [port])
            eventually(partial(is_led_to, nap, app, port), 5, "it is in force")
            assert {ask(nap, name)[1] for _ in range(30)} == {answers}


def test_redeploys_and_scalings_fail_no_request(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pushed(pusher)
    assert pusher.ssh_command("ps:scale", pusher.app, "web=4").returncode == 0
    served(nap, own(pusher), 200)
    with regulars(nap, own(pusher)) as asked:
        for number in range(2):
            pusher.commit(index_html=f"again {number}")
            pushed(pusher)
        for count in (2, 4):
            assert pusher.ssh_command("ps:scale", pusher.app, f"web={count}").returncode == 0
    assert asked.answered > 200
    assert not asked.failed
    served(nap, own(pusher), 200, "again 1")


def test_whoever_asks_after_a_change_gets_what_it_made(nap: Nap, pusher: Pusher) -> None:
    for number in range(5):
        pusher.commit(Dockerfile=HTTPD, index_html=str(number))
        pushed(pusher)
        assert ask(nap, own(pusher))[:2] == (200, str(number))
    for command, status in (("ps:stop", 503), ("ps:start", 200), ("ps:restart", 200), ("rollback", 200)):
        assert pusher.ssh_command(command, pusher.app).returncode == 0
        assert ask(nap, own(pusher))[0] == status, command
    assert ask(nap, own(pusher))[1] == "3"


def test_change_says_that_the_router_does_not_take_it_up(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    router = nap.process("router")
    os.kill(router, signal.SIGSTOP)
    try:
        said = pushed(pusher).lines
    finally:
        os.kill(router, signal.SIGCONT)
    wanted = f" !     {pusher.app}: the router did not apply this within 2 s; `nap status` shows what is down"
    assert wanted in said
    served(nap, own(pusher), 200, "one")


def test_old_instance_is_not_stopped_while_visitors_are_led_to_it(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=runs("trap exit TERM; httpd -f -p 8080 -h /etc & wait"))
    pushed(pusher)
    router, before = nap.process("router"), pusher.announcements()
    os.kill(router, signal.SIGSTOP)
    try:
        restart = subprocess.Popen(pusher.ssh_words("ps:restart", pusher.app), stdout=subprocess.DEVNULL)
        eventually(lambda: len(now := pusher.announcements()) == 1 and now != before, 30, "the old one is withdrawn")
        # It would be told to stop within the second that it drains, and the deploy waits two for the router.
        throughout(lambda: ask(nap, own(pusher), "/hostname")[0] == 200, 1.6, "the old one answers")
    finally:
        os.kill(router, signal.SIGCONT)
    assert restart.wait(timeout=30) == 0
    eventually(lambda: len(nap.containers(pusher.app)) == 1, 10, "then it is stopped")


def test_what_takes_long_is_finished_by_the_instance_that_began_it(nap: Nap, pusher: Pusher) -> None:
    scripted(pusher)
    with visit(nap, own(pusher), "/cgi-bin/events") as events, instance() as other:
        assert events.readline() == b"data: tick\n"
        announced(nap, f"{pusher.app}-other", [other.server_port])
        served(nap, f"{pusher.app}-other.localhost", 200)
        assert [events.readline() for _ in range(4)] == [b"\n", b"data: tick\n"] * 2, "another app's change"
        announced(nap, f"{pusher.app}-other", [])
        answers: list[bytes] = []

        def wait_long() -> None:
            with visit(nap, own(pusher), "/cgi-bin/long") as reply:
                answers.append(reply.read())

        pusher.commit(index_html="two")
        push = pusher.start_push()
        eventually(lambda: ask(nap, own(pusher))[1] == "two", 30, "the new one answers")
        waits = threading.Thread(target=wait_long)
        waits.start()
        push.communicate(timeout=30)
        waits.join()
        assert answers == [b"at last"]
        ticks = events.read()
    assert ticks.count(b"tick") > 5, "until its instance ended"


def test_websocket_passes(nap: Nap, app: str) -> None:
    with echo() as port:
        announced(nap, app, [port])
        served(nap, f"{app}.localhost", 400)
        with websocket(nap, f"{app}.localhost") as (say, heard):
            for word in (b"hello", b"again"):
                say(word)
                assert heard() == word


def test_websocket_stays_open_while_routes_change(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with echo() as port, instance() as other:
        announced(nap, app, [port])
        served(nap, name, 400)
        with websocket(nap, name) as (say, heard):
            for number in range(5):
                announced(nap, f"{app}-other", [other.server_port] if number % 2 else [])
                say(b"%d" % number)
                assert heard() == b"%d" % number
            announced(nap, app, [other.server_port])
            served(nap, name, 200)
            say(b"its own")
            assert heard() == b"its own"


def test_request_goes_to_an_instance_that_takes_it(nap: Nap, app: str) -> None:
    nobody = int(free_address().rpartition(":")[2])
    with instance() as one, instance() as two:
        announced(nap, app, [nobody, one.server_port, two.server_port])
        served(nap, f"{app}.localhost", 200)
        with regulars(nap, f"{app}.localhost") as gets:
            eventually(lambda: gets.answered > 200, 10, "many have asked")
        assert not gets.failed
        one.requests.clear()
        two.requests.clear()
        router = nap.settings.router.http
        connection = http.client.HTTPConnection(router.host, router.port, timeout=10)
        connection.request("POST", "/crash", b"once", {"Host": f"{app}.localhost"})
        assert connection.getresponse().status == 502
        connection.close()
        assert one.requests + two.requests == ["/crash"], "not sent twice"


def test_instance_on_a_machine_that_is_gone_is_passed_over(nap: Nap, app: str) -> None:
    subnet = nap.docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}")
    nobody = str(ipaddress.ip_network(subnet)[-2])
    with instance() as there:
        announced(nap, app, [there.server_port])
        etcd = nap.etcd()
        etcd.put(f"/services/{app}/v1.web.9", {"host": nobody, "port": 80})
        etcd.close()
        served(nap, f"{app}.localhost", 200)
        assert [ask(nap, f"{app}.localhost")[0] for _ in range(20)] == [200] * 20, "one visitor alone"
        with regulars(nap, f"{app}.localhost", 20) as gets:
            eventually(lambda: gets.answered > 60, 20, "many have asked")
        assert not gets.failed
        assert gets.longest < 2


def test_request_that_ends_an_instance_is_not_carried_to_the_next(nap: Nap, app: str) -> None:
    with instance() as one, instance() as two, instance() as three, instance() as four:
        all_four = [one, two, three, four]
        announced(nap, app, [each.server_port for each in all_four])
        served(nap, f"{app}.localhost", 200)
        assert ask(nap, f"{app}.localhost", "/crash")[0] == 502
        assert sum("/crash" in each.requests for each in all_four) == 1


def test_killed_instance_is_missed_by_nobody(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pushed(pusher)
    assert pusher.ssh_command("ps:scale", pusher.app, "web=3").returncode == 0
    served(nap, own(pusher), 200)
    eventually(lambda: len(nap.containers(pusher.app)) == 3, 20, "the old one is gone")
    killed = nap.containers(pusher.app)[0]
    key = killed.replace(f"{pusher.app}.", f"/services/{pusher.app}/", 1).removesuffix(f".{nap.state.name}")
    there = pusher.announcements()[key]
    with regulars(nap, own(pusher)) as asked:
        eventually(lambda: asked.answered > 50, 10, "it is asked")
        nap.docker("kill", killed)
        eventually(lambda: pusher.announcements().get(key) != there, 10, "withdrawn")
        so_far = asked.answered
        eventually(lambda: asked.answered > so_far + 100, 10, "and the others asked instead")
    assert len(asked.failed) <= 5, asked.failed  # what it had begun, and until it is left alone
    assert asked.longest < 5


def test_paused_instance_is_asked_no_more_until_it_goes_on(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pushed(pusher)
    assert pusher.ssh_command("ps:scale", pusher.app, "web=3").returncode == 0
    eventually(lambda: len(nap.containers(pusher.app)) == 3, 20, "the old one is gone")
    paused = nap.containers(pusher.app)[0]
    key = paused.replace(f"{pusher.app}.", f"/services/{pusher.app}/", 1).removesuffix(f".{nap.state.name}")
    there = pusher.announcements()[key]
    nap.docker("pause", paused)
    try:
        eventually(lambda: len(leads_to(nap.state, pusher.app)) == 2, 1, "it is out")
        assert key not in pusher.announcements()
        with regulars(nap, own(pusher)) as asked:
            eventually(lambda: asked.answered > 100, 10, "the others are asked")
        assert not asked.failed
        assert asked.longest < 1
    finally:
        nap.docker("unpause", paused)
    eventually(lambda: pusher.announcements().get(key) == there, 5, "announced again")


def test_bad_request_takes_no_app_off_the_web(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance() as only:
        announced(nap, app, [only.server_port])
        served(nap, name, 200)
        for _ in range(5):
            assert ask(nap, name, "/crash")[0] == 502
            assert ask(nap, name)[0] == 200
        with instance() as other:
            announced(nap, app, [only.server_port, other.server_port])
            eventually(lambda: ask(nap, name)[0] == 200 and other.requests, 5, "the other is asked too")
            assert ask(nap, name, "/crash")[0] == 502
            assert ask(nap, name)[0] == 200


def test_etcd_away_leaves_the_routes_and_is_taken_up_when_back(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance("one") as one, instance("two") as two:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        log = nap.state.program_logs / "router.log"
        said_before = len(log.read_text())
        with stopped(nap, "etcd"):
            away = f"etcd at {nap.settings.etcd.address} does not answer"
            eventually(lambda: away in log.read_text()[said_before:], 10, "the router has noticed")
            # Ten times a second it looks for etcd, and what it tells Caddy is so within a moment.
            throughout(lambda: ask(nap, name)[1] == "one", 1, "the routes are there")
        eventually(lambda: nap.answers("etcd"), 10, "etcd is back")
        announced(nap, app, [two.server_port])
        served(nap, name, 200, "two")


def test_router_away_leaves_the_routes_and_takes_up_what_it_missed(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance("one") as one, instance("two") as two:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        with stopped(nap, "router"):
            announced(nap, app, [two.server_port])
            kill(nap, "caddy")
            assert ask(nap, name)[1] == "one", "Caddy remembers"
        served(nap, name, 200, "two")
        kill(nap, "router")
        assert ask(nap, name)[1] == "two"


def test_request_waits_while_the_caddy_with_the_routes_starts_again(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance("one") as one:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        answers: list[tuple[int, str]] = []
        with stopped(nap, "caddy"):
            visitor = threading.Thread(target=lambda: answers.append(ask(nap, name)[:2]))
            visitor.start()
            throughout(lambda: not answers, 0.5, "ten times it was tried by then, and nobody is there")
        visitor.join()
        assert answers == [(200, "one")]


@pytest.mark.parametrize("program", ["caddy", "front"])
@pytest.mark.parametrize("garbage", ["half of it", "an address that is not here"])
def test_caddy_starts_whatever_it_has_kept(nap: Nap, app: str, program: str, garbage: str) -> None:
    name, kept = f"{app}.localhost", told_last(nap.state, program)
    with instance("one") as one:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        address = {"caddy": f'"unix/{inner_socket(nap.state, "web")}"', "front": f'"{nap.settings.router.http}"'}[
            program
        ]
        text = kept.read_text()
        assert address in text
        half = garbage == "half of it"
        kept.write_text(text[: len(text) // 2] if half else text.replace(address, '"192.0.2.1:80"'))
        kill(nap, program)
        served(nap, name, 200, "one")
        eventually(lambda: kept.exists() and kept.read_text() == text, 5, "and it is kept again")


def test_second_router_waits_for_the_first_to_end(nap: Nap, app: str) -> None:
    name = f"{app}.localhost"
    with instance("one") as one, instance("two") as two:
        announced(nap, app, [one.server_port])
        served(nap, name, 200, "one")
        command = [script("nap-router"), str(nap.state.root)]
        second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            with stopped(nap, "router"):
                announced(nap, app, [two.server_port])
                served(nap, name, 200, "two")
            announced(nap, app, [one.server_port])
            served(nap, name, 200, "one")
        finally:
            second.terminate()
            second.communicate()
        announced(nap, app, [two.server_port])
        served(nap, name, 200, "two")


def test_what_etcd_has_forgotten_is_not_waited_for(nap: Nap) -> None:
    etcd = nap.etcd()
    since = etcd.put("/compacted", 0)
    etcd.put("/compacted", 1)
    environment = os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": nap.settings.etcd.url}
    subprocess.run(["etcdctl", "compact", str(etcd.put("/compacted", 2))], env=environment, check=True)
    with pytest.raises(EtcdAway, match="compacted"):
        next(etcd.changes(["/compacted"], since, 5))
    etcd.close()


def test_what_is_of_no_use_stops_nobody_else(nap: Nap, app: str) -> None:
    garbage = {
        f"/services/{app}/v1.web.2": b"not json",
        f"/services/{app}/v1.web.3": b'"a word"',
        f"/services/{app}/v1.web.4": json.dumps({"host": "{env.HOME}", "port": 80}).encode(),
        f"/services/{app}/v1.web.5": json.dumps({"host": "127.0.0.1", "port": "80"}).encode(),
        f"/services/{app}/v1.worker.1": json.dumps({"host": "127.0.0.1"}).encode(),
        f"/nap/access/{app.upper()} {{": b"{}",
        f"/nap/domains/{app}.{{x}}": json.dumps({"app": app}).encode(),
        f"/nap/domains/{app}.example": b"[]",
        f"/nap/certificates/{app}": b"1",
    }
    name = f"{app}.localhost"
    with instance("one") as one:
        try:
            for key, value in garbage.items():
                put(nap, key, value)
            announced(nap, f"{app}-two", [one.server_port])
            served(nap, f"{app}-two.localhost", 200, "one")
            for key, value in garbage.items():
                put(nap, key, value)
            put(nap, f"/nap/access/{app}", b"{}")
            put(nap, f"/services/{app}/v1.web.1", json.dumps({"host": "127.0.0.1", "port": one.server_port}).encode())
            served(nap, name, 200, "one")
            kill(nap, "router")
            announced(nap, f"{app}-two", [])
            served(nap, f"{app}-two.localhost", 503)
            served(nap, name, 200, "one")
        finally:
            etcd = nap.etcd()
            etcd.write(dict.fromkeys([*garbage, f"/nap/access/{app}-two"]))
            etcd.close()


def test_setting_takes_effect_and_down_waits_for_no_stream(short_folder: Path, nap: Nap, tmp_path: Path) -> None:
    mine = fresh_nap(short_folder / "moves", NAP_ENGINE_URL=nap.engine_url, NAP_DEPLOY_DRAIN="0", NAP_DEPLOY_GRACE="1")
    mine.run("up")
    try:
        pusher = Pusher(mine, "moves", tmp_path)
        scripted(pusher)
        before = mine.settings.router.http
        mine.variables["NAP_ROUTER_HTTP"] = free_address()
        mine.run("up")
        assert mine.settings.router.http != before
        assert ask(mine, own(pusher))[1] == "one", "as soon as nap up has ended"
        eventually(lambda: not connects(before.host, before.port), 5, "the other address is given up")
        with visit(mine, own(pusher), "/cgi-bin/events") as events:
            assert events.readline() == b"data: tick\n"
            started = time.monotonic()
            mine.run("down")
            assert time.monotonic() - started < 15
    finally:
        mine.run("down", ok=False)


def connects(host: str, port: int) -> bool:
    """Whether anything accepts a connection there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
        return True
    return False


@contextmanager
def echo() -> Iterator[int]:
    """A WebSocket server that sends back each message (RFC 6455); its port."""

    def answer(connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            lines = list(itertools.takewhile(b"\r\n".__ne__, stream))
            keys = [line.split(b": ")[1].strip() for line in lines if line.lower().startswith(b"sec-websocket-key")]
            if not keys:
                stream.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            accepted = hashlib.sha1(keys[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            stream.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            stream.write(b"Sec-WebSocket-Accept: " + base64.b64encode(accepted) + b"\r\n\r\n")
            stream.flush()
            while head := stream.read(6):
                kind, length, mask = head[0], head[1] & 127, head[2:]
                text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(stream.read(length)))
                if kind & 15 != 1:
                    return
                stream.write(bytes([0x81, length]) + text)
                stream.flush()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def websocket(nap: Nap, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Two functions: one says a message of less than 126 bytes, the other returns what is heard, empty at the end."""
    router = nap.settings.router.http
    with socket.create_connection((router.host, router.port), 10) as connection, connection.makefile("rwb") as stream:
        key = base64.b64encode(os.urandom(16)).decode()
        stream.write(
            f"GET / HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        stream.flush()
        lines = list(itertools.takewhile(b"\r\n".__ne__, stream))
        assert b" 101 " in lines[0]

        def say(text: bytes) -> None:
            stream.write(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
            stream.flush()

        def heard() -> bytes:
            head = stream.read(2)
            return stream.read(head[1] & 127) if head and head[0] & 15 == 1 else b""

        yield say, heard
