"""Certificates of public names: Caddy gets them by itself, from an authority that asks back over HTTP or TLS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acme import HOSTS, NAMES
from tests.nap import ROOT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network on which names are public")
@pytest.mark.parametrize("caddy", [str(Path(sys.executable).parent / "caddy"), "/usr/bin/caddy"])
def test_public_names_get_their_certificates_by_themselves(caddy: str, short_folder: Path) -> None:
    folder = short_folder / f"acme-{len(caddy)}"
    folder.mkdir()
    hosts = folder / "hosts"
    hosts.write_text(HOSTS)
    with_names = ["sh", "-euc", 'mount --bind "$0" /etc/hosts; exec "$@"', str(hosts)]
    words = [str(ROOT / "tests" / "apart.sh"), *with_names, sys.executable, "-m", "tests.acme", str(folder), caddy]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + (folder / "said").read_text()
    found = json.loads(done.stdout)
    for name in NAMES:
        assert found[name] == {
            "url": f"https://{name}/page",
            "page": "hello",
            "issuer": "CN=Caddy Local Authority - ECC Intermediate",
        }
