"""One-off commands: over ssh and on the host, with a terminal and without, and that nothing of them stays."""

import itertools
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nap_receiver.auth.keys import add_key, keys, renew
from nap_receiver.core.paths import state_at
from nap_receiver.core.settings import LimitSettings
from tests.fleet_apps import pushed
from tests.machine.test_logs import say
from tests.nap import COMMAND, Nap, Pushed, Pusher, answer, eventually, processes

DOCKERFILE = "FROM nap/busybox\nCOPY . /www\nWORKDIR /www\nEXPOSE 8080\n"
PROCFILE = """\
web: exec httpd -f -p $PORT -h /www
greet: echo "$GREETING from $NAP_PROCESS"
"""
APP_JSON = '{"formation": {"greet": {"quantity": 0}}}'
DEAF = "sh -c 'trap : HUP INT TERM; while :; do sleep 100 & wait; done'"
"""What hears of no signal, and never says a word."""
DOCKER_THAT_LEAVES = f"""\
#!/bin/sh
[ "$1" = start ] || exec {shutil.which("docker")} "$@"
trap 'exit 0' TERM
for container; do :; done
{shutil.which("docker")} start "$container"
sleep 100 >/dev/null 2>&1 & wait
"""
"""A docker that ends with status 0 at SIGTERM, as the real one sometimes does on a busy machine."""
GONE_SECONDS = 5.0  # half a second where nothing else runs


@pytest.fixture(scope="module")
def hello(nap: Nap, tmp_path_factory: pytest.TempPathFactory) -> Pusher:
    """Someone whose app runs."""
    pusher = Pusher(nap, "run-hello", tmp_path_factory.mktemp("hello"))
    pusher.commit(Dockerfile=DOCKERFILE, Procfile=PROCFILE, app_json=APP_JSON, index_html="one")
    pushed(pusher)
    return pusher


Words = Callable[..., list[str]]


@pytest.fixture(params=["ssh", "host"])
def run(request: pytest.FixtureRequest, hello: Pusher) -> Words:
    """The words that run a shell's line in a container of that app."""
    if request.param == "ssh":
        return lambda line, *options: [*hello.ssh_words(*options), f"run {hello.app} {line}"]
    return lambda line, *_: ["sh", "-c", f"exec {COMMAND} run {hello.app} {line}"]


def done(hello: Pusher, words: list[str], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """The exit status of this command, and what it wrote to standard output and error."""
    ended = subprocess.run(words, env=hello.nap.environment, input=stdin, capture_output=True, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


def one_offs(hello: Pusher) -> list[str]:
    """The containers of that app that run a one-off command."""
    return [name for name in hello.nap.containers(hello.app) if ".run." in name]


def running(hello: Pusher) -> str:
    """The one such container, once its program, which is `DEAF`, hears of no signal."""
    eventually(lambda: one_offs(hello), 20, "there is a container")
    (name,) = one_offs(hello)
    eventually(lambda: runs_there(hello, name, "sleep 100"), 20, "its program has begun")
    return name


def runs_there(hello: Pusher, container: str, command: str) -> bool:
    """Whether a process of exactly these words is in the container."""
    with suppress(subprocess.CalledProcessError):  # it is yet to start
        rows = hello.nap.docker("top", container, "-eo", "pid,args").splitlines()
        return command in [row.split(maxsplit=1)[1] for row in rows]
    return False


def reads_what_is_typed(hello: Pusher) -> bool:
    """Whether a process that serves this user waits for its standard input, says proc_pid_syscall(5)."""
    read = {"x86_64": "0"}.get(os.uname().machine, "63")
    for gate in hello.gates():
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{gate}/syscall").read_text().split()[:2] == [read, "0x0"]:
                return True
    return False


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, hello: Pusher, words: list[str], rows: int = 24, columns: int = 80) -> None:
        self.process, self._master = pty.fork()
        if not self.process:
            os.execvpe(words[0], words, hello.nap.environment)
        self.resize(rows, columns)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._master, (rows, columns))

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """What is shown up to this text, from where the last call left off."""
        while text not in self.shown:
            assert select.select([self._master], [], [], 20)[0], f"{text!r} does not come: {self.shown!r}"
            self.shown += os.read(self._master, 4096).decode()
        before, _, self.shown = self.shown.partition(text)
        return before

    def end(self) -> int:
        """Read on until the command has ended, which is killed where that takes too long; its exit status."""
        too_long = threading.Timer(60, os.killpg, (self.process, signal.SIGKILL))
        too_long.start()
        try:
            with suppress(OSError):
                while read := os.read(self._master, 4096):
                    self.shown += read.decode()
            os.close(self._master)
            return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        finally:
            too_long.cancel()

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        self.end()


