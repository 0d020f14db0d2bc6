"""What instances print: chosen, followed, and kept over a crash; on one machine and on a cluster."""

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nap_receiver.frontends import cli  # noqa: F401 -- it puts all commands into the table
from tests.examples import examples
from tests.fleet_apps import an_app, host_of, pushed
from tests.fleet_cluster import Cluster
from tests.nap import COMMAND, Nap, Pusher, eventually, processes, runs

TALKS = runs(
    "echo $NAP_PROCESS of $NAP_RELEASE begins; httpd -f -p 8080 -h /etc & "
    "until [ -e /tmp/end ]; do sleep 0.1; done; rm /tmp/end; echo no database; printf 'last words'; exit 3"
)

STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([a-z]+\.\d+): (.*)")


def said(nap_or_pusher: Nap | Pusher, *words: str) -> list[tuple[str, str]]:
    """The label and the text of each line of `logs`, whose times never go back."""
    run = nap_or_pusher.run if isinstance(nap_or_pusher, Nap) else nap_or_pusher.ssh_command
    done = run("logs", *words)
    assert (done.returncode, done.stderr) == (0, "")
    found = [STAMPED.fullmatch(line) for line in done.stdout.splitlines()]
    assert all(found), done.stdout
    assert [line[1] for line in found if line] == sorted(line[1] for line in found if line)
    return [(line[2], line[3]) for line in found if line]


def say(pusher: Pusher, instance: str, text: str) -> None:
    """Have an instance print a line."""
    container = f"{pusher.app}.{instance}.{pusher.nap.state.name}"
    pusher.nap.docker("exec", container, "sh", "-c", f"echo {shlex.quote(text)} >/proc/1/fd/1")


def crash(pusher: Pusher, instance: str) -> None:
    """Have an instance end by itself; returns when it is announced again."""
    container = f"{pusher.app}.{instance}.{pusher.nap.state.name}"

    def started() -> str:
        return pusher.nap.docker("inspect", "--format", "{{.State.StartedAt}}", container)

    def is_back() -> bool:
        return started() != before and any(name.endswith(instance) for name in pusher.announcements())

    before = started()
    pusher.nap.docker("exec", container, "touch", "/tmp/end")
    eventually(is_back, 20, f"{instance} is back")


def holds(file: Path, text: str) -> bool:
    """Whether a file has this text in it."""
    return text in file.read_text()


def hears(pusher: Pusher, file: Path) -> bool:
    """Have an instance of v1 ask once more who is there; whether that is in the file of one who follows.

    What was said before one follows need not be there.
    """
    say(pusher, "v1.web.1", "are you there")
    return holds(file, "are you there")


@contextmanager
def following(words: list[str], file: Path, nap: Nap) -> Iterator["subprocess.Popen[bytes]"]:
    """A command whose output goes to a file."""
    with file.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=nap.environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def talking(pusher: Pusher) -> Pusher:
    """An app whose instances say what they are told to."""
    pusher.commit(Dockerfile=TALKS)
    pushed(pusher)
    return pusher


def test_lines_of_all_instances_are_merged_and_chosen(nap: Nap, talking: Pusher, tmp_path: Path) -> None:
    app = talking.app
    assert talking.ssh_command("ps:scale", app, "web=2").returncode == 0
    assert sorted(said(talking, app)) == [("web.1", "web.1 of v2 begins"), ("web.2", "web.2 of v2 begins")]
    told = [("web.1", "one"), ("web.2", "two"), ("web.1", "three")]
    for label, text in told:
        say(talking, f"v2.{label}", f"\x1b[31m{text}\x1b[0m")
    eventually(lambda: said(talking, app, "-n", "3") == told, 5, "all three, in their order")
    assert said(nap, app)[-3:] == told
    assert said(nap, app, "-n", "2", "-p", "web") == told[1:]
    assert said(nap, app, "-p", "web.2") == [("web.2", "web.2 of v2 begins"), told[1]]
    assert said(nap, app, "--release", "1") == [("web.1", "web.1 of v1 begins")], "it was replaced just now"
    with following([str(COMMAND), "logs", app], tmp_path / "kept", nap) as process:
        assert process.wait(timeout=10) == 0
    assert (tmp_path / "kept").read_text() == nap.run("logs", app).stdout


def test_what_cannot_be_shown_is_told(nap: Nap, talking: Pusher) -> None:
    app = talking.app
    for words, why in {
        ("-p", "worker", "-t"): f"{app} v1 has no process worker; there are: web.1",
        ("-p", "web.2"): f"{app} v1 has no process web.2; there are: web.1",
        ("--release", "v2"): f"{app} has no release v2",
    }.items():
        refused = talking.ssh_command("logs", app, *words)
        assert (refused.returncode, refused.stdout, refused.stderr.splitlines()[0]) == (1, "", f" !     {why}")
    talking.commit(Dockerfile=runs("echo no database; exit 3"))
    assert talking.push().status == 1
    gone = nap.run("logs", app, "--release", "v2", ok=False)
    assert gone.stderr.splitlines()[0] == f" !     the output of {app} v2 is gone"


