"""HTTPS: whose certificate is served at which name, to visitors."""

import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from nap_receiver.deploy.logs import Requests
from tests.conftest import free_address, fresh_nap
from tests.issued import MIDDLE, ROOT, issued
from tests.machine.test_router import SETTLED_SECONDS
from tests.machine.test_router_answer import answering
from tests.nap import Nap, Pusher, eventually, lastingly
from tests.regulars import announced


@pytest.fixture(scope="module")
def safe(nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap that serves HTTPS."""
    own = fresh_nap(short_folder / "safe", NAP_ENGINE_URL=nap.engine_url, NAP_ROUTER_HTTPS=free_address())
    own.run("up")
    yield own
    own.run("down")


@pytest.fixture
def shop(safe: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Pusher:
    """Someone with an app that was never deployed, for which the router has a page of its own."""
    return undeployed(safe, f"shop-{len(safe.keys('/nap/access/'))}", tmp_path)


def undeployed(nap: Nap, app: str, folder: Path) -> Pusher:
    """Someone with an app of that name."""
    pusher = Pusher(nap, app, folder)
    pusher.commit(index_html="kept")
    pusher.git("push", "--quiet", "-o", "nap.deploy=no", "nap", "HEAD:master")
    return pusher


def visit(nap: Nap, name: str, root: bytes) -> str:
    """The issuer of the certificate that a visitor of `name` is shown, who trusts nobody but `root`; "" if none within
    5 seconds.

    The router answers then.
    """
    context = ssl.create_default_context(cadata=root.decode())
    address = nap.settings.router.https
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            secured.sendall(f"GET / HTTP/1.1\r\nHost: {name}:{address.port}\r\nConnection: close\r\n\r\n".encode())
            page = secured.recv(100)
            if page.startswith(b"HTTP/1.1 404 "):
                return "the routes before"
            assert page.startswith(b"HTTP/1.1 503 ")
            shown = x509.load_der_x509_certificate(secured.getpeercert(True) or b"")
            return str(shown.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    except (ssl.SSLError, TimeoutError):
        return ""


def shows(nap: Nap, name: str, root: bytes, issuer: str) -> None:
    """Within a moment, a visitor of `name` is shown a certificate of that issuer, and goes on to be."""
    what = f"{name} is served with one of {issuer or 'nobody'}"
    lastingly(lambda: visit(nap, name, root) == issuer, SETTLED_SECONDS, 5, what)


def internal(nap: Nap) -> bytes:
    """Caddy's own root, where the documentation says that it is."""
    return (nap.state.root / "caddy" / "pki" / "authorities" / "local" / "root.crt").read_bytes()


OWN = "Caddy Local Authority - ECC Intermediate"


def bring(pusher: Pusher, *content: bytes) -> tuple[int, str, list[str]]:
    """How `certs:add` over ssh ends, given this."""
    done = subprocess.run(
        pusher.ssh_words("certs:add", pusher.app), input=b"".join(content), capture_output=True, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode().splitlines()


def logged(nap: Nap, app: str) -> list[str]:
    """What the router's log has of the app's requests, each without its time and id."""
    lines = Requests(app, nap.state.router_log, [], 0.0).past([], 9)
    return [line.text.rpartition(" 200 ")[0] for line in lines]


def test_app_and_log_are_told_how_a_visitor_came(safe: Nap, shop: Pusher, tmp_path: Path) -> None:
    name, root, address = f"{shop.app}.localhost", tmp_path / "root.crt", safe.settings.router.https
    shows(safe, name, internal(safe), OWN)
    root.write_bytes(internal(safe))
    with answering([b"Content-Length: 2"], b"ok") as (port, requests):
        announced(safe, shop.app, [port])
        for spoken in ("--http1.1", "--http2"):
            url = f"https://{name}:{address.port}/{spoken}"
            words = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(root), spoken, "--retry", "5"]
            words += ["--resolve", f"{name}:{address.port}:{address.host}", "--header", "X-Nap-Protocol: lie", url]
            done = subprocess.run(words, capture_output=True, text=True, timeout=30)
            assert (done.returncode, done.stdout) == (0, "ok"), done.stderr
            asked = requests[-1].decode().splitlines()
            assert asked[0] == f"GET /{spoken} HTTP/1.1"
            assert "X-Forwarded-Proto: https" in asked
            assert f"X-Forwarded-For: {address.host}" in asked
            assert "nap" not in "".join(asked).lower()
    came = [f'{address.host} "GET /--http1.1 HTTP/1.1"', f'{address.host} "GET /--http2 HTTP/2.0"']
    eventually(lambda: logged(safe, shop.app)[-2:] == came, 5, "the log has both")


def test_names_below_localhost_have_a_certificate_of_caddys_own(safe: Nap, shop: Pusher) -> None:
    name, address = f"{shop.app}.localhost", safe.settings.router.https
    shows(safe, name, internal(safe), OWN)
    assert visit(safe, name, ROOT.pem) == ""
    assert safe.run("open", shop.app).stdout == f"https://{name}:{address.port}\n"
    plain = http.client.HTTPConnection(safe.settings.router.http.host, safe.settings.router.http.port, timeout=5)
    for method in ("GET", "POST"):
        plain.request(method, "/a%20b/?c=d&e=%2F", headers={"Host": f"{name}:{safe.settings.router.http.port}"})
        reply = plain.getresponse()
        assert (reply.status, reply.read()) == (308, b"")
        assert reply.getheader("Location") == f"https://{name}:{address.port}/a%20b/?c=d&e=%2F"
    for unknown in ("evil.example", "evil.example:80", f"{name}.evil.example", f"x.{name}"):
        plain.request("GET", "/", headers={"Host": unknown})
        reply = plain.getresponse()
        assert (reply.status, reply.getheader("Location")) == (404, None), unknown
        reply.read()
    plain.close()


def test_a_certificate_that_was_brought_is_served(safe: Nap, shop: Pusher) -> None:
    app, www = shop.app, f"www.{shop.app}.local"
    one = issued(www, [www, f"*.{shop.app}.local"], by=MIDDLE)
    status, said, trouble = bring(shop, one.pem, MIDDLE.pem, one.key_pem())
    assert (status, said) == (1, "")
    assert trouble == [
        f" !     the certificate is for {www} and 1 more, which is not a domain of {app}",
        f" !     Add each name of the certificate first, also wildcards: domains:add {app} {www}",
    ]
    safe.run("domains:add", app, www, f"*.{app}.local", f"{app}.example.test")
    status, said, trouble = bring(shop, one.key_pem(), MIDDLE.pem, one.pem)
    until = one.certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (status, trouble) == (0, [])
    assert said.splitlines() == [
        f"{app} uses this certificate for {www}, *.{app}.local, until {until}",
        f"Domains with another certificate: {app}.localhost, {app}.example.test",
    ]
    shows(safe, www, ROOT.pem, "Test middle")
    assert visit(safe, f"other.{app}.local", ROOT.pem) == "Test middle"
    assert visit(safe, f"{app}.localhost", internal(safe)) == OWN
    (row,) = json.loads(shop.ssh_command("certs", app, "--json").stdout)
    assert row == {"names": f"{www}, *.{app}.local", "issuer": "Test middle", "until": until}

    newer = issued("", [www], by=ROOT)
    assert bring(shop, newer.pem, newer.key_pem())[0] == 0
    shows(safe, www, ROOT.pem, "Test root")
    key = "".join(newer.key_pem().decode().split("\n")[1:-2])
    logs = [path for path in safe.state.program_logs.rglob("*") if path.is_file()]
    assert len(logs) > 5
    for path in logs:
        assert key not in path.read_text(errors="replace").replace("\\n", ""), path

    assert shop.ssh_command("certs:remove", app).stdout == f"{app} uses the router's own certificates\n"
    shows(safe, www, internal(safe), OWN)
    assert json.loads(safe.run("certs", app, "--json").stdout) == []
    again = shop.ssh_command("certs:remove", app)
    assert (again.returncode, again.stderr) == (1, f" !     {app} has no certificate of its own\n")


def test_a_certificate_is_shown_at_no_name_of_another_app(safe: Nap, shop: Pusher, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = undeployed(safe, f"{shop.app}-other", tmp_path / "other")
    www = f"www.{shop.app}.local"
    safe.run("domains:add", shop.app, f"*.{shop.app}.local", f"a.{shop.app}.local")
    safe.run("domains:add", other.app, www)
    shows(safe, www, internal(safe), OWN)
    wild = issued("", [f"*.{shop.app}.local"], by=ROOT)
    assert bring(shop, wild.pem, wild.key_pem())[0] == 0
    shows(safe, f"b.{shop.app}.local", ROOT.pem, "Test root")
    assert visit(safe, f"a.{shop.app}.local", ROOT.pem) == "Test root"
    assert visit(safe, www, internal(safe)) == OWN, "which is another app's"

    both = issued("", [f"*.{shop.app}.local", f"a.{shop.app}.local"], by=ROOT)
    assert bring(shop, both.pem, both.key_pem())[0] == 0
    removed = shop.ssh_command("domains:remove", shop.app, f"a.{shop.app}.local")
    assert removed.returncode == 0
    assert removed.stderr.splitlines()[0] == (
        f" !     The certificate of {shop.app} also names a.{shop.app}.local, so it is no longer used"
    )
    assert shop.ssh_command("certs", shop.app).stderr == (
        f" !     This certificate is not used: {shop.app} no longer has a.{shop.app}.local\n"
    )
    safe.run("domains:add", other.app, f"a.{shop.app}.local")
    shows(safe, f"a.{shop.app}.local", internal(safe), OWN)
    assert visit(safe, f"b.{shop.app}.local", ROOT.pem) == ""


def test_who_may_bring_one(safe: Nap, shop: Pusher, nap: Nap, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = undeployed(safe, f"{shop.app}-other", tmp_path / "other")
    safe.run("access:add", shop.app, other.user, "push")
    one = issued("", [f"{shop.app}.localhost"])
    other.app = shop.app
    assert bring(other, one.pem, one.key_pem())[2][0] == f" !     {other.user} may not administer {shop.app}"
    assert other.ssh_command("certs:remove", shop.app).returncode == 1
    assert other.ssh_command("certs", shop.app, "--json").stdout == "[]\n"
    assert bring(shop, b"")[2][0] == " !     expected one private key in PEM, got none"
    assert not safe.keys(f"/nap/certificates/{shop.app}")
    (tmp_path / "bare").mkdir()
    bare = undeployed(nap, f"{shop.app}-bare", tmp_path / "bare")
    assert bring(bare, one.pem)[2][0] == " !     the router of this nap has no HTTPS"


def test_a_name_for_which_nobody_gives_a_certificate_is_no_trouble_for_others(safe: Nap, shop: Pusher) -> None:
    name = f"{shop.app}.localhost"
    shows(safe, name, internal(safe), OWN)
    began = time.monotonic()
    safe.run("domains:add", shop.app, f"www.{shop.app}.com", f"*.{shop.app}.com", f"www.{shop.app}.test")
    new = f"{shop.app}-new"
    etcd = safe.etcd()
    etcd.put(safe.settings.etcd.access_of(new), {"repository": "", "users": {}})
    etcd.close()
    shows(safe, f"{new}.localhost", internal(safe), OWN)
    assert visit(safe, name, internal(safe)) == OWN
    assert visit(safe, f"www.{shop.app}.com", internal(safe)) == ""
    shows(safe, f"www.{shop.app}.test", internal(safe), OWN)
    print(f"after {time.monotonic() - began:.2f} s")
    log = safe.state.program_logs / "front.log"
    asked = f'"logger":"tls.obtain","msg":"could not get certificate from issuer","identifier":"www.{shop.app}.com"'
    eventually(lambda: asked in log.read_text(), 60, "Caddy asks a public CA for it")
    assert '"identifier":"*.' not in log.read_text()
    safe.run("domains:remove", shop.app, f"www.{shop.app}.com", f"*.{shop.app}.com", f"www.{shop.app}.test")
