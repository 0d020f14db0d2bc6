"""What the gate adds to git-receive-pack's own words, on real repositories and with the real git on the other side."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.repositories import Repository

ROOT = Path(__file__).resolve().parent.parent

# What the gate does with a transfer, the words of `said` for its story and `failure` for its end.
_GATE = """
import os, sys
from pathlib import Path
from nap_receiver.transfer import Transfer
environment = dict(os.environ, GIT_CONFIG_SYSTEM={configuration!r})
transfer = Transfer(Path(sys.argv[-1]), environment)
received = transfer.received()
if received:
    os.write(transfer.descriptor, {said!r}.encode())
status = transfer.end({failure!r})
Path({report!r}).write_text(repr((received, transfer.was_empty)))
sys.exit(status)
"""


class Server:
    """A repository behind a gate that says `said` of each push, and ends it with `failure` where there is one."""

    def __init__(self, folder: Path, said: str = "", failure: str = "", **configuration: str) -> None:
        self.repository = Repository(folder / "server.git")
        self.report = folder / "report"
        lines = [f"\t{name} = {value}\n" for name, value in configuration.items()]
        hooks = f'[core]\n\thooksPath = "{ROOT / "hooks"}"\n[receive]\n\tadvertisePushOptions = true\n'
        (folder / "gitconfig").write_text(hooks + "".join(lines))
        gate = _GATE.format(
            configuration=str(folder / "gitconfig"), said=said, failure=failure, report=str(self.report)
        )
        self.gate = folder / "gate"
        self.gate.write_text(f"#!{sys.executable}\n{textwrap.dedent(gate)}")
        self.gate.chmod(0o755)

    def push(self, client: Repository, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "push", f"--receive-pack={self.gate}", f"file://{self.repository.path}", *words],
            cwd=client.path,
            text=True,
            capture_output=True,
            timeout=30,
        )


@pytest.fixture
def client(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "client.git")
    repository.commit({"a": "b"})
    return repository


def test_what_is_said_comes_as_gits_own(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path, said="-----> one\n-----> two\n")
    pushed = server.push(client, "master", "-o", "nap.x=y z")
    assert pushed.returncode == 0
    assert [line.rstrip() for line in pushed.stderr.splitlines()[:2]] == ["remote: -----> one", "remote: -----> two"]
    commit = client.git("rev-parse", "master").decode()
    assert server.report.read_text() == (
        f"(Received(updates=[RefUpdate(old='{'0' * 40}', new='{commit}', ref='refs/heads/master')], "
        "options=['nap.x=y z']), False)"
    )


@pytest.mark.parametrize("words", [("master",), ("--atomic", "master"), ("--porcelain", "master")])
def test_failure_ends_the_push_after_the_commits_have_arrived(
    tmp_path: Path, client: Repository, words: tuple[str, ...]
) -> None:
    server = Server(tmp_path, said="the app's own words\n", failure="not deployed")
    pushed = server.push(client, *words)
    assert pushed.returncode == 1
    said = [line.rstrip() for line in pushed.stderr.splitlines()]
    assert said[:2] == ["remote: the app's own words", "remote: not deployed"]
    assert server.repository.git("rev-parse", "master") == client.git("rev-parse", "master")


def test_nothing_to_send_is_told_from_something_refused(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path, denyNonFastForwards="true")
    assert server.push(client, "master").returncode == 0
    again = server.push(client, "master")
    assert (again.returncode, server.report.read_text()) == (0, "(None, True)")
    client.commit({"a": "c"}, branch="other")
    refused = server.push(client, "+other:master")
    assert (refused.returncode, server.report.read_text()) == (1, "(None, False)")


def test_too_large_a_push_is_explained(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path, maxInputSize="10")
    refused = server.push(client, "master")
    assert refused.returncode == 1
    assert (
        "remote:  !     this push is larger than nap takes (ssh.max_push in its settings); nothing was kept"
        in refused.stderr
    )
    assert server.report.read_text() == "(None, False)"
    assert not list(server.repository.path.glob("objects/tmp_objdir*"))


def test_push_options_cannot_pass_for_updates(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    fake = f"x\n{'1' * 40} {'2' * 40} refs/heads/forged"
    environment = {"GIT_PUSH_OPTION_COUNT": "1", "GIT_PUSH_OPTION_0": fake}
    script = f"""
import os, subprocess
hands, w = os.pipe(); r, says = os.pipe(); os.close(says)
hook = subprocess.run([{str(ROOT / "hooks" / "post-receive")!r}], input=b"", pass_fds=(w, r),
    env=dict(os.environ, NAP_GATE=f"{{w}} {{r}}", **{environment!r}))
os.close(w)
print(os.read(hands, 10000).decode())
"""
    said = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True).stdout
    assert said == f"option 0 {fake.replace(chr(10), ' ')}\n\n\n"
    assert server.push(client, "master").returncode == 0


def test_many_refs_pass(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    commit = client.git("rev-parse", "master").decode()
    lines = "".join(f"create refs/tags/v{number} {commit}\n" for number in range(2000))
    client.git("update-ref", "--stdin", stdin=lines.encode())
    assert server.push(client, "--mirror").returncode == 0
    assert server.report.read_text().count("RefUpdate(") == 2001
    assert server.push(client, "--mirror").returncode == 0
    assert server.report.read_text() == "(None, True)"
