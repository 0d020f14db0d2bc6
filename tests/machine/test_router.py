"""The router: every app under a name of its own, whatever becomes of instances, etcd, Caddy or the router itself."""

import http.client
import json
import time

from nap_receiver.routing.caddy_configuration import FAREWELL_MS
from tests.fleet_apps import pushed
from tests.nap import Nap, Pushed, Pusher, lastingly

SETTLED_SECONDS = 2 * FAREWELL_MS / 1000
"""What is so for longer than the routes before a change are used on too is so for every connection."""


def ask(nap: Nap, name: str, path: str = "/", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of the answer that a visitor of `name` gets."""
    address = nap.settings.router.http
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": name} | {k.replace("_", "-"): v for k, v in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), {k.lower(): v for k, v in reply.getheaders()}
    finally:
        connection.close()


def own(pusher: Pusher) -> str:
    return f"{pusher.app}.localhost"


def served(nap: Nap, name: str, status: int, text: str = "") -> None:
    """Within a moment, a visitor of `name` is answered so, and goes on to be."""

    def is_so() -> bool:
        try:
            found, body, _ = ask(nap, name)
        except (OSError, http.client.HTTPException):  # Caddy starts
            return False
        return (found, text) == (status, text if text in body else None)

    lastingly(is_so, SETTLED_SECONDS, 5, f"{name} answers {status} {text}")


def test_the_push_prints_an_address_that_stays(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    url = f"http://{own(pusher)}:{nap.settings.router.http.port}"
    at = live.lines.index(f"       {url}")
    assert live.lines[at - 1].startswith(f"=====> {pusher.app} v1 is live")
    assert live.lines[at + 1] == f"       {live.url}"
    served(nap, own(pusher), 200, "one")
    pusher.commit(index_html="two")
    assert f"       {url}" in pushed(pusher).lines
    served(nap, own(pusher), 200, "two")
    assert pusher.ssh_command("open", pusher.app).stdout == f"{url}\n"
    assert f"{pusher.app} is reached at {url}" in pusher.ssh_command("ps", pusher.app).stdout
    (row,) = [each for each in json.loads(nap.run("apps", "--json").stdout) if each["app"] == pusher.app]
    assert row["url"] == url


def test_without_an_instance_it_says_which_app_and_since_when(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    before = int(time.time())
    assert pusher.ssh_command("ps:stop", pusher.app).returncode == 0
    served(nap, own(pusher), 503, f"{pusher.app} does not answer: no healthy instance since ")
    _, body, headers = ask(nap, own(pusher))
    since = time.mktime(time.strptime(body.partition(" since ")[2].strip().rstrip("."), "%Y-%m-%d %H:%M:%S UTC"))
    assert before <= since - time.timezone <= time.time()
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert ask(nap, "nobody.localhost")[0] == 404
    assert pusher.ssh_command("ps:start", pusher.app).returncode == 0
    served(nap, own(pusher), 200, "one")
    assert pusher.ssh_command("apps:destroy", pusher.app, "--confirm", pusher.app).returncode == 0
    served(nap, own(pusher), 404)