@pytest.fixture(autouse=True)
def _nothing_stays(hello: Pusher) -> Iterator[None]:
    yield
    eventually(lambda: not one_offs(hello), GONE_SECONDS, "no container is left")


@pytest.mark.parametrize(
    ("line", "status", "printed"),
    [
        ("ls -a", 0, b".\n..\nDockerfile\nProcfile\napp.json\nindex.html\n"),
        ("-- ls index.html", 0, b"index.html\n"),
        ("echo --help -- -x --state /tmp", 0, b"--help -- -x --state /tmp\n"),
        ("""echo 'a  b' '$HOME' ';id'""", 0, b"a  b $HOME ;id\n"),
        ("false", 1, b""),
        ("sh -c 'exit 255'", 255, b""),
        ("sh -c 'kill -9 $$'", 137, b""),
        ("nosuch", 127, b""),
        ("/www", 126, b""),
        ("--privileged true", 127, b""),
    ],
)
def test_words_are_the_arguments_and_the_status_is_the_command_s(
    hello: Pusher, run: Words, line: str, status: int, printed: bytes
) -> None:
    assert done(hello, run(line))[:2] == (status, printed)


def test_what_it_prints_stays_apart_and_is_no_log(hello: Pusher, run: Words) -> None:
    assert done(hello, run("sh -c 'echo out; echo err >&2'")) == (0, b"out\n", b"err\n")
    client = subprocess.Popen(run(DEAF), env=hello.nap.environment, stdin=subprocess.DEVNULL)
    kind = hello.nap.docker("inspect", "-f", "{{.HostConfig.LogConfig.Type}}", running(hello))
    client.terminate()
    client.wait()
    assert kind == "none"


def test_standard_input_is_passed_through_to_its_end(hello: Pusher, run: Words) -> None:
    content = os.urandom(5 << 20) + bytes(range(256))
    assert done(hello, run("cat"), content) == (0, content, b"")
    assert done(hello, run("sh"), b"cat index.html; exit 3") == (3, b"one", b"")
    with subprocess.Popen(run("echo here"), env=hello.nap.environment, stdin=subprocess.PIPE) as client:
        assert client.wait(timeout=20) == 0, "it does not wait for an input that nobody ends"


def test_a_process_type_stands_for_its_command(hello: Pusher, run: Words) -> None:
    secret = "c0nfidential"
    assert hello.ssh_command("config:set", hello.app, f"GREETING={secret}").returncode == 0
    status, printed, _ = done(hello, run("greet"))
    assert (status, re.sub(rb"[0-9]+", b"N", printed)) == (0, b"cNnfidential from run.N\n")
    assert done(hello, run("greet world"))[0] == 127, "more than one word is a command"
    client = subprocess.Popen(run(DEAF), env=hello.nap.environment, stdin=subprocess.DEVNULL)
    running(hello)
    seen = [" ".join(words) for _, _, words in processes()]
    client.terminate()
    client.wait()
    assert not [words for words in seen if secret in words]


def test_a_terminal_is_one_in_the_container(hello: Pusher, run: Words) -> None:
    terminal = Terminal(hello, run("sh", "-tt"), rows=33, columns=101)
    terminal.until("# ")
    eventually(lambda: _size(terminal) == "33 101", 10, "it has the terminal's size")
    sizes = itertools.cycle(((40, 120), (41, 121)))  # what comes before Docker listens is lost
    eventually(lambda: _size(terminal, *next(sizes)) in {"40 120", "41 121"}, 10, "and the next")
    terminal.type("sleep 1000\r")
    terminal.until("sleep 1000\r\n")
    (name,) = one_offs(hello)
    eventually(lambda: runs_there(hello, name, "sleep 1000"), 10, "it runs")
    terminal.type("\x10\x11")  # Docker's keys to leave a container alone
    terminal.until("^P")  # which it has got instead
    terminal.type("\x03")
    terminal.until("# ")
    terminal.type("echo status $?\r")
    assert "130" in terminal.until("# ")
    terminal.type("exit 42\r")
    assert terminal.end() == 42


