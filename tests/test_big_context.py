"""A build context of 1 GB takes neither memory nor disk of the receiver."""

import os
import subprocess

import pytest

from tests.machine import HTTPD, ROOT, Nap, Pusher

pytestmark = pytest.mark.machine

GIGABYTE = 1 << 30
MOST = 150 * 1024  # KiB


def test_context_of_a_gigabyte_takes_less_than_150_mb_of_memory(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("COPY . /www\n", "").replace("/www", "/etc"))
    with (pusher.repository / "large").open("wb") as large:
        large.truncate(GIGABYTE)
    pusher.git("config", "core.bigFileThreshold", "1m")
    commit = pusher.commit()
    bare = pusher.folder / f"{pusher.app}.git"
    pusher.git("clone", "--quiet", "--bare", str(pusher.repository), str(bare))
    hook = subprocess.Popen(
        [str(ROOT / "hooks" / "post-receive")],
        cwd=bare,
        env=nap.environment | {"GIT_DIR": "."},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hook.stdin and hook.stdout
    hook.stdin.write(f"{'0' * 40} {commit} refs/heads/master\n".encode())
    hook.stdin.close()
    said = hook.stdout.read().decode()
    _, status, usage = os.wait4(hook.pid, 0)
    assert status == 0, said
    assert "is live" in said
    assert usage.ru_maxrss < MOST, f"{usage.ru_maxrss / 1024:.0f} MB"
