"""The gate server: what a session that it serves has, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.auth.gate_socket import gate_server, gate_socket
from nap_receiver.core.installed import script
from tests.nap import eventually, name_of_process

GATE = script("nap-gate")

SERVER = """
import os, signal, sys
from nap_receiver.frontends import gate_server


def serve(state, user):
    asked = os.environ.pop("SSH_ORIGINAL_COMMAND")
    if asked == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == "waits":
        print("waiting", flush=True)
        sys.stdin.read()
    if asked == "exits":
        sys.exit(3)
    print(user, os.getcwd(), *sorted(os.environ), sep="\\n")
    for number in range(100):
        if os.path.exists(f"/proc/self/fd/{number}"):
            print(os.readlink(f"/proc/self/fd/{number}"), file=sys.stderr)
    return 7


gate_server._PRELOADED = ()
gate_server.import_commands = lambda: None
gate_server.serve = serve
gate_server.main()
"""


@pytest.fixture
def server(short_folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A gate server whose sessions do what these tests need."""
    (short_folder / "run").mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", SERVER, str(short_folder)]) as process:
        eventually(lambda: answers(short_folder), 20, "the gate server answers")
        yield process
        process.kill()


def answers(folder: Path) -> bool:
    if connection := gate_server(folder):
        connection.close()
    return bool(connection)


def ask(folder: Path, asked: str) -> "subprocess.CompletedProcess[str]":
    words = [GATE, str(folder), "alice"]
    environment = {"SSH_ORIGINAL_COMMAND": asked, "PATH": os.environ["PATH"], "HOME": "/"}
    return subprocess.run(words, env=environment, text=True, capture_output=True, timeout=30, cwd="/usr", check=False)


def test_a_session_has_its_own_environment_descriptors_and_folder(
    server: "subprocess.Popen[bytes]", short_folder: Path
) -> None:
    ended = ask(short_folder, "anything")
    assert ended.returncode == 7
    user, folder, *names = ended.stdout.splitlines()
    libraries = {"GRPC_ENABLE_FORK_SUPPORT", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"}
    assert (user, folder, set(names) - libraries) == ("alice", "/usr", {"HOME", "PATH"} | ({*names} & {"LC_CTYPE"}))
    opened = ended.stderr.split()
    assert sum(each.startswith("socket:") for each in opened) == 1, "the connection alone"


def test_its_exit_status_reaches_ssh(server: "subprocess.Popen[bytes]", short_folder: Path) -> None:
    assert ask(short_folder, "exits").returncode == 3


def test_a_session_that_was_killed_is_told(server: "subprocess.Popen[bytes]", short_folder: Path) -> None:
    ended = ask(short_folder, "killed")
    assert ended.returncode == 1
    assert " !     the deploy was killed (signal 9)" in ended.stderr


def test_a_session_outlives_the_server(server: "subprocess.Popen[bytes]", short_folder: Path) -> None:
    environment = {"SSH_ORIGINAL_COMMAND": "waits", "PATH": os.environ["PATH"]}
    words = [GATE, str(short_folder), "alice"]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin and client.stdout
        assert client.stdout.readline() == "waiting\n"
        (session,) = _children(server.pid)
        assert name_of_process(session) == "nap alice"
        server.kill()
        server.wait()
        out, _ = client.communicate("", timeout=30)
    assert (out.splitlines()[0], client.returncode) == ("alice", 7)


def test_many_at_once(server: "subprocess.Popen[bytes]", short_folder: Path) -> None:
    environment = {"SSH_ORIGINAL_COMMAND": "any", "PATH": os.environ["PATH"]}
    clients = [
        subprocess.Popen([GATE, str(short_folder), f"user{number}"], env=environment, stdout=-1, text=True, stderr=-3)
        for number in range(30)
    ]
    said = [(client.communicate(timeout=60)[0].splitlines()[0], client.returncode) for client in clients]
    assert said == [(f"user{number}", 7) for number in range(30)]
    eventually(lambda: not _children(server.pid), 10, "no process of a session is left")


@pytest.mark.parametrize("why", ["frozen", "not there", "socket left"])
def test_without_a_server_the_gate_serves_it_itself(
    server: "subprocess.Popen[bytes]", short_folder: Path, why: str
) -> None:
    if why == "frozen":
        os.kill(server.pid, signal.SIGSTOP)
    else:
        server.kill()
        server.wait()
    if why == "not there":
        Path(gate_socket(short_folder)).unlink()
    ended = ask(short_folder, "help")
    assert ended.returncode == 1
    assert "the key of alice was removed" in ended.stderr


def _children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