def test_what_the_last_release_printed_that_ran_is_shown_while_nothing_does(
    nap: Nap, talking: Pusher, tmp_path: Path
) -> None:
    app = talking.app
    begins = "web.1: web.1 of v1 begins"
    assert talking.ssh_command("ps:stop", app).returncode == 0
    for change in ((), ("config:set", app, "A=1")):  # a release that nothing runs of either
        if change:
            eventually(lambda: not nap.containers(app), 20, "it has ended")
            assert talking.ssh_command(*change).returncode == 0
        shown = talking.ssh_command("logs", app)
        assert (shown.returncode, shown.stdout.splitlines()[0][28:]) == (0, begins)
        why = f" !     {app} is stopped; this is the output of v1"
        assert shown.stderr.splitlines() == [why, f" !     To start it again: ps:start {app}"]
    refused = talking.ssh_command("logs", app, "--release", "v2")
    assert refused.stderr.splitlines()[0] == f" !     {app} v2 ran no instance: it was stopped"
    with following([str(COMMAND), "logs", app, "-t"], tmp_path / "seen", nap):
        eventually(partial(holds, tmp_path / "seen", begins), 10, "what was there")
        assert talking.ssh_command("ps:start", app).returncode == 0
        eventually(partial(holds, tmp_path / "seen", "web.1 of v4 begins"), 10, "and what starts later")

    assert talking.ssh_command("ps:scale", app, "web=0").returncode == 0
    scaled = nap.run("logs", app, "-p", "web")
    assert scaled.stdout.splitlines()[0][28:] == "web.1: web.1 of v4 begins"
    assert scaled.stderr.splitlines()[0] == f" !     {app} has no web: it is scaled to 0; this is the output of v4"
    assert nap.run("logs", app).stderr.splitlines()[1] == f" !     To start one: ps:scale {app} web=1"
    talking.commit(Dockerfile=runs("true"))
    talking.push()  # which takes away what was left, as each does that starts something
    assert talking.ssh_command("ps:scale", app, "web=1").returncode == 1
    gone = nap.run("logs", app, ok=False)
    told = f" !     {app} has no instance: it is scaled to 0, and its earlier output is gone"
    assert (gone.returncode, gone.stdout, gone.stderr.splitlines()[0]) == (1, "", told)


def test_what_an_instance_said_before_it_crashed_is_kept(nap: Nap, talking: Pusher) -> None:
    run = ["web.1 of v1 begins", "no database", "last words"]
    crash(talking, "v1.web.1")
    assert [text for _, text in said(talking, talking.app)] == [*run, run[0]]
    say(talking, "v1.web.1", "again")
    crash(talking, "v1.web.1")
    texts = [text for _, text in said(nap, talking.app)]
    assert "".join(texts) == "".join([*run, run[0], "again", *run[1:], run[0]]), "its last words had no line's end"
    assert texts[-1] == run[0]


def test_following_sees_what_starts_later_and_leaves_nothing_behind(nap: Nap, talking: Pusher, tmp_path: Path) -> None:
    app, seen, alone = talking.app, tmp_path / "seen", tmp_path / "alone"

    def texts(file: Path) -> list[str]:
        return [STAMPED.sub(r"\2 \3", line) for line in file.read_text().splitlines()]

    host = [str(COMMAND), "logs", app, "-t", "-n", "0", "--release", "v1"]
    with (
        following(talking.ssh_words("logs", app, "-t"), seen, nap) as client,
        following(host, alone, nap) as operator,
    ):
        eventually(lambda: texts(seen) == ["web.1 web.1 of v1 begins"], 10, "what was there")
        say(talking, "v1.web.1", "before")
        eventually(lambda: texts(seen)[1:] == ["web.1 before"], 5, "what is said")
        eventually(lambda: hears(talking, alone), 10, "the other follows too")
        crash(talking, "v1.web.1")
        assert talking.ssh_command("ps:scale", app, "web=2").returncode == 0
        say(talking, "v2.web.2", "after")
        eventually(lambda: texts(seen)[-1] == "web.2 after", 5, "what started later")
        heard = [line for line in texts(seen) if "are you there" not in line]
        assert heard[1:5] == ["web.1 before", "web.1 no database", "web.1 last words", "web.1 web.1 of v1 begins"]
        assert sorted(heard[5:]) == ["web.1 web.1 of v2 begins", "web.2 after", "web.2 web.2 of v2 begins"]
        assert len(talking.gates()) == 2, "who serves it, and who waits for that"
        client.kill()
        took = eventually(lambda: not talking.gates(), 5, "nobody serves it any more, though nothing is said")
        print(f"gone after {took:.2f} s")
        operator.send_signal(signal.SIGINT)
        assert operator.wait(timeout=5) == 0
        kept = [line for line in texts(alone) if "are you there" not in line]
        assert kept[-3:] == ["web.1 no database", "web.1 last words", "web.1 web.1 of v1 begins"], (
            "v1 alone, from then on"
        )


