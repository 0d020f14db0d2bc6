"""Records a version of nap: python -m tests.upgrade.record (README.md)."""

import base64
import datetime
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests import gitolite_server
from tests.conftest import free_address
from tests.issued import DAY, issued
from tests.nap import COMMAND, HTTPD, QUICK_SSH, ROOT, Nap, Pusher
from tests.upgrade.placeholders import USERS, Values, digest_of_body, emptied, values_of

RECORDS = Path(__file__).parent

SETTINGS = """\
# Written by hand.
[registry]
address = "127.0.0.1:{port registry}"

[ssh]
address = "127.0.0.1:{port ssh}"

[router]
http = "127.0.0.1:{port http}"
https = "127.0.0.1:{port https}"

[deploy]
grace = 5
keep_releases = 5

[limits]
keys = 7
"""
VARIABLES = {"NAP_DEPLOY_DRAIN": "1"}
"""What `nap up` finds in its environment."""

GREETING = 'says "hello", costs $5, 100 % grün'
PROCFILE = "web: exec httpd -f -p 8080 -h /www\nworker: exec tail -f /dev/null\n"
CHECKS = {
    "healthchecks": {
        "worker": [{"type": "startup", "uptime": 1}],
        "web": [{"type": "startup", "command": ["test", "-f", "/www/index.html"]}],
    }
}
_YEARS = 100 * 365 * DAY

_ELSEWHERE = {"engine", "etcd", "registry", "programs"}
"""Folders of the state directory whose data are not nap's."""


class User(Pusher):
    """Someone with a key, which nobody has let in yet, and a repository to push `app` from."""

    def __init__(self, nap: Nap, user: str, app: str, folder: Path, address: str) -> None:
        # Without what `Pusher` does first: it lets the user in.
        self.nap, self.user, self.app, self.folder = nap, user, app, folder
        self.repository = folder / "repository"
        self.repository.mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        self.ssh = (
            f"ssh -i {folder}/key -o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new "
            f"-o LogLevel=ERROR {QUICK_SSH}"
        )
        self.git("init", "--quiet", "--initial-branch=master")
        self.git("config", "user.email", f"{user}@example.org")
        self.git("config", "user.name", user)
        self.git("config", "core.sshCommand", self.ssh)
        self.git("remote", "add", "nap", f"ssh://{address}/{app}")

    @property
    def key(self) -> str:
        """The public key, as `type base64`."""
        return " ".join((self.folder / "key.pub").read_text().split()[:2])


def new_ports() -> dict[str, str]:
    """A free port by setting, for `SETTINGS`."""
    return {name: free_address().rpartition(":")[2] for name in ("registry", "ssh", "http", "https")}


def main() -> None:
    """Record this version; its folder must not be there yet."""
    target = RECORDS / version("nap")
    target.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    nap = Nap(folder / "state", VARIABLES)
    try:
        values = _live(nap, new_ports())
        _write(nap, values, target)
    finally:
        nap.run("down", ok=False)
        shutil.rmtree(folder)


def _live(nap: Nap, ports: Values) -> dict[str, str]:
    """Have an operator and two users use `nap`; the values of the placeholders in what it has written then."""
    nap.folder.mkdir(mode=0o700)
    settings = SETTINGS
    for name, port in ports.items():
        settings = settings.replace(f"{{port {name}}}", port)
    nap.state.settings_file.write_text(settings)
    nap.run("up")
    nap.import_busybox()
    address = f"127.0.0.1:{ports['ssh']}"
    alice, bob = users = [User(nap, user, "shop", nap.folder.parent / user, address) for user in USERS]
    for each in users:
        nap.run("keys:add", each.user, stdin=f"{each.key} {each.user}@laptop")

    alice.commit(Dockerfile=HTTPD, index_html="one", Procfile=PROCFILE, app_json=json.dumps(CHECKS))
    _pushed(alice)
    for words in (
        ("access:add", "shop", "bob", "push"),
        ("config:set", "shop", f"GREETING={GREETING}", "LINES=one\ntwo"),
        ("ps:scale", "shop", "web=2"),
        ("resource:limit", "shop", "--process-type", "web", "--memory", "64m"),
        ("domains:add", "shop", "www.shop.test", "*.shop.test"),
    ):
        nap.run(*words)
    begins = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) - datetime.datetime.now(datetime.UTC)
    brought = issued("www.shop.test", ["www.shop.test"], begins=begins, ends=_YEARS)
    nap.run("certs:add", "shop", stdin=(brought.pem + brought.key_pem()).decode())
    bob.git("pull", "--quiet", str(alice.bare), "master")
    bob.commit(Procfile="web: exit 3\n")
    assert bob.push().status == 1
    bob.commit(Procfile=PROCFILE, index_html="two")
    _pushed(bob)

    for more in (
        ("apps:create", "early"),
        ("access:add", "early", "bob", "owner"),
        ("config:set", "early", "EARLY=yes"),
        ("ps:scale", "early", "web=2"),
        ("resource:limit", "early", "--cpu", "0.5"),
        ("ports:set", "early", "8080"),
        ("domains:add", "early", "early.test"),
    ):
        nap.run(*more)

    plain = nap.folder.with_name("plain.git")
    subprocess.run(["git", "init", "--quiet", "--bare", "--template=", str(plain)], check=True)
    link_hook(plain)
    _git(plain, "config", "nap.state", str(nap.folder))
    bob.commit(index_html="plain", Procfile="", app_json="{}")
    bob.git("push", "--quiet", str(plain), "HEAD:refs/heads/master")

    gitolite = gitolite_server.make(nap.folder.with_name("gitolite"))
    gitolite.nap("gitolite:install", nap=nap)
    return values_of(nap, ports, {each.user: each.key for each in users})


