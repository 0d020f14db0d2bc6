"""What runs a line of shell in a container, so that signals reach its programs; test_public_apps.py has real ones."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from nap_receiver.model.command import heeding_signals
from tests.nap import eventually


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", []),
        ("./serve", ["./serve"]),
        ("gunicorn  --bind=0.0.0.0:8000 'site of:app'", ["gunicorn", "--bind=0.0.0.0:8000", "site of:app"]),
        ("serve -p $PORT", ["/bin/sh", "-c", "exec serve -p $PORT"]),
        ("serve -p ${PORT:-3000} -e 'a  b'", ["/bin/sh", "-c", "exec serve -p ${PORT:-3000} -e 'a  b'"]),
        ("$HOME/serve *.conf", ["/bin/sh", "-c", "exec $HOME/serve *.conf"]),
        ("serve 'a;b' \"c && d\"", ["/bin/sh", "-c", "exec serve 'a;b' \"c && d\""]),
        ("A=1 B='2  3' serve", ["/bin/sh", "-c", "A=1 B='2  3' exec serve"]),
        ("serve #1 \\d", ["/bin/sh", "-c", "exec serve #1 \\d"]),
        ("A=1", ["/bin/sh", "-c", "A=1"]),
        ("exec serve && other", ["/bin/sh", "-c", "exec serve && other"]),
    ],
)
def test_a_simple_command_takes_the_place_of_its_shell_or_needs_none(command: str, words: list[str]) -> None:
    assert heeding_signals(command) == words


@pytest.mark.parametrize(
    "command",
    [
        "a && b",
        "a; b",
        "a\nb",
        "a | b",
        "a &",
        "a 2>&1",
        "a >/dev/null",
        "(a)",
        "cd web && a",
        "cd web",
        "if a; then b; fi",
        "a $(b)",
        ": a",
        "a 'b",
        "a b'c d",
        "a b'c && d'",
        'a \\" && b \\"',
    ],
)
def test_for_more_than_that_the_shell_stays(command: str) -> None:
    words = heeding_signals(command)
    assert words[:2] == ["/bin/sh", "-c"]
    assert words[3:] == ["sh", command]


SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])]
SLOW = (
    "import signal, sys, time\n"
    "def end(*_):\n    time.sleep(0.5); print('ended well', flush=True); sys.exit(7)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "print('ready', flush=True)\n"
    "time.sleep(30)\n"
)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("python3 {slow}", 7),
        ("echo first && python3 {slow}", 7),
        ("python3 {slow}; echo never", 7),
        ("python3 {slow} | cat", None),
        ("python3 {slow} & wait", None),
        ("A=1 python3 {slow} $NOTHING", 7),
        ("cd / && exec python3 {slow}", 7),
        ("if true; then python3 {slow}; fi", 7),
    ],
)
def test_sigterm_reaches_the_program_and_its_end_is_waited_for(
    tmp_path: Path, shell: list[str], line: str, status: int | None
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    words = heeding_signals(line.format(slow=slow))
    words = [*shell, *words[1:]] if words[0] == "/bin/sh" else words
    printed = tmp_path / "printed"
    with printed.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        eventually(lambda: "ready" in printed.read_text(), 20, "it runs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == status or status is None
        assert "ended well" in printed.read_text()
        assert "never" not in printed.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize(("line", "status"), [("true && exit 3", 3), ("false || true", 0), ("false; false", 1)])
def test_the_status_is_that_of_the_line(shell: list[str], line: str, status: int) -> None:
    words = heeding_signals(line)
    assert subprocess.run([*shell, *words[1:]], timeout=20).returncode == status
