"""The gits that people push with: each is a program of its own here, with the exit status that its user would see."""

import os
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.nap import ROOT, Pushed, Pusher

NICKNAME = "nap-of-the-tests"
"""What a pusher's ssh configuration calls nap's machine."""


@dataclass(frozen=True)
class Client(ABC):
    """A git that pushes and clones over ssh."""

    name: str
    shows_why: bool = True
    """Whether its user sees what nap says in a push that fails, and not only the line that ends it. JGit keeps it for
    the end, and throws it away when the push fails; and of a refusal it often shows its own stack alone."""
    hears_of_what_is_there: bool = True
    """Whether its user sees how a push of what is there already ends. Most have nothing to send then, and what is left
    to listen to is ssh: dulwich does not, JGit does for a quarter of a second. libgit2 sends it all the same."""
    reads_ssh_configuration: bool = True

    def push(self, pusher: Pusher, *refspecs: str, to: str = "", options: Sequence[str] = ()) -> Pushed:
        """Push to the URL `to`, that of the pusher's app unless told otherwise."""
        return self._run(self._push(to or url(pusher), refspecs, options), pusher)

    def clone(self, pusher: Pusher, source: str, folder: Path) -> Pushed:
        return self._run(self._clone(source, folder), pusher)

    @abstractmethod
    def _push(self, to: str, refspecs: Sequence[str], options: Sequence[str]) -> list[str]:
        """The command that pushes these refs to the URL `to`."""

    @abstractmethod
    def _clone(self, source: str, folder: Path) -> list[str]:
        """The command that clones the URL `source` into `folder`."""

    def _run(self, words: list[str], pusher: Pusher, **variables: str) -> Pushed:
        ssh = str(_ssh(pusher))
        ours = {"GIT_SSH_COMMAND": ssh, "GIT_SSH": ssh, "KEY": str(pusher.folder / "key")}
        started = time.monotonic()
        done = subprocess.run(
            words,
            cwd=pusher.repository,
            env=os.environ | ours | variables,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=90,
        )
        lines = [line.removeprefix("remote: ").rstrip() for line in done.stdout.splitlines()]
        return Pushed(done.returncode, lines, time.monotonic() - started)


@dataclass(frozen=True)
class Git(Client):
    """The git command, which speaks the protocol in several versions (gitprotocol-v2(5))."""

    version: int = 2

    def version_spoken(self, pusher: Pusher) -> int:
        """The version that the other side speaks with it, of which 0 does not say its name."""
        words = [*self._git, "ls-remote", url(pusher)]
        done = self._run(words, pusher, GIT_TRACE_PACKET="1")
        assert done.status == 0, done.text
        said = re.search(r"< version (\d)", done.text)
        return int(said[1]) if said else 0

    def _push(self, to: str, refspecs: Sequence[str], options: Sequence[str]) -> list[str]:
        asked = [f"--push-option={option}" for option in options]
        return [*self._git, "push", *asked, to, *refspecs]

    def _clone(self, source: str, folder: Path) -> list[str]:
        return [*self._git, "clone", "--quiet", source, str(folder)]

    @property
    def _git(self) -> list[str]:
        return ["git", "-c", f"protocol.version={self.version}"]


@dataclass(frozen=True)
class Library(Client):
    """A library with a git of its own, in a program that uses it."""

    def _push(self, to: str, refspecs: Sequence[str], options: Sequence[str]) -> list[str]:
        return [*self._program, "push", to, *refspecs, *(word for option in options for word in ("-o", option))]

    def _clone(self, source: str, folder: Path) -> list[str]:
        return [*self._program, "clone", source, str(folder)]

    @property
    def _program(self) -> list[str]:
        return [sys.executable, "-P", str(ROOT / "tests" / "client_libraries.py"), self.name]


@dataclass(frozen=True)
class JGit(Client):
    """JGit's command. The one that Debian 12 installs does not find its libraries, so Java is told where they are."""

    def _push(self, to: str, refspecs: Sequence[str], options: Sequence[str]) -> list[str]:
        return [*self._jgit, "push", *(word for option in options for word in ("-t", option)), to, *refspecs]

    def _clone(self, source: str, folder: Path) -> list[str]:
        return [*self._jgit, "clone", source, str(folder)]

    @property
    def _jgit(self) -> list[str]:
        return ["java", "-XX:TieredStopAtLevel=1", "-cp", _CLASS_PATH, "org.eclipse.jgit.pgm.Main"]


CLIENTS = [
    Git("git-v0", version=0),
    Git("git-v2", version=2),
    Library("dulwich", hears_of_what_is_there=False),
    Library("pygit2", reads_ssh_configuration=False),
    JGit("jgit", shows_why=False, hears_of_what_is_there=False),
]

_LIBRARIES = [
    *(f"org.eclipse.jgit{part}" for part in ("", ".pgm", ".archive", ".lfs", ".ui", ".http.apache")),
    *("args4j", "commons-compress", "commons-logging", "httpclient", "httpcore", "JavaEWAH", "jsch"),
    *("slf4j-api", "slf4j-nop"),
]
_CLASS_PATH = ":".join(f"/usr/share/java/{library}.jar" for library in _LIBRARIES)


def url(pusher: Pusher) -> str:
    """Where the pusher's app is pushed to."""
    return f"ssh://{pusher.nap.settings.ssh.address}/{pusher.app}"


def _ssh(pusher: Pusher) -> Path:
    """OpenSSH as a program without options, for those gits that take no more; with the pusher's configuration."""
    program = pusher.folder / "ssh"
    if not program.exists():
        host, _, port = pusher.nap.settings.ssh.address.rpartition(":")
        configuration = pusher.folder / "ssh_config"
        configuration.write_text(
            f"Host {NICKNAME}\n  HostName {host}\n  Port {port}\n"
            f"Host *\n  IdentityFile {pusher.folder}/key\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
            f"  UserKnownHostsFile {pusher.folder}/known\n  StrictHostKeyChecking accept-new\n"
        )
        program.write_text(f'#!/bin/sh\nexec ssh -F {configuration} "$@"\n')
        program.chmod(0o755)
    return program
