"""What a tenant's container reaches of another's, and how much of the machine it can use."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pusher, answer


@pytest.fixture
def neighbour(nap: Nap, tmp_path: Path) -> Pusher:
    """Somebody else, whose app runs on the same machine and listens on a port that is not published too."""
    folder = tmp_path / "neighbour"
    folder.mkdir()
    pusher = Pusher(nap, "neighbour", folder)
    serve = "httpd -p 7000 -h /www; exec httpd -f -p 8080 -h /www"
    pusher.commit(Dockerfile=HTTPD.partition("CMD")[0] + f"CMD {json.dumps(['sh', '-c', serve])}\n", index_html="mine")
    pushed(pusher)
    return pusher


def shell(pusher: Pusher, line: str) -> "subprocess.CompletedProcess[str]":
    """How a line of shell ended in a container of the pusher's app."""
    return pusher.ssh_command("run", pusher.app, "sh", "-c", shlex.quote(line))


def test_one_tenants_containers_do_not_reach_anothers(nap: Nap, pusher: Pusher, neighbour: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert answer(pushed(pusher).url) == "one"
    (container,) = nap.containers(neighbour.app)
    shape = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = nap.docker("inspect", "--format", shape, container)
    for port in (7000, 8080):
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port}"
        assert nap.docker("exec", container, "sh", "-c", ask).endswith("mine"), "to itself it answers there"
        reached = shell(pusher, ask)
        assert (reached.returncode, reached.stdout) == (1, "")

    assert shell(pusher, "ping -c 1 -W 1 127.0.0.1").returncode == 1, "it makes no packets"
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.capabilities", "net_raw")
    refused = pusher.ssh_command("ps:restart", pusher.app)
    assert refused.returncode == 1
    assert "nap.capabilities: expected names of capabilities(7)" in refused.stdout
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.capabilities", "NET_RAW")
    assert pusher.ssh_command("ps:restart", pusher.app).returncode == 0
    assert shell(pusher, "ping -c 1 -W 1 127.0.0.1").returncode == 0

    many = shell(pusher, "i=0; while [ $i -lt 1500 ]; do sleep 10 & i=$((i + 1)); done; echo all")
    assert "all" not in many.stdout
    assert "fork" in many.stdout + many.stderr
    assert shell(pusher, "grep NoNewPrivs /proc/1/status").stdout.split() == ["NoNewPrivs:", "1"]
