"""Who holds connections to the gate open keeps nobody else out, and does not hold them for long."""

import getpass
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from nap_receiver.core.installed import path_of
from nap_receiver.core.settings import Address, Settings, SshSettings
from nap_receiver.core.templates import TEMPLATES, environment
from nap_receiver.machine.programs import account_is_locked
from tests.conftest import free_address
from tests.nap import QUICK_SSH, eventually

MINE, OTHERS = "127.0.0.1", "127.0.0.2"
"""The addresses that clients come from."""

LOGIN_SECONDS = 2
AT_ONCE = 20
"""Pushes that a CI server starts at once."""


@dataclass(frozen=True)
class Gate:
    """An sshd with the gate's configuration, and a key that it accepts."""

    address: Address
    key: Path

    def ssh(self, source: str) -> "subprocess.Popen[str]":
        """A client that comes from `source` and logs in."""
        options = f"-i {self.key} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        words = shlex.split(f"ssh -b {source} -p {self.address.port} {options} {QUICK_SSH}")
        words += [self.address.host, "hello"]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def lets_in(self, source: str) -> bool:
        client = self.ssh(source)
        said, _ = client.communicate(timeout=30)
        return (client.returncode, said) == (0, "let in\n")

    def greets(self, source: str, stack: ExitStack) -> socket.socket | None:
        """A connection from `source` that was accepted, on which nobody logs in; None where it was refused."""
        client = stack.enter_context(socket.create_connection((self.address.host, self.address.port), 10, (source, 0)))
        try:
            return client if client.recv(4) == b"SSH-" else None
        except ConnectionResetError:
            return None


@pytest.fixture
def start(short_folder: Path, tmp_path: Path) -> Iterator[Callable[[SshSettings], Gate]]:
    """Starts such a gate, with these settings but for the address."""
    with ExitStack() as stack:

        def started(settings: SshSettings) -> Gate:
            folder = tmp_path / "ssh"
            folder.mkdir()
            for key in (folder / "host_key", tmp_path / "key"):
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
            public = (tmp_path / "key.pub").read_text()
            (folder / "authorized_keys").write_text(f'restrict,command="echo let in" {public}')
            values = {
                "settings": Settings(ssh=settings),
                "root": str(tmp_path),
                "account": getpass.getuser(),
                "account_is_locked": account_is_locked(),
            }
            template = environment(TEMPLATES / "machine").get_template("sshd_config.j2")
            (tmp_path / "sshd_config").write_text(template.render(values))
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            words = [path_of("sshd"), "-D", "-e", "-f", str(tmp_path / "sshd_config")]
            sshd = subprocess.Popen(words, stderr=(tmp_path / "log").open("w"))
            stack.callback(sshd.wait)
            stack.callback(sshd.terminate)
            gate = Gate(settings.address, tmp_path / "key")
            eventually(lambda: gate.lets_in(MINE), 10, "it answers")
            return gate

        yield started


def test_one_address_that_holds_connections_open_keeps_no_other_out(start: Callable[[SshSettings], Gate]) -> None:
    settings = SshSettings(address=Address(free_address()))
    gate = start(settings)
    with ExitStack() as stack:
        held = [gate.greets(MINE, stack) for _ in range(101)]
        assert sum(each is not None for each in held) == settings.max_logins_per_address
        assert not gate.lets_in(MINE)
        assert gate.lets_in(OTHERS)
        many = [gate.ssh(OTHERS) for _ in range(AT_ONCE)]
        assert [client.communicate(timeout=30)[0] for client in many] == ["let in\n"] * AT_ONCE


def test_who_does_not_log_in_in_time_is_disconnected(start: Callable[[SshSettings], Gate]) -> None:
    settings = SshSettings(address=Address(free_address()), login_timeout=LOGIN_SECONDS, max_logins_per_address=3)
    gate = start(settings)
    with ExitStack() as stack:
        held = [gate.greets(MINE, stack) for _ in range(4)]
        began = time.monotonic()
        assert [each is not None for each in held] == [True, True, True, False]
        for client in filter(None, held):
            while client.recv(1000):
                pass
        assert 0.5 < time.monotonic() - began < 3 * LOGIN_SECONDS
        assert gate.lets_in(MINE)


def test_no_more_wait_to_log_in_than_the_operator_says(start: Callable[[SshSettings], Gate]) -> None:
    gate = start(SshSettings(address=Address(free_address()), max_logins=4, max_logins_per_address=3))
    with ExitStack() as stack:
        held = [gate.greets(source, stack) for source in (MINE, MINE, MINE, OTHERS, OTHERS)]
        assert [each is not None for each in held] == [True] * 4 + [False]
