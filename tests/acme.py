"""A world of its own in which names are public: an authority that speaks ACME, and a router whose ports are 80 and 443.

usage: python -m tests.acme FOLDER CADDY, on a network of its own whose hosts file has `HOSTS`

The authority is another Caddy's, and takes the place of Let's Encrypt: it asks each name for itself, at port 80 or 443.
Prints as JSON what visitors got.
"""

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from cryptography import x509

from nap_receiver.core.installed import script
from nap_receiver.machine.programs import etcd_answers
from nap_receiver.routing.caddy_configuration import CADDY, FRONT, storage_of
from nap_receiver.routing.issuing import certified
from nap_receiver.store.etcd import connect
from tests.machine.test_router_elsewhere import running
from tests.nap import ROOT, Nap, eventually
from tests.regulars import announced, instance

AUTHORITY = "acme-v02.api.letsencrypt.org"
NAMES = ["hello.apps.nap-shops.com", "www.nap-shops.com"]
ASTRAY = "astray.nap-shops.com"
"""Leads to another machine."""

HOSTS = f"127.0.0.1 localhost {' '.join(NAMES)}\n127.0.0.2 {AUTHORITY}\n127.0.0.3 {ASTRAY}\n"

_SETTINGS = """\
[etcd]
address = "127.0.0.1:2379"
[router]
domain = "apps.nap-shops.com"
http = "127.0.0.1:80"
https = "127.0.0.1:443"
"""
_CADDYFILE = f"""\
{{
    admin off
    auto_https disable_redirects
    default_bind 127.0.0.2
    skip_install_trust
}}
{AUTHORITY} {{
    tls internal
    rewrite /directory /acme/local/directory
    acme_server
}}
"""
_PATIENCE_SECONDS = 60


def main() -> None:
    folder, caddy = Path(sys.argv[1]), sys.argv[2]
    nap, authority = Nap(folder / "nap"), folder / "authority"
    for each in (nap.folder, authority):
        each.mkdir()
    (nap.folder / "settings.toml").write_text(_SETTINGS)
    (authority / "Caddyfile").write_text(_CADDYFILE)
    nap.run("router", "--prepare")
    root = authority / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    starter = str(ROOT / "unit_templates" / "caddy.sh")
    environment = nap.environment | {"XDG_CONFIG_HOME": str(authority), "XDG_DATA_HOME": str(authority)}
    with ExitStack() as stack, instance("hello") as app:

        def run(*words: str, **more: str) -> "subprocess.Popen[bytes]":
            return stack.enter_context(running(list(words), environment | more, folder / "said"))

        run("etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error")
        run(caddy, "run", "--config", str(authority / "Caddyfile"))
        eventually(root.exists, _PATIENCE_SECONDS, "the authority is there")
        for program in (CADDY, FRONT):
            start = ["/bin/sh", starter, str(nap.state.run / f"{program}.json"), caddy]
            run(*start, XDG_CONFIG_HOME=str(nap.state.run / program), SSL_CERT_FILE=str(root))
        run(script("nap-router"), str(nap.folder))

        eventually(lambda: etcd_answers(nap.settings.etcd), _PATIENCE_SECONDS, "etcd is there")
        with connect(nap.settings.etcd) as etcd:
            for name in (NAMES[1], ASTRAY):
                etcd.put(f"/nap/domains/{name}", {"app": "hello"})
        announced(nap, "hello", [app.server_port])
        storage = storage_of(nap.state)
        eventually(lambda: certified(storage) >= set(NAMES), _PATIENCE_SECONDS, "both have one before a visitor comes")
        print(json.dumps({name: eventually_visited(name, root) for name in NAMES}))


def eventually_visited(name: str, root: Path) -> dict[str, object]:
    """What a visitor of `name` got as soon as there was a certificate."""
    found: dict[str, object] = {}

    def is_visited() -> bool:
        with suppress(OSError):
            found.update(visited(name, root))
        return bool(found)

    eventually(is_visited, _PATIENCE_SECONDS, f"{name} has a certificate")
    return found


def visited(name: str, root: Path) -> dict[str, object]:
    """Where a visitor of `name` ends who came by plain HTTP, what is there, and who vouches for it."""
    trust = ssl.create_default_context(cafile=str(root))
    with urllib.request.urlopen(f"http://{name}/page", timeout=5, context=trust) as reply:
        url, page = reply.url, reply.read().decode()
    certificate = ssl.get_server_certificate((name, 443), ca_certs=str(root), timeout=5)
    return {"url": url, "page": page, "issuer": _issuer(certificate)}


def _issuer(certificate: str) -> str:
    return x509.load_pem_x509_certificate(certificate.encode()).issuer.rfc4514_string()


if __name__ == "__main__":
    os.umask(0o077)
    main()
