"""Nobody but nap's account reads or writes what nap keeps, whatever the umask of who calls it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nap import HTTPD, Nap, Pusher
from tests.open_paths import open_paths

NOBODY = 65534


def test_nothing_of_a_nap_is_for_another_account(own_nap: Nap, tmp_path: Path) -> None:
    pusher = Pusher(own_nap, "hello", tmp_path)
    pusher.commit(Dockerfile=HTTPD, index_html="hello")
    assert pusher.push().status == 0
    assert pusher.ssh_command("config:set", pusher.app, "A=secret").returncode == 0
    own_nap.run("domains:add", pusher.app, f"www.{pusher.app}.test")
    # An engine of nap's own sets its umask itself; its socket is for root and the group docker.
    own_engine = (
        own_nap.state.root / "engine",
        *(own_nap.state.run / name for name in ("engine", "docker.pid", "docker.sock")),
    )
    assert list(open_paths(own_nap.state.root, own_engine)) == [], "although umask 0 was that of each nap command"


LOOK = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            os.listdir(path) if os.path.isdir(path) else open(path)
    except PermissionError:
        continue
    print(path)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_nobody_reaches_the_state_directory(nap: Nap) -> None:
    paths = [nap.state.root, *nap.state.root.iterdir(), *nap.state.run.iterdir(), *nap.state.ssh.iterdir()]
    done = subprocess.run([sys.executable, "-c", LOOK, *map(str, paths)], text=True, capture_output=True, check=True)
    assert done.stdout == ""
