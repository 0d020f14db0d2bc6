"""How long from `git push` to an answering address, beside the same steps by hand in the same run. `make bench`."""

import getpass
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nap_receiver.programs import account_is_locked, path_of
from tests.conftest import free_address, fresh_nap
from tests.machine import HTTPD, Nap, Pusher, answer

RUNS = 10


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    nap = fresh_nap(folder / "state")
    nap.run("up")
    try:
        nap.import_busybox()
        (folder / "pusher").mkdir()
        pusher = Pusher(nap, "bench", folder / "pusher")
        pusher.commit(Dockerfile=HTTPD, index_html="0")
        with plain_ssh(pusher, folder) as remote:
            by_hand(nap, pusher, remote, "0")
            with_nap(pusher, "0")
            hand = timed(lambda number: by_hand(nap, pusher, remote, f"hand {number}"))
            ours = timed(lambda number: with_nap(pusher, f"nap {number}"))
            silent = timed(lambda number: branch_only(pusher, number))
            again = timed(lambda number: up_to_date(pusher))
    finally:
        nap.run("down")
        shutil.rmtree(folder)
    print_table(
        f"seconds, of {RUNS}",
        {
            "git push nap master, to its first answer": ours,
            "by hand: push, archive | build, push, run": hand,
            "git push of a branch that does not deploy": silent,
            "git push of what runs already": again,
        },
    )


def print_table(title: str, rows: Mapping[str, Sequence[float]]) -> None:
    """The least, the median and the most of each row."""
    width = max(map(len, (title, *rows)))
    print(f"{title:{width}}     min  median     max")
    for what, seconds in rows.items():
        print(f"{what:{width}}  {min(seconds):6.2f}  {statistics.median(seconds):6.2f}  {max(seconds):6.2f}")


def timed(act: Callable[[int], None]) -> list[float]:
    """The seconds of each run."""
    found = []
    for number in range(RUNS):
        started = time.monotonic()
        act(number)
        found.append(time.monotonic() - started)
    return found


def with_nap(pusher: Pusher, page: str) -> None:
    pusher.commit(index_html=page)
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == page


def branch_only(pusher: Pusher, number: int) -> None:
    assert pusher.push("nap", f"HEAD:refs/heads/other-{number}").status == 0


def up_to_date(pusher: Pusher) -> None:
    assert "already runs" in pusher.push().text


def by_hand(nap: Nap, pusher: Pusher, remote: str, page: str) -> None:
    """What someone would type, without waiting between the steps."""
    pusher.commit(index_html=page)
    subprocess.run(["git", "push", "--quiet", remote, "HEAD:refs/heads/master"], cwd=pusher.repository, check=True)
    tag = f"{nap.settings.registry.address}/by-hand:{pusher.git('rev-parse', 'HEAD')}"
    environment = os.environ | {"DOCKER_HOST": nap.engine_url, "DOCKER_BUILDKIT": "0"}

    def sh(script: str) -> str:
        done = subprocess.run(["sh", "-ec", script], env=environment, text=True, capture_output=True, check=True)
        return done.stdout.strip()

    sh(f"git --git-dir={pusher.folder.parent / 'plain.git'} archive master | docker build --quiet --tag {tag} -")
    sh(f"docker push --quiet {tag}")
    container = sh(f"docker run --detach --rm --init --publish 127.0.0.1::8080 {tag}").splitlines()[-1]
    ports = json.loads(sh(f"docker inspect --format '{{{{json .NetworkSettings.Ports}}}}' {container}"))
    url = f"http://127.0.0.1:{ports['8080/tcp'][0]['HostPort']}"
    while True:
        try:
            assert answer(url) == page
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    subprocess.Popen(["docker", "rm", "--force", container], env=environment, stdout=subprocess.DEVNULL).wait()


@contextmanager
def plain_ssh(pusher: Pusher, folder: Path) -> Iterator[str]:
    """A bare repository without hooks behind an OpenSSH server of its own; the URL to push to."""
    bare = folder / "plain.git"
    pusher.git("init", "--quiet", "--bare", str(bare))
    shutil.copy(pusher.folder / "key.pub", folder / "authorized")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host")], check=True)
    address = free_address()
    options = {
        "ListenAddress": address,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UseDNS": "no",
        "UsePAM": "yes" if account_is_locked() else "no",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    server = subprocess.Popen(
        [path_of("sshd"), "-D", "-f", "/dev/null", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"ssh://{getpass.getuser()}@{address}{bare}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
