"""How long from `git push` to an answering address, beside the same steps by hand in the same run. `make bench`."""

import getpass
import json
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from nap_receiver.build.asked import Build
from nap_receiver.build.builder import builder_of
from nap_receiver.core.channel import Channel
from nap_receiver.core.installed import path_of
from nap_receiver.engine.client import engine_at
from nap_receiver.git.checkout import check_out
from nap_receiver.machine.programs import account_is_locked
from tests.conftest import free_address, fresh_nap
from tests.nap import HTTPD, Nap, Pusher, answer, end_in_order
from tests.repositories import Repository
from tests.visitors import visitors

RUNS = 7
MANY = 10_000
APPS, INSTANCES = 200, 5
HOW = ("by nap", "by hand: git archive | docker build -")
CONTEXTS = {"1,300 files of 32 kB": (1300, 32 << 10), "20,000 files of 500 bytes": (20_000, 500)}
"""Builds of so many files of so many bytes each."""
KINDS = ("git push that deploys nothing", "git push of what runs already", f"git push of {MANY:,} refs")


def main() -> None:
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    nap = fresh_nap(folder / "state")
    try:
        nap.run("up")
        nap.import_busybox()
        (folder / "pusher").mkdir()
        pusher = Pusher(nap, "bench", folder / "pusher")
        pusher.commit(Dockerfile=HTTPD, index_html="0")
        with plain_ssh(pusher, folder) as remote:
            by_hand(nap, pusher, remote, "0")
            with_nap(pusher, "0")
            hand = timed(lambda number: by_hand(nap, pusher, remote, f"hand {number}"))
            ours = timed(lambda number: with_nap(pusher, f"nap {number}"))
            front_door = at_the_front_door(pusher, remote)
            listed = json.loads(pusher.ssh_command("releases", pusher.app, "--json").stdout)
            last, one_before = sorted((each["release"] for each in listed), key=lambda name: -int(name[1:]))[:2]
            contexts = builds_of_contexts(nap, folder)
            back = [rolled_back(pusher, (one_before, last)[number % 2]) for number in range(RUNS)]
            day_two = commands_over_ssh(nap, pusher, remote)
            unanswered = changes_under_way(nap, pusher)
    finally:
        nap.run("down")
        shutil.rmtree(folder)
    print_table(
        f"seconds, of {RUNS}",
        {
            "git push nap master, to its first answer": ours,
            "by hand: push, archive | build, push, run": hand,
        },
    )
    print_table(f"seconds, of {RUNS}", contexts)
    for what in CONTEXTS:
        ours, hand = (contexts[f"{what}, {how}"] for how in HOW)
        print(f"{what}: {statistics.median(ours) / statistics.median(hand):.2f} times the seconds by hand")
    print_table(f"seconds over ssh, of {RUNS}", front_door)
    print_table(f"seconds over ssh, {APPS} apps with {INSTANCES} instances each", day_two)
    print_table(f"seconds over ssh, of {RUNS}", {"rollback, to the first answer of the old code": back})
    print(unanswered)
    figures = list(front_door.values())
    for what, over, plain in zip(KINDS, figures[::2], figures[1::2], strict=True):
        print(f"{what}: {statistics.median(over) - statistics.median(plain):.3f} s more than to a plain repository")


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


def builds_of_contexts(nap: Nap, folder: Path) -> dict[str, list[float]]:
    """From a commit of which one file has changed to its image, by nap and by docker's own command in turn."""
    found: dict[str, list[float]] = {f"{what}, {how}": [] for what in CONTEXTS for how in HOW}
    with (
        engine_at(nap.engine_url) as engine,
        Path(os.devnull).open("wb") as nowhere,
        Channel(nowhere.fileno()) as channel,
    ):
        settings = nap.settings  # which a deploy has loaded before
        builder = builder_of(engine, nap.state, settings)
        for number, (what, (files, size)) in enumerate(CONTEXTS.items()):
            repository = Repository(folder / f"context-{number}.git")
            content: dict[str | bytes, bytes | str] = {"Dockerfile": "FROM nap/busybox\nCOPY . /app\n"}
            content |= {f"{each % 100}/{each}": os.urandom(size) for each in range(files)}
            for run in range(2 * RUNS):
                commit = repository.commit(content | {"changed": str(run)})
                started = time.monotonic()
                if run % 2:
                    command = f"git --git-dir={repository.path} archive {commit} | docker build --quiet --tag hand -"
                    subprocess.run(["sh", "-ec", command], env=by_cli(nap), capture_output=True, check=True)
                else:
                    with check_out(repository.path, commit, "bench", settings.commit) as checkout:
                        builder.build(Build("bench", "ours:1", checkout, settings.build), channel)
                found[f"{what}, {HOW[run % 2]}"].append(time.monotonic() - started)
    return found


def by_cli(nap: Nap) -> dict[str, str]:
    """The environment in which docker's command builds with BuildKit on nap's engine."""
    environment = os.environ | {"DOCKER_HOST": nap.engine_url, "DOCKER_BUILDKIT": "1"}
    # Debian 12's command brings BuildKit's client; later ones want a package for it.
    return environment | {"DOCKER_CONFIG": str(nap.state.registry_login), "PATH": f"/usr/bin:{os.environ['PATH']}"}


