"""HTTPS: which certificates owners may bring, and which the front is told of."""

import base64
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Address, EtcdSettings, OptionalAddress, RouterSettings
from nap_receiver.routing import certificates
from nap_receiver.routing.caddy import CaddyAway
from nap_receiver.routing.caddy_configuration import Site
from nap_receiver.routing.certificates import Brought, about, require_own
from nap_receiver.routing.front import Certificate, front, permitted, whole
from nap_receiver.routing.router import Known, _load
from nap_receiver.store.etcd import Entry
from tests.issued import DAY, MIDDLE, ROOT, Key, issued

SECURE = RouterSettings(http=Address("127.0.0.1:80"), https=OptionalAddress("127.0.0.1:443"))
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
    assert refused(WWW.pem + other.key_pem()) == "the private key does not belong to the certificate"
    assert refused(MIDDLE.pem + other.key_pem()) == "the private key does not belong to the certificate"
    assert refused(WWW.pem) == "expected one private key in PEM, got none"
    assert refused(WWW.pem + WWW.key_pem() + other.key_pem()) == "expected one private key in PEM, got 2"
    assert refused(WWW.key_pem()) == "expected a certificate in PEM, got none"
    assert refused(WWW.pem + ROOT.pem + WWW.key_pem()).startswith("the chain is broken: ")
    assert refused(WWW.pem + MIDDLE.pem + other.pem + WWW.key_pem()).startswith("the chain is broken: ")
    assert refused(WWW.pem + WWW.key_pem(b"secret")) == "the private key is encrypted with a passphrase"


def test_what_cannot_be_served_is_refused() -> None:
    old = issued("", ["www.example.org"], begins=-2 * DAY, ends=-DAY)
    assert re.fullmatch(r"the certificate expired \d{4}-\S+Z", refused(old.pem + old.key_pem()))
    early = issued("", ["www.example.org"], begins=DAY, ends=2 * DAY)
    assert re.fullmatch(r"the certificate is not valid before \d{4}-\S+Z", refused(early.pem + early.key_pem()))
    ended = issued("Ended", begins=-2 * DAY, ends=-DAY)
    below = issued("", ["www.example.org"], by=ended)
    assert refused(below.pem + ended.pem + below.key_pem()).startswith("the chain certificate Ended expired ")
    nameless = issued("www.example.org")
    assert refused(nameless.pem + nameless.key_pem()) == "the certificate has no domain in subjectAltName"
    for key in (
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ):
        odd = issued("", ["www.example.org"], key=key)
        assert refused(odd.pem + odd.key_pem()) == "nap does not support the type of this private key"


def test_garbage_is_refused() -> None:
    key = WWW.key_pem()
    assert refused(b"") == refused(b"\xff" * 5000) == "expected one private key in PEM, got none"
    assert refused(b"x" * (MOST + 1)) == (
        "the certificate, its chain and its key have more than 32768 bytes (router.max_certificate)"
    )
    assert refused(MIDDLE.pem * 10 + WWW.pem + key) == "expected up to 10 certificates, got 11"
    assert refused(key.replace(b"M", b"\x07") + WWW.pem) == "the private key cannot be read"
    assert refused(WWW.pem.replace(b"M", b"\x07") + key) == "a certificate cannot be read"
    assert refused(WWW.pem[:200] + b"\n-----END CERTIFICATE-----\n" + key) == "a certificate cannot be read"
    hostile = issued("\x1b[2Jrm\n", by=ROOT)
    assert "issuer of rm is missing, and" in refused(hostile.pem + WWW.pem + hostile.key_pem())


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
        "the certificate is for victim.example.com, which is not a domain of shop"
    )
    assert (
        told("", "a.example.com", "b.example.com")
        == "the certificate is for a.example.com and 1 more, which is not a domain of shop"
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
