"""What the commands say of themselves, and of what they do not understand; on the host and over ssh."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.frontends import cli
from nap_receiver.frontends.commands.table import Caller, at_rest, guests
from nap_receiver.frontends.commands.table import nap as on_host
from nap_receiver.frontends.gate_session import _let_through
from nap_receiver.model.release import Release
from nap_receiver.model.variables import checked_name
from tests.nap import COMMAND

NOT_UNDERSTOOD = [
    (["ps:scale", "hello", "web=x"], 'expected PROCESS=COUNT with a count from 0 to 100, got "web=x"'),
    (["ps:scale", "hello", "web=-1"], 'expected PROCESS=COUNT with a count from 0 to 100, got "web=-1"'),
    (["ps:scale", "hello", "web"], 'expected PROCESS=COUNT with a count from 0 to 100, got "web"'),
    (["ps:scale", "hello", "web=2", "web=3"], "expected each PROCESS once, got web twice"),
    (["logs", "hello", "-n", "x"], "expected a number of lines from 0 to 10000, got 'x'"),
    (["logs", "hello", "-p", "../x"], "expected a process such as web or web.1, got '../x'"),
    (["releases:info", "hello", "vX"], "expected a release such as v3, got 'vX'"),
    (
        ["resource:limit", "hello", "--memory", "1x"],
        "--memory: expected a size of 6m or more, such as 512m or 2g, or 0 for the default, got '1x'",
    ),
    (
        ["resource:limit", "hello", "--cpu", "-1"],
        "--cpu: expected a number of 0.01 or more, such as 0.5 or 2, or 0 for the default, got '-1'",
    ),
    (["ps:scale"], "Missing argument 'APP'."),
]


def test_help_is_a_command_on_the_host_and_over_ssh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def on_this_host(*words: str) -> tuple[int, str]:
        environment = {"NAP_STATE": str(tmp_path)}
        done = subprocess.run([str(COMMAND), *words], env=environment, text=True, capture_output=True, timeout=20)
        return done.returncode, done.stdout

    def over_ssh(*words: str) -> tuple[int, str]:
        return cli.over_ssh(list(words), State(tmp_path), "alice"), capsys.readouterr().out

    for run, name, commands in ((on_this_host, "nap", on_host), (over_ssh, "ssh HOST", guests)):
        status, listed = run("help")
        assert status == 0
        assert re.findall(r"^  ([a-z:]+)  ", listed, re.MULTILINE) == commands.list_commands(click.Context(commands))
        for command in ("ps:scale", "help"):
            status, shown = run("help", command)
            assert (status, shown.split("\n")[0].startswith(f"Usage: {name} {command} ")) == (0, True)
            assert run(command, "--help") == (0, shown)
        assert run("--help") == (0, listed)
    assert on_this_host() == on_this_host("help")


def test_a_command_without_a_right_is_refused_to_those_who_come_over_ssh(tmp_path: Path) -> None:
    guest = Caller(State(tmp_path), "alice", is_operator=False)
    with pytest.raises(click.UsageError, match=r"^doctor is not a command over ssh$"):
        on_host.main(["doctor"], obj=guest, standalone_mode=False)


def test_whole_sentences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.over_ssh(["help"], State(tmp_path), "alice")
    listed = " ".join(capsys.readouterr().out.split())
    assert "..." not in listed.partition("Commands:")[2]
    assert "Stop APP and delete its instances, releases, rights, repository and logs. apps:rename" in listed
    assert "Give USER a right to APP: read, push (includes read), or owner (includes push). access:remove" in listed


@pytest.mark.parametrize(("words", "why"), NOT_UNDERSTOOD)
def test_what_is_not_understood_ends_with_2_and_points_to_its_help(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    why: str,
) -> None:
    assert cli.over_ssh(words, State(tmp_path), "alice") == 2
    assert capsys.readouterr().err == f" !     {why}\n !     To see its usage: ssh HOST help {words[0]}\n"
    monkeypatch.setattr("sys.argv", ["nap", *words])
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main()
    assert capsys.readouterr().err == f" !     {why}\n !     To see its usage: nap help {words[0]}\n"


def test_a_command_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nope"], ["help", "nope"], ["help", "up"]):
        assert cli.over_ssh(words, State(tmp_path), "alice") == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith(f" !     No such command '{words[-1]}'")
        assert second == " !     To list the commands: ssh HOST help"


def test_a_name_that_cannot_be_an_apps_was_understood(tmp_path: Path) -> None:
    with pytest.raises(NapError, match=r'^"HELLO" cannot be an app\'s name'):
        cli.over_ssh(["ps", "HELLO"], State(tmp_path), "alice")


def test_a_quote_that_does_not_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Channel(2) as channel:
        assert _let_through("logs 'hello", State(tmp_path), "alice", channel) == 2
    said = capfd.readouterr().err
    assert said.startswith(" !     that command cannot be read: no closing quotation\n !     ")
    assert said.endswith(" !     To list the commands: ssh HOST help\n")


def test_which_nap_it_is() -> None:
    done = subprocess.run([str(COMMAND), "--version"], text=True, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, f"nap {version('nap')}\n")


def test_no_value_is_none_and_an_empty_one_is_asked_for(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(COMMAND), "config:set", "hello", "KEY"],
        env={"NAP_STATE": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (
        1,
        " !     no value for KEY on standard input\n !     To set it empty: config:set hello KEY=\n",
    )


def test_a_variable_begins_with_no_digit() -> None:
    with pytest.raises(NapError, match=r"^'1X' is not a valid variable name$") as refused:
        checked_name("1X")
    assert refused.value.advice == ["Use A to Z, a to z, 0 to 9 and _, and no digit at its beginning."]


@pytest.mark.parametrize(
    ("formation", "stopped", "process", "told"),
    [
        ({"web": 1}, False, "", None),
        ({"web": 0, "worker": 1}, False, "", None),
        ({"web": 0, "worker": 1}, False, "worker", None),
        ({"web": 1}, False, "nope", None),
        ({"web": 1}, True, "", ("hello is stopped", "To start it again: ps:start hello")),
        ({"web": 0}, False, "", ("hello has no instance: it is scaled to 0", "To start one: ps:scale hello web=1")),
        ({"job": 0}, False, "", ("hello has no instance: it is scaled to 0", "To start one: ps:scale hello job=1")),
        (
            {"web": 1, "worker": 0},
            False,
            "worker",
            ("hello has no worker: it is scaled to 0", "To start one: ps:scale hello worker=1"),
        ),
    ],
)
def test_why_nothing_runs(formation: dict[str, int], stopped: bool, process: str, told: tuple[str, str] | None) -> None:
    release = Release(
        app="hello",
        commit="",
        image="",
        ports=["8080/tcp"],
        has_healthcheck=False,
        formation=formation,
        stopped=stopped,
        by="alice",
        why="Scale",
    )
    assert at_rest(release, process) == told
