"""HTTPS: whose certificate is served at which name, and what owners may bring."""

import base64
import datetime
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Address, EtcdSettings, OptionalAddress, RouterSettings
from nap_receiver.deploy.logs import Requests
from nap_receiver.routing import certificates
from nap_receiver.routing.caddy import CaddyAway
from nap_receiver.routing.caddy_configuration import Site
from nap_receiver.routing.certificates import Brought, about, require_own
from nap_receiver.routing.front import Certificate, front, permitted, whole
from nap_receiver.routing.router import Known, _load
from nap_receiver.store.etcd import Entry
from tests.conftest import free_address, fresh_nap
from tests.machine.test_router import SETTLED_SECONDS
from tests.machine.test_router_answer import answering
from tests.nap import Nap, Pusher, eventually, lastingly
from tests.regulars import announced

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed448.Ed448PrivateKey
DAY = datetime.timedelta(days=1)
SECURE = RouterSettings(http=Address("127.0.0.1:80"), https=OptionalAddress("127.0.0.1:443"))


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes = b"") -> bytes:
        """The key, locked with a password if there is one."""
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def issued(
    common: str,
    names: Sequence[str] = (),
    by: Issued | None = None,
    key: Key | None = None,
    begins: datetime.timedelta = -DAY,
    ends: datetime.timedelta = DAY,
) -> Issued:
    """A certificate of that subject for these names; its own issuer, unless it is `by` another."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)] if common else [])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
    signer = by.key if by else own
    return Issued(builder.sign(signer, None if isinstance(signer, ed448.Ed448PrivateKey) else hashes.SHA256()), own)


ROOT = issued("Test root")
MIDDLE = issued("Test middle", by=ROOT)
WWW = issued("", ["www.example.org", "WWW.example.com"], by=MIDDLE)


MOST = RouterSettings().max_certificate


def checked(content: bytes) -> Brought:
    """What is taken from this, of as many bytes as the default is."""
    return certificates.checked(content, MOST)


def refused(content: bytes) -> str:
    """The sentence with which this is refused, which is one line of plain text."""
    with pytest.raises(NapError) as error:
        checked(content)
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_certificate_its_chain_and_its_key_in_any_order() -> None:
    parts = [WWW.pem, MIDDLE.pem, WWW.key_pem()]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 1, 0, 2, 0]):
        brought = checked(b"Bag Attributes\r\n".join(parts[at] for at in order))
        assert brought.chain == (WWW.pem + MIDDLE.pem).decode()
        assert brought.key == WWW.key_pem().decode()
        assert brought.names == ["www.example.org", "www.example.com"]
    whole = checked(ROOT.pem + MIDDLE.pem + WWW.pem + WWW.key_pem())
    assert whole.chain == (WWW.pem + MIDDLE.pem + ROOT.pem).decode()
    assert checked((WWW.pem + WWW.key_pem()).replace(b"\n", b"\r\n")).chain == WWW.pem.decode()
    said = about(whole.chain)
    assert (said.names, said.issuer) == (["www.example.org", "www.example.com"], "Test middle")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said.until)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8])
@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_keys_of_every_kind_that_is_used(kind: str, form: serialization.PrivateFormat) -> None:
    key: Key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP384R1())
    one = issued("", ["www.example.org"], key=key)
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert checked(one.pem + parameters + pem).key == one.key_pem().decode()


def test_what_does_not_belong_together_is_refused() -> None:
    other = issued("Else", ["www.example.org"])
    assert refused(WWW.pem + other.key_pem()) == "the private key is that of another certificate"
    assert refused(MIDDLE.pem + other.key_pem()) == "the private key is that of another certificate"
    assert refused(WWW.pem) == "expected one private key in PEM, got none"
    assert refused(WWW.pem + WWW.key_pem() + other.key_pem()) == "expected one private key in PEM, got 2"
    assert refused(WWW.key_pem()) == "there is no certificate in PEM"
    assert refused(WWW.pem + ROOT.pem + WWW.key_pem()).startswith("the chain is broken: ")
    assert refused(WWW.pem + MIDDLE.pem + other.pem + WWW.key_pem()).startswith("the chain is broken: ")
    assert refused(WWW.pem + WWW.key_pem(b"secret")) == "the private key is locked with a passphrase"


def test_what_cannot_be_served_is_refused() -> None:
    old = issued("", ["www.example.org"], begins=-2 * DAY, ends=-DAY)
    assert re.fullmatch(r"the certificate ended \d{4}-\S+Z", refused(old.pem + old.key_pem()))
    early = issued("", ["www.example.org"], begins=DAY, ends=2 * DAY)
    assert re.fullmatch(r"the certificate begins \d{4}-\S+Z", refused(early.pem + early.key_pem()))
    ended = issued("Ended", begins=-2 * DAY, ends=-DAY)
    below = issued("", ["www.example.org"], by=ended)
    assert refused(below.pem + ended.pem + below.key_pem()).startswith("the chain's certificate of Ended ended ")
    nameless = issued("www.example.org")
    assert refused(nameless.pem + nameless.key_pem()) == "the certificate names no domain (subjectAltName)"
    for key in (
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ):
        odd = issued("", ["www.example.org"], key=key)
        assert refused(odd.pem + odd.key_pem()) == "the private key is of a kind that is not served"


def test_garbage_is_refused() -> None:
    key = WWW.key_pem()
    assert refused(b"") == refused(b"\xff" * 5000) == "expected one private key in PEM, got none"
    assert refused(b"x" * (MOST + 1)) == (
        "the certificate with its chain and key has more than 32768 bytes (router.max_certificate)"
    )
    assert refused(MIDDLE.pem * 10 + WWW.pem + key) == "expected up to 10 certificates, got 11"
    assert refused(key.replace(b"M", b"\x07") + WWW.pem) == "the private key cannot be read"
    assert refused(WWW.pem.replace(b"M", b"\x07") + key) == "a certificate cannot be read"
    assert refused(WWW.pem[:200] + b"\n-----END CERTIFICATE-----\n" + key) == "a certificate cannot be read"
    hostile = issued("\x1b[2Jrm\n", by=ROOT)
    assert "issued rm, and" in refused(hostile.pem + WWW.pem + hostile.key_pem())


def test_whatever_is_damaged_in_a_certificate_it_is_read_or_refused() -> None:
    subject = issued("Example Ltd", ["www.example.org"])
    key, whole = subject.key_pem(), subject.certificate.public_bytes(serialization.Encoding.DER)
    said = set()
    for at in range(len(whole)):
        for value in (0x00, 0x0C, 0x80, 0xFF, whole[at] ^ 1):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(damaged) + b"-----END CERTIFICATE-----\n"
            try:
                about(checked(pem + key).chain)
            except NapError as error:
                said.add(str(error))
    assert "a certificate cannot be read" in said
    with pytest.raises(NapError, match=r"^a certificate cannot be read$"):
        about("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_a_certificate_is_for_names_of_the_app_alone() -> None:
    own = ["shop.localhost", "www.example.org", "*.example.net"]

    def told(common: str, *names: str) -> str:
        one = issued(common, names)
        try:
            require_own(checked(one.pem + one.key_pem()), "shop", own)
        except NapError as error:
            return str(error)
        return ""

    assert told("", "www.example.org") == told("", *own) == told("Example Ltd. of Rome", "WWW.EXAMPLE.ORG") == ""
    assert told("", "www.example.org", "victim.example.com") == (
        "the certificate is for victim.example.com, which shop does not have"
    )
    assert (
        told("", "a.example.com", "b.example.com")
        == "the certificate is for a.example.com and 1 more, which shop does not have"
    )
    assert told("", "*.example.org").startswith("the certificate is for *.example.org, ")
    assert told("", "*.localhost").startswith("the certificate is for *.localhost, ")
    assert told("", "one.example.net").startswith("the certificate is for one.example.net, "), "it could be another's"
    # Caddy takes the common name for one of the names.
    assert told("Victim.example.com", "www.example.org").startswith("the certificate is for victim.example.com, ")
    assert told("*.*.com", "www.example.org").startswith("the certificate is for *.*.com, ")


SHOP = Site("shop", ("shop.localhost", "www.example.org", "*.example.org"), ())
BLOG = Site("blog", ("blog.localhost", "api.example.org", "*.example.net"), ())
WILD = Certificate("shop", ["*.example.org"], "wild", "")
UNFIT = [
    Certificate("shop", ["www.example.org", "gone.example.org"], "lost", ""),
    Certificate("shop", ["www.example.org", "api.example.org"], "theirs", ""),
    Certificate("nobody", ["www.example.org"], "nobodys", ""),
]


def loaded(told: dict[str, Any]) -> list[str]:
    """The certificates that Caddy is told, each of which it can tell from others by its app."""
    server = told["http"]["servers"]["web"]
    assert server["tls_connection_policies"][-1] == {}, "it never speaks plain HTTP there"
    offered = server["listen_protocols"][0] if "listen_protocols" in server else server["protocols"]
    assert offered == ["h1", "h2"], "no HTTP/3"
    return [each["certificate"] for each in told["tls"]["certificates"].get("load_pem", [])]


def test_what_a_caddy_that_has_the_routes_is_told_of_certificates() -> None:
    def secure(*certificates: Certificate) -> tuple[list[str], list[str]]:
        told = whole([SHOP, BLOG], certificates, State(Path("/nap")), SECURE)["apps"]
        automatic = told["http"]["servers"]["web"]["automatic_https"]
        assert automatic["ignore_loaded_certificates"]
        return loaded(told), automatic["skip_certificates"]

    assert secure() == ([], ["*.example.net", "*.example.org"]), "no CA gives one for these unasked"
    assert secure(WILD) == (["wild"], ["*.example.net", "*.example.org", "www.example.org"])
    assert secure(*UNFIT) == secure()


def test_what_the_front_is_told_of_certificates() -> None:
    def secure(*certificates: Certificate, waiting: Collection[str] = ()) -> tuple[list[str], list[str], list[str]]:
        told = front([SHOP, BLOG], certificates, State(Path("/nap")), SECURE, waiting)["apps"]
        assert told["http"]["servers"]["web"]["automatic_https"] == {"disable": True}
        return loaded(told), told["tls"]["certificates"]["automate"], permitted([SHOP, BLOG], certificates, waiting)

    names = ["shop.localhost", "www.example.org", "blog.localhost", "api.example.org"]
    assert secure() == ([], [], names)
    assert secure(waiting={"www.example.org"}) == ([], [], [names[0], *names[2:]])
    without_www = ["shop.localhost", "blog.localhost", "api.example.org"]
    assert secure(WILD) == (["wild"], ["api.example.org"], without_www), "a visitor of api would be shown the wildcard"
    assert secure(WILD, waiting={"api.example.org"}) == (["wild"], [], without_www[:2])
    assert secure(*UNFIT) == secure()


def test_the_front_is_told_nothing_of_apps_and_their_names() -> None:
    state = State(Path("/nap"))
    assert front([SHOP, BLOG], [], state, SECURE) == front([], [], state, SECURE)
    assert front([SHOP, BLOG], [], state, SECURE, {"api.example.org"}) == front([], [], state, SECURE)
    assert front([SHOP, BLOG], [WILD], state, SECURE) != front([SHOP], [WILD], state, SECURE)
    www = Site("www", ("www.localhost", "www.example.com"), ())
    assert front([SHOP, BLOG], [WILD], state, SECURE) == front([SHOP, BLOG, www], [WILD], state, SECURE)


def test_reserved_names_come_from_caddys_own_authority() -> None:
    told = front([], [], State(Path("/nap")), SECURE)["apps"]["tls"]["automation"]["policies"]
    own, public = told
    assert own["issuers"] == [{"module": "internal"}]
    assert {"localhost", "*.localhost", "*.*.*.test", "*.example.com"} < set(own["subjects"])
    assert public == {"on_demand": True}


def test_one_certificate_that_caddy_does_not_take_does_not_keep_it_from_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[list[str]] = []
    is_away = False

    def load(path: Path, wanted: dict[str, object]) -> None:
        if is_away:
            raise CaddyAway("away")
        if path.name != "front.sock":
            return
        apps = json.loads(json.dumps(wanted))["apps"]
        chains = [each["certificate"] for each in apps["tls"].get("certificates", {}).get("load_pem", [])]
        if "bad" in chains:
            raise NapError("bad")
        told.append(chains)

    monkeypatch.setattr("nap_receiver.routing.router.load", load)
    known = Known(EtcdSettings(), SECURE)
    known.begin({f"/nap/access/{app}": {} for app in "abc"})
    for app, chain in {"a": "good", "b": "bad", "c": "too"}.items():
        known.change(Entry(f"/nap/certificates/{app}", {"names": [f"{app}.localhost"], "chain": chain, "key": ""}, 1))
    _load(State(tmp_path), known)
    assert told[-1] == ["good", "too"]
    assert [] in told, "the routes first"
    told.clear()
    _load(State(tmp_path), known)
    assert told == [], "a front that does so already is not told again"
    known.fronts = {}
    _load(State(tmp_path), known)
    assert told == [["good", "too"]], "the bad one is not tried again"
    is_away = True
    with pytest.raises(CaddyAway):
        _load(State(tmp_path), known)


# On real parts


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


@pytest.mark.machine
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


@pytest.mark.machine
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


@pytest.mark.machine
def test_a_certificate_that_was_brought_is_served(safe: Nap, shop: Pusher) -> None:
    app, www = shop.app, f"www.{shop.app}.local"
    one = issued(www, [www, f"*.{shop.app}.local"], by=MIDDLE)
    status, said, trouble = bring(shop, one.pem, MIDDLE.pem, one.key_pem())
    assert (status, said) == (1, "")
    assert trouble == [
        f" !     the certificate is for {www} and 1 more, which {app} does not have",
        f" !     Add each name that it is for, a wildcard as such: domains:add {app} {www}",
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


@pytest.mark.machine
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


@pytest.mark.machine
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
    assert bring(bare, one.pem)[2][0] == " !     the router serves no HTTPS here"


@pytest.mark.machine
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
