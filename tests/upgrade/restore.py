"""Restores what a version of nap has recorded, as on a machine whose checkout was just changed (README.md).

The programs that nap runs are started from the recorded configuration, with the recorded commands. So are the apps.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.core.supervision import Supervisor
from nap_receiver.engine.daemon import make_bridge
from nap_receiver.machine.lifecycle import NOT_STARTED
from tests import gitolite_server
from tests.conftest import free_address
from tests.gitolite_server import Gitolite
from tests.nap import Nap, eventually
from tests.upgrade.placeholders import USERS, digest_of_body, filled, values_of
from tests.upgrade.record import RECORDS, User, link_hook, new_ports

VERSIONS = sorted(path.name for path in RECORDS.iterdir() if path.is_dir() and path.name[0].isdigit())

_CONF = "repo team/wiki\n    RW+ = carol\n    option nap = deploy\n"


@dataclass(frozen=True)
class Restored:
    """A nap as an earlier version left it, with people who use it."""

    version: str
    nap: Nap
    alice: User
    bob: User
    plain: Path
    """The repository with nap's hook, outside of the state directory."""
    gitolite: Gitolite
    """carol may push to `team/wiki`, which nobody has pushed to."""


def texts(version: str) -> Iterator[tuple[Path, str]]:
    """The files of a record, each with its path below it."""
    for path in sorted((RECORDS / version).rglob("*")):
        if path.is_file():
            yield path.relative_to(RECORDS / version), path.read_text()


def keys(version: str) -> dict[str, str]:
    """The recorded keys of etcd with their values, as they were written."""
    lines = (RECORDS / version / "etcd.txt").read_text().splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def restore(version: str, folder: Path) -> Restored:
    """Restore the record below `folder`, with the programs and the apps up."""
    nap, ports = Nap(folder / "state"), new_ports()
    folder.mkdir()
    nap.folder.mkdir(mode=0o700)
    users = [User(nap, user, "shop", folder / user, f"127.0.0.1:{ports['ssh']}") for user in USERS]
    values = values_of(nap, ports, {each.user: each.key for each in users})
    units = {}
    for path, text in texts(version):
        target = folder / path
        if path.parts[:2] == ("state", "units"):
            units[target] = text
        elif path.name == "fast-export":
            _run("git", "--git-dir", str(target.parent), "fast-import", "--quiet", stdin=text.encode())
        elif path.parts[0] in {"state", "plain.git"}:
            if path.name == "HEAD":
                _run("git", "init", "--quiet", "--bare", "--template=", str(target.parent))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(text, values))
            target.chmod(0o600)
    link_hook(folder / "plain.git")
    for name in ("units", "etcd", "programs/apps"):
        (nap.folder / name).mkdir(parents=True)
    _start(nap)
    try:
        values |= _images(version, folder, nap, values)
        values |= _etcd(version, nap, values)
        for target, text in units.items():
            target.write_text(filled(text, values))
        scheduler = Supervisor(nap.state.run / "scheduler.sock", "the scheduler of before")
        [[added, _, _]] = scheduler.call("reloadConfig")
        for unit in added:
            scheduler.call("addProcessGroup", unit)
        gitolite = _gitolite(version, folder / "gitolite", values)
    except BaseException:
        end(nap)
        raise
    for each in users:
        each.git("pull", "--quiet", str(each.bare), "master")
    return Restored(version, nap, users[0], users[1], folder / "plain.git", gitolite)


def end(nap: Nap) -> None:
    """Stop all that `nap` runs."""
    nap.run("down", ok=False)


def _run(*words: str, stdin: bytes = b"", **variables: str) -> bytes:
    """What a program prints, which must succeed."""
    done = subprocess.run(words, input=stdin, env=os.environ | variables, capture_output=True, timeout=60, cwd="/")
    assert done.returncode == 0, f"{' '.join(words)}: {(done.stdout + done.stderr).decode()}"
    return done.stdout


def _start(nap: Nap) -> None:
    """Start the programs as the recorded configuration says, on an etcd and a registry without data."""
    make_bridge(nap.state)
    nap.state.ssh.mkdir(exist_ok=True)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(nap.state.ssh / "host_key"))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    _run(sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(nap.state.run / "supervisord.conf"))
    try:
        eventually(lambda: _answers(nap), 30, "the programs of before answer")
    except BaseException:
        end(nap)
        raise


def _answers(nap: Nap) -> bool:
    """Whether all programs answer but those that this version has added, which `nap up` starts."""
    rows = json.loads(nap.run("status", "--json", ok=False).stdout)
    return bool(rows) and all(row["answers"] or row["state"] == NOT_STARTED for row in rows)


def _etcd(version: str, nap: Nap, values: dict[str, str]) -> dict[str, str]:
    """Write the recorded keys; the digests of the bodies among them, by placeholder."""
    variables = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": nap.state.etcd_url}
    bodies = {}
    for key, recorded in keys(version).items():
        value = filled(recorded, values)
        if body := re.search(r"\{(body [^}]+)\}", value):
            bodies[body[1]] = digest_of_body(value)
            value = filled(value, bodies)
        _run("etcdctl", "put", key, stdin=value.encode(), **variables)
    return bodies


def _images(version: str, folder: Path, nap: Nap, values: dict[str, str]) -> dict[str, str]:
    """Build and push the images of all releases again; their digests by placeholder."""
    nap.import_busybox()
    images = {}
    for value in [value for key, value in keys(version).items() if "/releases/" in key]:
        app, commit, image = (json.loads(value)[name] for name in ("app", "commit", "image"))
        name = filled(image.partition("@")[0], values)
        placeholder = image.partition("@")[2].strip("{}")
        if placeholder in images:
            continue
        places = (folder / f"{app}.git", nap.state.repositories / f"{app}.git")
        bare = next(path for path in places if path.exists())
        tree = _run("git", "--git-dir", str(bare), "archive", commit)
        words = ["build", "--quiet", "--label", f"nap.app={app}", "--tag", f"{name}:{commit}", "-"]
        _run("docker", *words, stdin=tree, DOCKER_HOST=nap.engine_url, DOCKER_BUILDKIT="0")
        nap.docker("push", "--quiet", f"{name}:{commit}")
        pushed = nap.docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", f"{name}:{commit}")
        images[placeholder] = pushed.partition("@")[2]
    return images


def _gitolite(version: str, home: Path, values: dict[str, str]) -> Gitolite:
    """A gitolite as the recorded version installed nap in it; nobody serves it yet."""
    gitolite = gitolite_server.make(home, free_address(), "carol")
    record = RECORDS / version / "gitolite"
    gitolite.edit_rc(*(record / "rc").read_text().splitlines())
    shutil.copytree(record / "local", home / "local", dirs_exist_ok=True)
    for path in (home / "local").rglob("*"):
        if path.is_file():
            path.write_text(filled(path.read_text(), values))
    gitolite.run("gitolite", "setup", "--hooks-only")
    gitolite.configure(_CONF)
    return gitolite
