"""What the tests do as its users do: an operator at a shell, someone who pushes, a client of an app."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from nap_receiver.auth.keys import add_key
from nap_receiver.build.registry import registry_of
from nap_receiver.core.installed import script
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.settings import Settings, load
from nap_receiver.core.supervision import Supervisor
from nap_receiver.engine.daemon import USUAL
from nap_receiver.store.assignments import assignments
from nap_receiver.store.etcd import LARGEST_BYTES, Etcd

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ROOT / ".venv" / "bin" / "nap"

QUICK_SSH = "-o KexAlgorithms=curve25519-sha256"
"""For ssh(1): of what it does to connect, its usual key exchange takes 0.09 s CPU time of 0.1."""

HTTPD = """\
FROM nap/busybox
COPY . /www
EXPOSE 8080
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def runs(command: str) -> str:
    """A Dockerfile whose app is a shell command."""
    return f'FROM nap/busybox\nEXPOSE 8080\nCMD ["sh", "-c", {json.dumps(command)}]\n'


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does, so that it takes down what it has started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def eventually(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for `condition`; the seconds it took. Fails after `seconds`.

    A condition that starts programs would keep a processor from what it waits for, so it rests as long as it ran.
    """
    started = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - started > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(min(max(0.02, now - asked), 0.5))
        asked = time.monotonic()
    return time.monotonic() - started


def lastingly(condition: Callable[[], object], lasting: float, seconds: float, what: str) -> None:
    """Wait until `condition` has held for `lasting` seconds, whenever one looked. Fails after `seconds`."""
    started = held = time.monotonic()
    while True:
        if not condition():
            held = time.monotonic()
        elif time.monotonic() - held > lasting:
            return
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not for {lasting} s within {seconds} s: {what}")
        time.sleep(0.02)


def throughout(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Look for `seconds` whether `condition` holds; fails as soon as it does not.

    For what must not happen, which nothing tells of: the caller says why it would have happened within that time.
    """
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        assert condition(), f"no more after {time.monotonic() - started:.2f} s: {what}"
        time.sleep(0.02)
    assert condition(), f"no more after {seconds} s: {what}"


def read_until(process: "subprocess.Popen[str]", what: str) -> list[str]:
    """What a push says, up to the line that begins with `what`."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.removeprefix("remote: ").rstrip())
        if lines[-1].startswith(what):
            return lines
    raise AssertionError(f"{what!r} was not said: {lines}")


def rest(process: "subprocess.Popen[str]") -> str:
    """What it says from there to its end."""
    said, _ = process.communicate(timeout=60)
    return "\n".join(line.removeprefix("remote: ").rstrip() for line in said.splitlines())


def answer(url: str) -> str:
    """What a GET of `url` answers."""
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


def fill(etcd: Etcd, below: str, number: int, value: object) -> None:
    """Write `number` keys below a prefix, as many at once as etcd takes."""
    at_once = max(1, min(128, LARGEST_BYTES // (2 * len(json.dumps(value)))))
    for start in range(0, number, at_once):
        etcd.write({f"{below}/{i:08}": value for i in range(start, min(number, start + at_once))})


def processes() -> Iterator[tuple[int, int, list[str]]]:
    """Every process there is: its id, its parent's, and its words."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            yield int(folder.name), int(parent), words


def name_of_process(number: int) -> str:
    """Its name (proc(5), /proc/pid/comm); empty where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{number}/comm").read_text().rstrip("\n")
    return ""


def is_script(words: list[str], script: list[str]) -> bool:
    """Whether a process with these words runs a Python script, with all that the script is given."""
    return len(words) > len(script) and "python" in words[0] and words[-len(script) :] == script


@dataclass
class Nap:
    """A single-machine nap, driven by its command."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    command: Path = COMMAND

    @property
    def state(self) -> State:
        return state_at(self.folder)

    @property
    def settings(self) -> Settings:
        return load(self.state, {}).settings

    @property
    def engine_url(self) -> str:
        return self.settings.engine.url or USUAL

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | self.variables | {"NAP_STATE": str(self.folder)}

    def run(self, *words: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`nap …`, by who has the most careless umask; unless `ok` is false it must succeed."""
        done = subprocess.run(
            [str(self.command), *words],
            env=self.environment,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=120,
            umask=0,
        )
        assert not ok or done.returncode == 0, f"nap {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def run_hook(self, bare: Path, commit: str) -> subprocess.CompletedProcess[str]:
        """nap's hook in a repository of anybody's, as if `master` had just been pushed there at this commit."""
        return subprocess.run(
            [str(ROOT / "hooks" / "post-receive")],
            cwd=bare,
            env=self.environment | {"GIT_DIR": "."},
            input=f"{'0' * 40} {commit} refs/heads/master\n",
            text=True,
            capture_output=True,
            timeout=60,
        )

    def docker(self, *words: str) -> str:
        """What docker prints, of the engine that this nap uses."""
        environment = os.environ | {"DOCKER_HOST": self.engine_url, "DOCKER_CONFIG": str(self.state.registry_login)}
        return subprocess.run(
            ["docker", *words], env=environment, text=True, capture_output=True, check=True, timeout=60
        ).stdout.strip()

    def asked_registry(self, path: str, **headers: str) -> requests.Response:
        """What nap's registry answers to a GET of nap's own."""
        with registry_of(self.state, self.settings) as registry:
            return registry.ask("GET", path, headers=headers)

    def import_busybox(self) -> None:
        subprocess.run([str(ROOT / "examples" / "busybox-image.sh"), self.engine_url], check=True, timeout=60)

    def etcd(self) -> Etcd:
        return Etcd(self.settings.etcd)

    def keys(self, prefix: str) -> dict[str, object]:
        """Keys and values below `prefix`."""
        etcd = self.etcd()
        try:
            return {entry.key: entry.value for entry in etcd.below(prefix).entries}
        finally:
            etcd.close()

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.state.run / "supervisor.sock", "the supervisor")

    def process(self, program: str) -> int:
        """The process id of one of nap's own programs; 0 while it does not run."""
        info = self.supervisor.call("getProcessInfo", program)
        return int(info["pid"])

    def answers(self, program: str) -> bool:
        """Whether `nap status` says that a program answers."""
        lines = self.run("status", ok=False).stdout.splitlines()
        return any(line.split()[0] == program and line.split()[2] == "yes" for line in lines if line.strip())

    def containers(self, app: str) -> list[str]:
        """The app's containers on the engine, of this nap, but those that are kept for what they had printed."""
        return self._containers(
            app, *(f"--filter=status={each}" for each in ("created", "restarting", "running", "paused"))
        )

    def _containers(self, app: str, *options: str) -> list[str]:
        listed = self.docker("ps", "--all", *options, "--format", "{{.Names}}").split()
        return sorted(name for name in listed if name.startswith(f"{app}.") and name.endswith(self.state.name))

    def leftovers(self, app: str, release: int) -> list[str]:
        """All that is there of one release of an app that failed, but its record: containers, assignments, keys."""
        containers = self._containers(app)
        return [*(name for name in containers if name.startswith(f"{app}.v{release}.")), *self.runs(app, release)]

    def runs(self, app: str, release: int) -> list[str]:
        """What there is of one release of an app as long as it runs: containers, assignments, keys."""
        mark = f"{app}.v{release}."
        containers = [name for name in self.containers(app) if name.startswith(mark)]
        with closing(self.etcd()) as etcd:
            given = assignments(etcd, self.settings.etcd, self.state.name)
        units = [unit for unit, each in given.items() if unit.startswith(mark) and each.state != "stopped"]
        announcements = list(self.keys(f"/services/{app}/v{release}."))
        exits = list(self.keys(f"/nap/apps/{app}/exits/"))
        lock = list(self.keys(f"/nap/apps/{app}/lock"))
        return containers + units + announcements + exits + lock


@dataclass(frozen=True)
class Pushed:
    """How a `git push` ended: its exit status and what the pusher saw, without `remote: ` and trailing blanks."""

    status: int
    lines: list[str]
    seconds: float

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        """The address that the push printed."""
        return next(line.strip() for line in reversed(self.lines) if line.strip().startswith("http://"))

    @property
    def deploy_seconds(self) -> float:
        """How long the deploy took, without what it waited for."""
        return float(re.findall(r"is live \((\d+\.\d) s\)", self.text)[-1])

    @property
    def trouble(self) -> list[str]:
        return [line[7:] for line in self.lines if line.startswith(" !     ")]


class Pusher:
    """Someone with a key, a repository and an app of their own."""

    def __init__(self, nap: Nap, app: str, folder: Path) -> None:
        self.nap, self.app, self.folder = nap, app, folder
        self.repository = folder / "repository"
        self.repository.mkdir()
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.user = app[-30:].strip("-")
        add_key(nap.state, self.user, key.with_suffix(".pub").read_text(), nap.settings.limits)
        self.ssh = (
            f"ssh -i {key} -o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR "
            f"{QUICK_SSH}"
        )
        self.git("init", "--quiet", "--initial-branch=master")
        self.git("config", "user.email", "someone@example.org")
        self.git("config", "user.name", "Someone")
        self.git("config", "core.sshCommand", self.ssh)
        address = nap.settings.ssh.address
        self.git("remote", "add", "nap", f"ssh://{address}/{app}")

    @property
    def bare(self) -> Path:
        """The app's repository on nap's side."""
        return self.nap.state.repositories / f"{self.app}.git"

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=self.repository, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, f"git {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        """Commit these files' contents (`Dockerfile=…`, `index_html=…`); the commit's name."""
        for name, content in files.items():
            (self.repository / name.replace("_", ".")).write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        return self.git("rev-parse", "HEAD")

    def start_push(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["git", "push", *(words or ("nap", "HEAD:refs/heads/master"))],
            cwd=self.repository,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def push(self, *words: str, seconds: float = 90) -> Pushed:
        """`git push`, of what is checked out to nap's master unless told otherwise."""
        started = time.monotonic()
        process = self.start_push(*words)
        said, _ = process.communicate(timeout=seconds)
        lines = [line.removeprefix("remote: ").rstrip() for line in said.splitlines()]
        return Pushed(process.returncode, lines, time.monotonic() - started)

    def ssh_words(self, *words: str) -> list[str]:
        """`ssh` to nap's host, with a command of nap's."""
        address = self.nap.settings.ssh.address
        return [*shlex.split(self.ssh), "-p", str(address.port), address.host, *words]

    def ssh_command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """How a command over ssh went."""
        return subprocess.run(
            self.ssh_words(*words), text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=90
        )

    def deploying(self) -> int:
        """The process on nap's side that takes this user's push."""
        (process,) = self._sessions()
        return process

    def gates(self) -> set[int]:
        """The processes of the gate that serve this user, and those that sshd started and that wait for them."""
        words = [script("nap-gate"), str(self.nap.state.root), self.user]
        return {number for number, _, theirs in processes() if is_script(theirs, words)} | self._sessions()

    def _sessions(self) -> set[int]:
        """The processes of the gate server that serve this user, which have the user's name in theirs."""
        words, name = [script("nap-gate-server"), str(self.nap.state.root)], f"nap {self.user}"[:15]
        found = [number for number, _, theirs in processes() if is_script(theirs, words)]
        return {number for number in found if name_of_process(number) == name}

    def announcements(self) -> dict[str, object]:
        """What is announced of this app now, by key."""
        return self.nap.keys(f"/services/{self.app}/")