def at_the_front_door(pusher: Pusher, remote: str) -> dict[str, list[float]]:
    """Pushes that build nothing, to nap and to a plain bare repository in turn."""
    many = "".join(f"create refs/tags/many/{number} HEAD\n" for number in range(MANY))
    subprocess.run(["git", "update-ref", "--stdin"], cwd=pusher.repository, input=many, text=True, check=True)
    specs = dict(
        zip(
            KINDS,
            ("HEAD:refs/heads/other-{}", "HEAD:refs/heads/master", "refs/tags/many/*:refs/tags/many-{}/*"),
            strict=True,
        )
    )
    remotes = {"nap": pusher.git("remote", "get-url", "nap"), "a plain repository": remote}
    found: dict[str, list[float]] = {f"{what}, to {name}": [] for what in KINDS for name in remotes}
    for what, spec in specs.items():
        for number in range(RUNS):
            for name, url in remotes.items():
                pushed = pusher.push(url, spec.format(number))
                assert pushed.status == 0, pushed.text
                assert name != "nap" or what != KINDS[1] or "already runs" in pushed.text
                found[f"{what}, to {name}"].append(pushed.seconds)
                if what == KINDS[2]:  # as many refs before each push
                    forget(pusher.bare if name == "nap" else pusher.folder.parent / "plain.git", number)
    return found


def rolled_back(pusher: Pusher, release: str) -> float:
    """The seconds of a `rollback` over ssh until the address answers that it prints; what it was before goes later."""
    started = time.monotonic()
    with subprocess.Popen(
        pusher.ssh_words("rollback", pusher.app, release), stdout=subprocess.PIPE, text=True
    ) as going:
        assert going.stdout
        address = next(words[-1] for line in going.stdout if (words := line.split())[1:2] == ["answers"])
        answer(f"http://{address}")
        seconds = time.monotonic() - started
        going.communicate()
    assert going.returncode == 0
    return seconds


def commands_over_ssh(nap: Nap, pusher: Pusher, remote: str) -> dict[str, list[float]]:
    """Commands that list something, with many other apps in etcd, in turn with `ssh host true`."""
    etcd = nap.etcd()
    for app in (f"other-{number}" for number in range(APPS)):
        root = nap.settings.etcd.root_of(app)
        for key, value in nap.keys(f"{nap.settings.etcd.root_of(pusher.app)}/").items():
            etcd.put(key.replace(nap.settings.etcd.root_of(pusher.app), root), value)
        for index in range(1, INSTANCES + 1):
            etcd.put(f"/services/{app}/v1.web.{index}", {"host": "10.0.0.1", "port": 1, "ports": {}, "release": 1})
    etcd.close()
    plain = urlsplit(remote)
    host = [*shlex.split(pusher.ssh), "-p", str(plain.port), f"{plain.username}@{plain.hostname}", "true"]
    asked = {f"{name} {pusher.app}": pusher.ssh_words(name, pusher.app) for name in ("ps", "releases", "config")}
    found: dict[str, list[float]] = {what: [] for what in ("ssh host true", *asked)}
    for _ in range(RUNS):
        for what, words in {"ssh host true": host, **asked}.items():
            started = time.monotonic()
            subprocess.run(words, check=True, capture_output=True)
            found[what].append(time.monotonic() - started)
    return found


def changes_under_way(nap: Nap, pusher: Pusher) -> str:
    """10 redeploys, 10 changes of a variable, 5 rollbacks and 10 scalings while 50 people a second ask; how it went."""

    def command(*words: str) -> None:
        done = pusher.ssh_command(words[0], pusher.app, *words[1:])
        assert done.returncode == 0, done.stdout

    with visitors(nap, pusher.app) as visits:
        for number in range(10):
            with_nap(pusher, f"redeployed {number}")
        for number in range(10):
            command("config:set", f"NUMBER={number}")
        for _ in range(5):
            command("rollback")
        for count in (2, 3, 4, 3, 1) * 2:
            command("ps:scale", f"web={count}")
    return f"requests meanwhile: {visits.asked}, failed: {len(visits.failed)} {visits.failed[:5] or ''}"


def forget(bare: Path, number: int) -> None:
    """Delete the many refs that a push has brought."""
    listed = subprocess.run(
        ["git", f"--git-dir={bare}", "for-each-ref", "--format=delete %(refname)", f"refs/tags/many-{number}"],
        capture_output=True,
        check=True,
    )
    subprocess.run(["git", f"--git-dir={bare}", "update-ref", "--stdin"], input=listed.stdout, check=True)


def by_hand(nap: Nap, pusher: Pusher, remote: str, page: str) -> None:
    """What someone would type, without waiting between the steps."""
    pusher.commit(index_html=page)
    subprocess.run(["git", "push", "--quiet", remote, "HEAD:refs/heads/master"], cwd=pusher.repository, check=True)
    tag = f"{nap.settings.registry.address}/by-hand:{pusher.git('rev-parse', 'HEAD')}"
    environment = by_cli(nap)

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
        "SetEnv": "SHLVL=1",  # as nap's own
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