def _size(terminal: Terminal, *resized: int) -> str:
    if resized:
        terminal.resize(*resized)
    terminal.type("stty size\r")
    return terminal.until("# ").splitlines()[1]


def test_without_a_terminal_at_both_ends_there_is_none(hello: Pusher) -> None:
    words = ["sh", "-c", f"{COMMAND} run {hello.app} sh -c 'test -t 0 || echo no terminal' | cat"]
    terminal = Terminal(hello, words)
    assert terminal.end() == 0
    assert terminal.shown == "no terminal\r\n"


def test_who_may_wait_for_a_prompt_is_told_how_to_get_a_terminal(hello: Pusher) -> None:
    words = [*hello.ssh_words(), f"run {hello.app} cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdin and client.stdout and client.stderr
        hint = f" !     No terminal. For a shell or a prompt: ssh -t HOST run {hello.app} …\n"
        assert client.stderr.readline().decode() == hint
        client.stdin.write(b"typed\n")
        client.stdin.close()
        assert (client.stdout.read(), client.stderr.read()) == (b"typed\n", b"")
    assert done(hello, words, b"piped\n") == (0, b"piped\n", b"")
    terminal = Terminal(hello, [*hello.ssh_words("-tt"), f"run {hello.app} tty"])
    assert (terminal.end(), terminal.shown.strip()) == (0, "/dev/pts/0")


@pytest.mark.parametrize("options", [(), ("-tt",)], ids=["pipes", "terminal"])
def test_it_goes_with_the_client(hello: Pusher, options: tuple[str, ...]) -> None:
    words = [*hello.ssh_words(*options), f"run {hello.app} {DEAF}"]
    client = subprocess.Popen(words, env=hello.nap.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    running(hello)
    client.kill()
    took = eventually(lambda: not one_offs(hello), GONE_SECONDS, "the container is gone")
    eventually(lambda: not hello.gates(), GONE_SECONDS, "who served it too")
    client.communicate()
    print(f"gone after {took:.2f} s")


@pytest.mark.parametrize("tenths", range(1, 10, 2))
def test_it_goes_with_the_client_at_any_moment(hello: Pusher, tenths: int) -> None:
    words = [*hello.ssh_words(*(["-tt"] if tenths % 4 == 1 else [])), f"run {hello.app} {DEAF}"]
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(tenths / 10)
    client.kill()
    client.communicate()
    eventually(lambda: not hello.gates(), GONE_SECONDS, "nobody serves it")
    assert one_offs(hello) == []


def test_it_goes_with_the_terminal(hello: Pusher) -> None:
    terminal = Terminal(hello, ["sh", "-c", f"exec {COMMAND} run {hello.app} {DEAF} > {os.devnull}"])
    running(hello)
    os.close(terminal._master)
    eventually(lambda: not one_offs(hello), GONE_SECONDS, "the container is gone")
    os.waitpid(terminal.process, 0)


def test_it_goes_with_who_reads_it(hello: Pusher) -> None:
    words = ["sh", "-c", f"{COMMAND} run {hello.app} sh -c 'echo one; exec sleep 1000' | head -n 1"]
    assert done(hello, words) == (0, b"one\n", b"")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_it_goes_with_the_gate(hello: Pusher, how: signal.Signals) -> None:
    words = [*hello.ssh_words(), f"run {hello.app} {DEAF}"]
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running(hello)
    (gate,) = hello.gates()
    os.kill(gate, how)
    eventually(lambda: not one_offs(hello), GONE_SECONDS, "the container is gone")
    _, said = client.communicate(timeout=10)
    assert client.returncode == 1
    assert said.decode().splitlines()[-1] == f" !     the command was stopped from outside ({how.name})"


def test_it_goes_when_docker_ends_with_status_0_and_leaves_it_running(hello: Pusher, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER_THAT_LEAVES)
    docker.chmod(0o755)
    environment = hello.nap.environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [str(COMMAND), "run", hello.app, *shlex.split(DEAF)]
    client = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running(hello)
    (left,) = (number for number, parent, _ in processes() if parent == client.pid)
    os.kill(left, signal.SIGTERM)
    client.communicate(timeout=20)
    assert one_offs(hello) == []


def test_what_is_wrong_is_told(hello: Pusher, tmp_path: Path) -> None:
    nap, app = hello.nap, hello.app
    for words in (("run", app), ("run", app, "--")):
        refused = hello.ssh_command(*words)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[0] == f" !     Give a command, such as: run {app} ls -la"
        assert nap.run(*words, ok=False).returncode == 2
    assert hello.ssh_command("run", "nosuch", "ls").stderr.startswith(" !     app nosuch does not exist\n")
    other = Pusher(nap, "run-other", tmp_path)
    other.commit(Dockerfile=DOCKERFILE, Procfile=PROCFILE)
    assert other.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    never = other.ssh_command("run", other.app, "ls")
    assert (never.returncode, never.stderr.splitlines()) == (
        1,
        [" !     run-other was never deployed", " !     Push it first: git push nap master"],
    )
    for right, refusal in ((None, "may not push to"), ("read", "may not push to"), ("push", "")):
        if right:
            assert hello.ssh_command("access:add", app, other.user, right).returncode == 0
        tried = other.ssh_command("run", app, "true")
        assert (refusal in tried.stderr, tried.returncode) == (True, 1 if refusal else 0)
    (tmp_path / "python3").symlink_to(COMMAND.parent / "python3")
    without = subprocess.run(
        [str(COMMAND), "run", app, "ls"],
        env=nap.environment | {"PATH": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=30,
    )
    assert (without.returncode, without.stderr.splitlines()[0]) == (
        1,
        " !     docker is not installed here; one-off commands need it",
    )


@pytest.mark.parametrize("how", ["kill", "Ctrl-C", "hang up"])
def test_a_terminal_that_ends_ends_no_deploy(hello: Pusher, how: str) -> None:
    current = _release(hello)
    terminal = Terminal(hello, [*hello.ssh_words("-tt"), f"ps:restart {hello.app}"])
    terminal.until("-----> Starting")
    if how == "kill":
        terminal.kill()
    elif how == "Ctrl-C":
        terminal.type("\x03")
        assert terminal.end() == 130
    else:
        os.kill(min(hello.gates()), signal.SIGHUP)
        terminal.end()
    eventually(lambda: _release(hello) == current + 1, 30, "it goes on, and the next release is live")


def _release(hello: Pusher) -> int:
    told = json.loads(hello.nap.run("releases:info", hello.app, "--json").stdout)
    return int(told["release"].removeprefix("v"))


def test_ctrl_c_ends_what_follows_a_log(hello: Pusher) -> None:
    instance = f"v{_release(hello)}.web.1"
    say(hello, instance, "before")
    terminal = Terminal(hello, [*hello.ssh_words("-tt"), f"logs {hello.app} -t"])
    terminal.until("web.1: before")
    say(hello, instance, "after")
    terminal.until("web.1: after")  # so it follows
    eventually(lambda: len(hello.gates()) == 2, 10, "who serves it, and who waits for that")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    eventually(lambda: not hello.gates(), GONE_SECONDS, "nobody serves it")


def test_other_commands_read_what_is_typed(nap: Nap, live: Pushed, pusher: Pusher) -> None:
    terminal = Terminal(pusher, [*pusher.ssh_words("-tt"), f"apps:destroy {pusher.app}"])
    terminal.until("Its name, to go on")
    eventually(lambda: reads_what_is_typed(pusher), 10, "it waits for it")
    terminal.type("another\r")
    assert terminal.end() == 1
    assert f"{pusher.app} is not destroyed" in terminal.shown
    assert answer(live.url) == "one"
    terminal = Terminal(pusher, [*pusher.ssh_words("-tt"), f"config:set {pusher.app} GREETING"])
    eventually(lambda: reads_what_is_typed(pusher), 20, "it waits for the value")
    terminal.type("hello\r\x04")
    assert terminal.end() == 0, terminal.shown
    assert nap.run("config:get", pusher.app, "GREETING").stdout == "hello\n"


def test_keys_of_before_are_given_a_terminal(tmp_path: Path, hello: Pusher) -> None:
    state = state_at(tmp_path)
    first = add_key(state, "first", (hello.folder / "key.pub").read_text(), LimitSettings())
    file = state.ssh / "authorized_keys"
    file.write_text(file.read_text().replace("restrict,pty,", "restrict,"))
    assert keys(state) == [first]
    renew(state)
    assert file.read_text().startswith("restrict,pty,command=")
    file.write_text(file.read_text().replace("restrict,pty,", "restrict,"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    second = add_key(state, "second", (tmp_path / "key.pub").read_text(), LimitSettings())
    assert keys(state) == [first, second]
    assert [line.partition(",command=")[0] for line in file.read_text().splitlines()] == ["restrict,pty"] * 2