def test_every_example_of_the_page_works(nap: Nap, hello: Pusher, tmp_path: Path) -> None:
    hello.commit(Dockerfile=TALKS)
    pushed(hello)
    tried = examples("logs.md")
    assert len(tried) == 7
    for words in tried:
        with following([str(COMMAND), *words], tmp_path / "said", nap) as process:
            if "-t" in words:
                if "0" not in words:
                    eventually(partial(holds, tmp_path / "said", "web.1: web.1 of v1 begins"), 10, " ".join(words))
                eventually(partial(hears, hello, tmp_path / "said"), 10, " ".join(words))
                process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == 0, words


@pytest.fixture
def distant(either: Cluster, either_receiver: Nap, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pusher]:
    """Someone with an app on a cluster."""
    yield from an_app(either_receiver, either, request, tmp_path)


@pytest.fixture
def with_ssh(either: Cluster, either_receiver: Nap, tmp_path: Path) -> Iterator[Nap]:
    """Its nap, which can log in to the machines."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "login")], check=True)
    for machine in either.machines.values():
        machine.write("/root/.ssh/authorized_keys", (tmp_path / "login.pub").read_text())
        machine.run("chmod", "0700", "/root/.ssh", "/root")
        machine.run("systemctl", "start", "ssh")
    # What would stand in ~/.ssh/config, which ssh finds without asking HOME.
    options = f"-i {tmp_path}/login -o UserKnownHostsFile={tmp_path}/hosts -o StrictHostKeyChecking=accept-new"
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {options} "$@"\n')
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{either_receiver.environment['PATH']}"
    yield Nap(
        either_receiver.folder, either_receiver.variables | {"PATH": path, "NAP_FLEET_LOGS": "ssh://root@{address}"}
    )
    for machine in either.machines.values():
        machine.run("systemctl", "stop", "ssh")


def test_journals_of_a_cluster(either: Cluster, distant: Pusher, with_ssh: Nap, tmp_path: Path) -> None:
    app = distant.app
    distant.commit(Dockerfile=TALKS)
    pushed(distant)
    untold = distant.ssh_command("logs", app)
    assert (untold.returncode, len(untold.stderr.splitlines())) == (1, 2)
    assert "fleet.logs is not set" in untold.stderr
    assert "set fleet.logs" in untold.stderr

    assert said(with_ssh, app) == [("web.1", "web.1 of v1 begins")]
    with following([str(COMMAND), "logs", app, "-t"], tmp_path / "seen", with_ssh) as operator:
        eventually(lambda: "begins" in (tmp_path / "seen").read_text(), 10, "what was there")
        machine = either.machines[host_of(either, app)]
        machine.docker("exec", f"{app}.v1.web.1", "touch", "/tmp/end")
        eventually(lambda: (tmp_path / "seen").read_text().count("begins") == 2, 20, "it crashed, and is back")
        kept = said(with_ssh, app)
        assert kept == [("web.1", text) for text in ("web.1 of v1 begins", "no database", "last words", kept[0][1])]
        distant.commit(index_html="two")
        pushed(distant)
        eventually(lambda: "web.1 of v2 begins" in (tmp_path / "seen").read_text(), 10, "and what started later")
        logins = [number for number, _, words in processes() if str(tmp_path / "login") in words]
        assert len(logins) == len(either.machines)
        operator.send_signal(signal.SIGINT)
        assert operator.wait(timeout=10) == 0
    eventually(lambda: not [w for _, _, w in processes() if str(tmp_path / "login") in w], 5, "ssh has ended")
    readers = ["pgrep", "--full", "--list-full", "^journalctl.*--follow"]
    eventually(lambda: not any(m.run(*readers, ok=False).stdout for m in either.machines.values()), 5, "there too")
    assert said(with_ssh, app, "--release", "v1") == kept
    assert said(with_ssh, app, "-n", "1") == [("web.1", "web.1 of v2 begins")]

    either.machines["n1"].run("systemctl", "stop", "ssh")
    if len(either.machines) == 1:
        away = with_ssh.run("logs", app, ok=False)
        assert away.returncode == 1
        assert "nap cannot read the journal of any machine of the cluster" in away.stderr
