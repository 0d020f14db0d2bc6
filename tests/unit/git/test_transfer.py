"""What the gate adds to git-receive-pack's own words, on real repositories and with the real git on the other side."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nap_receiver.core.settings import Settings, SshSettings
from nap_receiver.core.templates import TEMPLATES, environment
from nap_receiver.git.repository import discard_incoming
from tests.nap import ROOT
from tests.repositories import Repository

# What the gate does with a transfer, the words of `said` for its story and `failure` for its end.
_GATE = """
import os, sys
from pathlib import Path
from nap_receiver.git.receive_pack import Transfer
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

    def __init__(
        self,
        folder: Path,
        said: str = "",
        failure: str = "",
        ssh: SshSettings | None = None,
        **configuration: str,
    ) -> None:
        self.repository = Repository(folder / "server.git")
        self.report = folder / "report"
        template = environment(TEMPLATES / "machine").get_template("gitconfig.j2")
        lines = "".join(f"\t{name} = {value}\n" for name, value in configuration.items())
        values = {"settings": Settings(ssh=ssh or SshSettings()), "hooks": str(ROOT / "hooks")}
        (folder / "gitconfig").write_text(f"{template.render(values)}[receive]\n{lines}")
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
    assert "remote:  !     this push is larger than ssh.max_push allows; nothing was kept" in refused.stderr
    assert server.report.read_text() == "(None, False)"
    assert not list(server.repository.path.glob("objects/tmp_objdir*"))


def test_annotated_tag_pushed_to_a_branch_is_answered_with_the_line_to_type(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    client.git("tag", "--annotate", "--message", "One", "v1", "master")
    refused = server.push(client, "v1:refs/heads/master")
    assert refused.returncode == 1
    assert "git push nap TAG^{}:BRANCH, such as git push nap v1^{}:master" in refused.stderr
    assert server.push(client, "v1^{}:refs/heads/master").returncode == 0
    assert server.repository.git("rev-parse", "master") == client.git("rev-parse", "master")


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


MIRRORED = ["notes/commits", "pull/1/head", "merge-requests/2/head", "changes/03/3/1", "remotes/origin/master"]


def test_mirror_of_a_code_host_is_taken(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    for ref in MIRRORED:
        client.git("update-ref", f"refs/{ref}", "master")
    assert server.push(client, "--mirror").returncode == 0
    assert len(server.repository.git("for-each-ref").splitlines()) == len(MIRRORED) + 1


@pytest.mark.parametrize("ref", ["refs/custom/x", "refs/replace/{commit}", "refs/nap/v1"])
def test_other_ref_is_refused_and_the_rest_is_taken(tmp_path: Path, client: Repository, ref: str) -> None:
    server = Server(tmp_path)
    ref = ref.format(commit=client.git("rev-parse", "master").decode())
    pushed = server.push(client, "master", f"master:{ref}")
    assert pushed.returncode == 1
    assert "remote:  !     nap accepts branches, tags, notes, and what git hosts mirror" in pushed.stderr
    assert "git config nap.mirror true" in pushed.stderr
    assert server.repository.git("for-each-ref", "--format=%(refname)") == b"refs/heads/master"


def test_repository_that_is_a_mirror_takes_any_ref_but_those_that_replace_objects(
    tmp_path: Path, client: Repository
) -> None:
    server = Server(tmp_path)
    server.repository.git("config", "nap.mirror", "true")
    assert server.push(client, "master:refs/custom/x").returncode == 0
    commit = client.git("rev-parse", "master").decode()
    for ref in (f"refs/replace/{commit}", "refs/nap/v1"):
        assert server.push(client, f"master:{ref}").returncode == 1
    assert server.repository.git("for-each-ref", "--format=%(refname)") == b"refs/custom/x"


def test_push_of_too_many_refs_is_refused_before_git_begins(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path, ssh=SshSettings(max_refs=3))
    for number in range(3):
        client.git("update-ref", f"refs/tags/v{number}", "master")
    refused = server.push(client, "--mirror")
    assert refused.returncode != 0
    assert " !     this push would make more than 3 refs (ssh.max_refs); nothing was kept" in refused.stderr
    assert not server.repository.git("for-each-ref")
    assert not list(server.repository.path.glob("objects/??/*")), "nor were its objects received"
    client.git("update-ref", "-d", "refs/tags/v2")
    assert server.push(client, "--mirror").returncode == 0
    assert "more than 3 refs" in server.push(client, "master:refs/tags/another").stderr
    assert server.push(client, "master:refs/tags/another", ":refs/tags/v0").returncode == 0, "as many as before"


def test_long_name_of_a_ref_is_refused(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    name = "/".join("a" * 128)
    refused = server.push(client, f"master:refs/heads/{name}")
    assert " !     the name of a ref has 266 bytes, and ssh.max_ref_bytes is 255; nothing was kept" in refused.stderr
    assert server.push(client, f"master:refs/heads/{name[:242]}x").returncode == 0


def test_memory_to_receive_a_push_is_limited(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    server.repository.git("config", "nap.memory", str(50 << 20))
    server.repository.git("config", "core.bigFileThreshold", "1g")
    blob = client.git("hash-object", "-w", "--stdin", stdin=bytes(50 << 20))
    client.git("update-ref", "refs/tags/large", blob)
    refused = server.push(client, "refs/tags/large")
    assert refused.returncode == 1
    assert "remote:  !     git needed more memory to receive this push than commit.memory allows" in refused.stderr
    server.repository.git("config", "--unset", "core.bigFileThreshold")
    assert server.push(client, "refs/tags/large").returncode == 0, "as the gate has it, git passes large files on"


def test_trees_that_are_an_attack_are_refused(tmp_path: Path, client: Repository) -> None:
    server = Server(tmp_path)
    blob = client.git("rev-parse", "master:a").decode()
    content = b"40000 ..\0" + bytes.fromhex(client.git("rev-parse", "master^{tree}").decode())
    tree = client.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=content).decode()
    client.git("update-ref", "refs/heads/bad", client.git("commit-tree", "-m", blob, tree))
    refused = server.push(client, "bad")
    assert refused.returncode == 1
    assert "hasDotdot" in refused.stderr


@pytest.mark.parametrize("capabilities", ["report-status side-band-64k", ""])
def test_missing_object_ends_a_push_of_many_refs_at_once(tmp_path: Path, client: Repository, capabilities: str) -> None:
    server = Server(tmp_path)
    commit = client.git("rev-parse", "master").decode()
    news = [*[commit] * 3000, "1" * 40]
    updates = [f"{'0' * 40} {new} refs/heads/b{number}".encode() for number, new in enumerate(news)]
    updates[0] += b"\0" + capabilities.encode()
    pack = client.git("pack-objects", "--stdout", "--all", "-q") + b""
    sent = b"".join(b"%04x" % (len(line) + 4) + line for line in updates) + b"0000"
    started = time.monotonic()
    done = subprocess.run([server.gate, server.repository.path], input=sent + pack, capture_output=True, timeout=60)
    assert done.returncode != 0
    assert b"git cannot receive this push of many refs" in done.stdout + done.stderr
    assert not server.repository.git("for-each-ref")
    discard_incoming(server.repository.path)
    assert not list(server.repository.path.glob("objects/tmp_objdir*"))
    assert time.monotonic() - started < 6, "a program for each ref would take 12 s"