def link_hook(bare: Path) -> None:
    """Install the hook by hand, as the README of 0.1.0 says: with a symbolic link."""
    (bare / "hooks").mkdir(exist_ok=True)
    (bare / "hooks/post-receive").symlink_to(ROOT / "hooks/post-receive")


def _pushed(user: User) -> None:
    done = user.push()
    assert done.status == 0, done.text


def _write(nap: Nap, values: dict[str, str], target: Path) -> None:
    """Write all that `nap` has written into `target`."""
    keys = dict(_keys(nap))
    images: dict[str, str] = {}
    bodies: dict[str, str] = {}
    for key, value in keys.items():
        if re.search("/releases/", key):
            images.setdefault(json.loads(value)["image"].partition("@")[2], f"image {len(images) + 1}")
        if re.search("/containers/", key):
            digest = json.loads(value)["Labels"]["nap.body"]
            assert digest == digest_of_body(value)
            bodies[digest] = f"body {key}"
    values |= {name: value for value, name in [*images.items(), *bodies.items()]}

    lines = [f"{key} {value}\n" for key, value in keys.items()]
    (target / "etcd.txt").write_text(emptied("".join(lines), values))
    folder = nap.folder.parent
    (target / "bin").mkdir()
    (target / "bin/nap").write_text(emptied(COMMAND.read_text(), values))
    for path in [*_files(nap.folder), folder / "plain.git/HEAD", folder / "plain.git/config"]:
        copy = target / emptied(str(path.relative_to(folder)), values)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(emptied(path.read_text(), values))
    for bare in [folder / "plain.git", *nap.state.repositories.glob("*.git")]:
        if commits := _git(bare, "fast-export", "--all"):
            (target / bare.relative_to(folder) / "fast-export").write_text(commits)
    local = target / "gitolite/local"
    shutil.copytree(folder / "gitolite/local", local)
    for path in local.rglob("*"):
        if path.is_file():
            path.write_text(emptied(path.read_text(), values))
    rc = (folder / "gitolite/.gitolite.rc").read_text()
    (target / "gitolite/rc").write_text(re.findall(r"^# nap: begin .*?^# nap: end\n", rc, re.MULTILINE | re.DOTALL)[0])


def _files(state: Path) -> Iterator[Path]:
    """The files of a state directory that nap wrote."""
    for path in sorted(state.rglob("*")):
        parts = path.relative_to(state).parts
        if parts[0] in _ELSEWHERE or parts[:2] == ("run", "engine") or not path.is_file() or path.is_symlink():
            continue
        if path.suffix in {".pid", ".lock"} or path.name.startswith("host_key"):
            continue
        if parts[0] in {"caddy", "front"} and path.name != "autosave.json":
            continue
        if parts[0] == "repositories" and {"objects", "refs", "packed-refs", "logs"} & set(parts):
            continue
        yield path


def _keys(nap: Nap) -> Iterator[tuple[str, str]]:
    """The keys and values of etcd that are under no lease, as they were written."""
    words = ["etcdctl", "get", "/", "--prefix", "--write-out=json"]
    variables = os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": nap.state.etcd_url}
    found: dict[str, Any] = json.loads(subprocess.check_output(words, env=variables))
    for each in found["kvs"]:
        if not each.get("lease"):
            yield tuple(base64.b64decode(each[name]).decode() for name in ("key", "value"))  # type: ignore[misc]


def _git(bare: Path, *words: str) -> str:
    return subprocess.check_output(["git", "--git-dir", str(bare), *words], text=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
