"""What the router adds to a request, and what it keeps of it: headers, an id, and a line in its log."""

import http.client
import re
from functools import partial
from pathlib import Path

import pytest

from tests.fleet_apps import pushed
from tests.machine.test_logs import following
from tests.machine.test_router import ask, own, served
from tests.nap import Nap, Pushed, Pusher, eventually

ECHO = """\
FROM nap/busybox
COPY echo.sh /echo.sh
EXPOSE 8080
CMD ["nc", "-ll", "-p", "8080", "-e", "sh", "/echo.sh"]
"""
ECHOES = """\
said=
while read -r line && [ "${#line}" -gt 1 ]; do said="$said$line
"; done
printf 'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nX-Request-Id: mine\\r\\nSet-Cookie: s=SECRET\\r\\n\\r\\n%s' "$said"
"""


@pytest.fixture
def echo(pusher: Pusher) -> Pusher:
    """An app that answers with what it was asked."""
    (pusher.repository / "echo.sh").write_text(ECHOES)
    pusher.commit(Dockerfile=ECHO)
    pushed(pusher)
    served(pusher.nap, own(pusher), 200, "GET / HTTP/1.1")
    return pusher


CLAIMS = [
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix"),
    *("X-Forwarded-Ssl", "X-Forwarded-User", "Forwarded", "Forwarded-For", "X-Request-ID", "Remote-Addr"),
    *("X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "X-Originating-IP"),
    *("X-Cluster-Client-IP", "X-Remote-IP", "Client-Cert", "X-Original-URL", "X-Rewrite-URL", "X-Host", "X-Scheme"),
    *("Script-Name", "X-Sendfile-Type", "X-Accel-Mapping", "Proxy"),
]
"""What only a router knows, or an app does for one."""

HARMLESS = ["X-Custom", "Cookie", "Via", "api_key", "X-HTTP-Method-Override", "X-Original-Filename", "Proxy-Version"]


def asked_with(nap: Nap, name: str, *headers: tuple[str, str]) -> tuple[dict[str, list[str]], str]:
    """The headers that the app got, by their names in small letters, and the id in the answer."""
    address = nap.settings.router.http
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.putrequest("GET", "/", skip_host=True, skip_accept_encoding=True)
    for field, value in (("Host", name), *headers):
        connection.putheader(field, value)
    connection.endheaders()
    reply = connection.getresponse()
    got: dict[str, list[str]] = {}
    for line in reply.read().decode().splitlines()[1:]:
        header, _, value = line.partition(":")
        got.setdefault(header.lower(), []).append(value.strip())
    (request_id,) = reply.headers.get_all("X-Request-Id") or []
    connection.close()
    return got, request_id


def test_what_the_app_is_told_is_the_routers_word(nap: Nap, echo: Pusher) -> None:
    host = f"{own(echo)}:{nap.settings.router.http.port}"
    nap.run("domains:add", echo.app, f"www.{echo.app}.test")
    got, request_id = asked_with(nap, host)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", request_id)
    told = {
        "host": [host],
        "x-forwarded-for": ["127.0.0.1"],
        "x-forwarded-proto": ["http"],
        "x-forwarded-host": [host],
        "x-request-id": [request_id],
    }
    assert {name: got[name] for name in told} == told
    names = [spelled for name in CLAIMS for spelled in (name, name.replace("-", "_"), name.replace("-", "_", 1))]
    names += ["X-Request_Id", "X-Real_IP", "X-Original_URL"]
    lies = [(name, "6.6.6.6") for name in names]
    lied, other_id = asked_with(
        nap, host, *lies, ("X-Forwarded-For", "7.7.7.7"), *((name, "kept") for name in HARMLESS)
    )
    assert other_id not in {request_id, "6.6.6.6"}
    assert {name: lied[name] for name in told} == told | {"x-request-id": [other_id]}
    assert "6.6.6.6" not in str(lied)
    assert {name: lied.get(name.lower()) for name in HARMLESS} == {name: ["kept"] for name in HARMLESS}
    got, third_id = asked_with(nap, host, ("Connection", "close, x-request-ID, X-Forwarded-For"))
    assert {name: got[name] for name in told} == told | {"x-request-id": [third_id]}
    served(nap, f"www.{echo.app}.test", 200, f"Host: www.{echo.app}.test")


def test_the_log_of_an_apps_requests(nap: Nap, echo: Pusher, tmp_path: Path) -> None:
    app = echo.app
    stamped = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z router: 127\.0\.0\.1 "GET (\S+) HTTP/1\.1" (.*)')

    def shown(*words: str) -> list[tuple[str, str]]:
        done = echo.ssh_command("logs", app, "-p", "router", *words)
        assert (done.returncode, done.stderr) == (0, "")
        found = [stamped.fullmatch(line) for line in done.stdout.splitlines()]
        assert all(found), done.stdout
        return [(line[1], line[2]) for line in found if line]

    _, _, headers = ask(nap, own(echo), "/one?token=x", Authorization="Basic SECRET", Cookie="s=SECRET", X_Key="SECRET")
    eventually(lambda: shown()[-1][0] == "/one?token=x", 5, "it is there")
    assert re.fullmatch(rf"200 \d+ \d+\.\d{{3}}s {headers['x-request-id']}", shown("-n", "1")[0][1])
    ask(nap, "nobody.localhost", "/nobody")
    ask(nap, own(echo).upper(), "/upper")
    ask(nap, own(echo), "/two")
    eventually(lambda: [path for path, _ in shown("-n", "2")] == ["/upper", "/two"], 5, "no other's between them")
    assert "SECRET" not in nap.state.router_log.read_text()
    assert "router" not in echo.ssh_command("logs", app).stdout
    refused = nap.run("logs", app, "-p", "router", "--release", "1", ok=False)
    assert refused.stderr.splitlines()[0] == " !     requests cannot be filtered by release"

    with following(echo.ssh_words("logs", app, "-p", "router", "-t", "-n", "1"), tmp_path / "seen", nap) as client:
        eventually(lambda: "/two" in (tmp_path / "seen").read_text(), 10, "what was there")
        ask(nap, own(echo), "/three")
        eventually(lambda: "/three" in (tmp_path / "seen").read_text(), 5, "what comes")
        client.terminate()
        client.wait(timeout=5)
    assert echo.ssh_command("ps:stop", app).returncode == 0
    served(nap, own(echo), 503)
    eventually(lambda: shown("-n", "1")[0][1].startswith("503 "), 5, "what no instance answered is there too")


def test_a_new_app_of_an_old_name_begins_with_an_empty_log(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    served(nap, own(pusher), 200, "one")
    seen = partial(pusher.ssh_command, "logs", pusher.app, "-p", "router")
    eventually(lambda: '"GET / ' in seen().stdout, 5, "it is there")
    assert pusher.ssh_command("apps:destroy", pusher.app, "--confirm", pusher.app).returncode == 0
    pushed(pusher)
    assert (seen().returncode, seen().stdout) == (0, "")
