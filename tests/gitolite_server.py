"""A gitolite of the tests' own: its home, its sshd, its users, and what they push."""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.nap import COMMAND, QUICK_SSH, Nap, Pusher, eventually

ADMIN = "admin"
_SSHD = """\
ListenAddress {address}
HostKey {home}/sshd/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PidFile {home}/sshd/pid
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={home}
UseDNS no
PrintMotd no
"""


@dataclass
class Gitolite:
    """A gitolite that this account serves below `home`, at an address of its own."""

    home: Path
    address: str
    keys: Path
    """Whose name is the file's."""
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GL_", "NAP_"))}
        self.environment = kept | {"HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}

    @property
    def rc(self) -> Path:
        return self.home / ".gitolite.rc"

    @property
    def repositories(self) -> Path:
        return self.home / "repositories"

    def run(self, *command: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as gitolite's account; unless `ok` is false it must succeed."""
        done = subprocess.run(
            command, cwd=self.home, env=self.environment, input=stdin, text=True, capture_output=True, timeout=60
        )
        assert not ok or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def nap(self, *words: str, nap: Nap, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`nap …` as gitolite's account."""
        return self.run(str(COMMAND), *words, "--state", str(nap.folder), ok=ok)

    def edit_rc(self, *lines: str) -> None:
        """Put lines before the end of the rc file."""
        text = self.rc.read_text()
        end = text.rindex("\n1;") + 1
        self.rc.write_text(text[:end] + "".join(f"{line}\n" for line in lines) + text[end:])

    def configure(self, conf: str) -> None:
        """Have gitolite.conf say this besides who administers it, as a push to gitolite-admin would."""
        (self.home / ".gitolite/conf/gitolite.conf").write_text(f"repo gitolite-admin\n    RW+ = {ADMIN}\n{conf}")
        self.run("gitolite", "compile")
        self.run("gitolite", "trigger", "POST_COMPILE")

    def let_in(self, *users: str) -> None:
        """Give each of these a key, on the server's side."""
        for user in users:
            key = self.keys / user
            self.make_key(key)
            shutil.copy(key.with_suffix(".pub"), self.home / ".gitolite/keydir")
        self.run("gitolite", "trigger", "POST_COMPILE")

    def make_key(self, path: Path) -> None:
        self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))

    def ssh(self, user: str) -> str:
        """How `user` calls ssh."""
        return (
            f"ssh -F none -i {self.keys / user} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no "
            f"-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR {QUICK_SSH}"
        )

    def files(self) -> dict[str, str]:
        """All files below `home` but git's objects and gitolite's logs, each with its mode and what it holds."""
        found = {}
        for path in self.home.rglob("*"):
            if path.is_symlink():
                found[str(path)] = f"-> {path.readlink()}"
            elif path.is_file() and not {"objects", "logs"} & set(path.parts):
                found[str(path)] = f"{path.stat().st_mode:o} {path.read_text(errors='replace')}"
        return {name.removeprefix(f"{self.home}/"): what for name, what in found.items()}


def make(home: Path, address: str = "", *users: str) -> Gitolite:
    """A gitolite with these users besides its administrator, which nobody serves yet."""
    keys = home.with_name(f"{home.name}-keys")
    for folder in (home, keys):
        folder.mkdir()
    gitolite = Gitolite(home, address, keys)
    (home / ".gitconfig").write_text(
        "[init]\n\tdefaultBranch = master\n[user]\n\temail = gitolite@example.org\n\tname = gitolite\n"
    )
    gitolite.make_key(keys / ADMIN)
    gitolite.run("gitolite", "setup", "-pk", str(keys / f"{ADMIN}.pub"))
    if users:
        gitolite.let_in(*users)
    return gitolite


def serve(gitolite: Gitolite) -> None:
    """Start its sshd."""
    folder = gitolite.home / "sshd"
    folder.mkdir()
    gitolite.make_key(folder / "host_key")
    (folder / "config").write_text(_SSHD.format(home=gitolite.home, address=gitolite.address))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    gitolite.run("/usr/sbin/sshd", "-f", str(folder / "config"), "-E", str(folder / "log"))
    eventually((folder / "pid").exists, 10, "sshd runs")


def stop(gitolite: Gitolite) -> None:
    os.kill(int((gitolite.home / "sshd/pid").read_text()), signal.SIGTERM)


class Developer(Pusher):
    """A user of gitolite's, with a repository to push from."""

    def __init__(self, gitolite: Gitolite, user: str, name: str, nap: Nap, folder: Path) -> None:
        # Without what `Pusher` does first: nap's own gate does not know this user.
        self.nap, self.app, self.folder = nap, name.replace("/", "-"), folder
        self.gitolite, self.name = gitolite, name
        self.repository = folder / self.app
        self.repository.mkdir()
        self.git("init", "--quiet", "--initial-branch=master")
        self.git("config", "user.email", "someone@example.org")
        self.git("config", "user.name", "Someone")
        self.git("remote", "add", "nap", f"ssh://{gitolite.address}/{name}")
        self.become(user)

    @property
    def bare(self) -> Path:
        return self.gitolite.repositories / f"{self.name}.git"

    def become(self, user: str) -> None:
        """Push as this user from now on."""
        self.git("config", "core.sshCommand", self.gitolite.ssh(user))
