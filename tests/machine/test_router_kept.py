"""Connections that visitors keep: no change of routes closes one, and no client that never retries misses an answer."""

import http.client
import resource
import select
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.fleet_apps import pushed
from tests.machine.test_certs import internal, safe
from tests.machine.test_router import ask, own, served
from tests.machine.test_router_change import app, is_led_to
from tests.nap import HTTPD, Nap, Pusher, eventually
from tests.regulars import CONNECTIONS, announced, instance, regulars

__all__ = ["app", "safe"]

IDLE, CHANGES = 1000, 100


@contextmanager
def kept(nap: Nap, name: str, number: int) -> Iterator[list[http.client.HTTPConnection]]:
    """So many connections to the router, over HTTPS where it has that, each of which was used once for `name`."""
    router = nap.settings.router.https or nap.settings.router.http
    trust = ssl.create_default_context(cadata=internal(nap).decode()) if nap.settings.router.https else None
    with ExitStack() as stack:
        found = [http.client.HTTPConnection(router.host, router.port, timeout=20) for _ in range(number)]
        for connection in found:
            stack.callback(connection.close)
            connection.connect()
            if trust:
                connection.sock = trust.wrap_socket(connection.sock, server_hostname=name)
            assert status(connection, name) == http.client.OK
        yield found


def status(connection: http.client.HTTPConnection, name: str) -> int:
    """What a request over this connection is answered with."""
    connection.request("GET", "/", headers={"Host": name})
    reply = connection.getresponse()
    reply.read()
    return reply.status


def closed(connections: list[http.client.HTTPConnection]) -> int:
    """How many of these, on which no answer is due, the other side has closed."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection.sock, select.POLLIN)
    return len(poll.poll(0))


@pytest.fixture
def _many_files() -> Iterator[None]:
    """This process may have so many connections open."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, min(most, 4 * IDLE)), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def change_often(nap: Nap, apps: list[str], times: int) -> None:
    """Have these apps' instances answer elsewhere so often, in turn; each is in force before the next."""
    for number in range(times):
        announced(nap, apps[number % len(apps)], [1024 + number])
        eventually(partial(is_led_to, nap, apps[number % len(apps)], 1024 + number), 10, "it is in force")


@pytest.fixture
def others(nap: Nap, app: str) -> Iterator[list[str]]:
    """Names of other apps, whose keys are gone afterwards."""
    names = [f"{app[-20:].strip('-')}-{number}" for number in range(3)]
    yield names
    etcd = nap.etcd()
    etcd.write(dict.fromkeys(key for name in names for key in (f"/nap/access/{name}", *nap.keys(f"/services/{name}/"))))
    etcd.close()


@pytest.mark.usefixtures("_many_files")
def test_changes_of_other_apps_close_no_idle_connection(nap: Nap, app: str, others: list[str]) -> None:
    name = f"{app}.localhost"
    with instance() as one:
        announced(nap, app, [one.server_port])
        served(nap, name, 200)
        with kept(nap, name, IDLE) as connections:
            change_often(nap, others, CHANGES)  # the first three are new apps
            assert closed(connections) == 0
            assert {status(connection, name) for connection in connections} == {200}


def change_names_often(nap: Nap, names: list[str], times: int) -> None:
    """Create and destroy these apps, and give each a domain, so often in turn; each is in force before the next."""
    etcd = nap.etcd()
    for number in range(times):
        app, is_there = names[number % len(names)], number // len(names) % 2 == 0
        access = {"repository": app, "users": {}} if is_there else None
        etcd.write({f"/nap/access/{app}": access, f"/nap/domains/www.{app}.test": {"app": app} if is_there else None})
        for name in (f"{app}.localhost", f"www.{app}.test"):
            eventually(partial(is_redirected, nap, name, is_there), 10, f"{name} is in force")
    etcd.close()


def is_redirected(nap: Nap, name: str, wanted: bool) -> bool:
    """Whether a visitor of `name` is sent to HTTPS, as the names of apps are, or not, as `wanted`."""
    return (ask(nap, name)[0] == http.client.PERMANENT_REDIRECT) is wanted


@pytest.mark.usefixtures("_many_files")
def test_apps_and_names_that_come_and_go_close_no_idle_connection_over_https(safe: Nap) -> None:
    with instance() as one:
        announced(safe, "kept", [one.server_port])
        eventually(partial(is_led_to, safe, "kept", one.server_port), 10, "it is in force")
        with kept(safe, "kept.localhost", IDLE) as connections:
            change_names_often(safe, [f"comes-and-goes-{number}" for number in range(3)], CHANGES)
            assert closed(connections) == 0
            assert {status(connection, "kept.localhost") for connection in connections} == {200}


def test_client_that_never_retries_misses_no_answer_while_routes_change(nap: Nap, app: str, others: list[str]) -> None:
    name = f"{app}.localhost"
    with instance() as one, instance() as two:
        both = [one.server_port, two.server_port]
        announced(nap, app, both)
        served(nap, name, 200)
        with regulars(nap, name, 100) as gets, regulars(nap, name, 100, "POST") as posts:
            for number in range(20):
                announced(nap, app, [both[number % 2]] if number % 4 else both)
                change_often(nap, others, 3)
    for asked in (gets, posts):
        assert asked.answered > 100
        assert not asked.failed
        assert asked.connections == CONNECTIONS, "none was closed"


def test_client_that_never_retries_misses_no_answer_while_several_apps_deploy(own_nap: Nap, tmp_path: Path) -> None:
    pushers = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        pushers.append(Pusher(own_nap, f"deploys-{number}", tmp_path / str(number)))
        pushers[-1].commit(Dockerfile=HTTPD, index_html="one")
        pushed(pushers[-1])
    name = own(pushers[0])
    served(own_nap, name, 200, "one")

    def deploy(pusher: Pusher) -> None:
        for number in range(2):
            pusher.commit(index_html=str(number))
            pushed(pusher)

    with regulars(own_nap, name) as asked:
        threads = [threading.Thread(target=deploy, args=(pusher,)) for pusher in pushers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for pusher in pushers:
        served(own_nap, own(pusher), 200, "1")
    assert asked.answered > 200
    assert not asked.failed
    assert asked.connections == CONNECTIONS, "none was closed"
