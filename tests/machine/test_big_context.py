"""A build context of 1 GB takes neither memory nor disk of the receiver."""

import subprocess
import sys

import pytest

from tests.nap import HTTPD, ROOT, Nap, Pusher

GIGABYTE = 1 << 30
MOST = 150 * 1024  # KiB

# A process is said to have had the memory of the one that started it, so a small one does that.
MEASURED = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.long
def test_context_of_a_gigabyte_takes_less_than_150_mb_of_memory(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("COPY . /www\n", "").replace("/www", "/etc"))
    with (pusher.repository / "large").open("wb") as large:
        large.truncate(GIGABYTE)
    pusher.git("config", "core.bigFileThreshold", "1m")
    commit = pusher.commit()
    bare = pusher.folder / f"{pusher.app}.git"
    pusher.git("clone", "--quiet", "--bare", str(pusher.repository), str(bare))
    hook = subprocess.run(
        [sys.executable, "-c", MEASURED, str(ROOT / "hooks" / "post-receive")],
        cwd=bare,
        env=nap.environment | {"GIT_DIR": "."},
        input=f"{'0' * 40} {commit} refs/heads/master\n",
        text=True,
        stdout=subprocess.PIPE,
    )
    assert hook.returncode == 0, hook.stdout
    assert "is live" in hook.stdout
    most = int(hook.stdout.splitlines()[-1])
    assert most < MOST, f"{most / 1024:.0f} MB"
    print(f"{most / 1024:.0f} MB")
