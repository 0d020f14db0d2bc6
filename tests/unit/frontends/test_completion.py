"""Completion in a shell: what a person sees who presses Tab."""

import os
import pty
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nap import COMMAND

PROMPT = "then? "


class Bash:
    """An interactive bash on a terminal of its own, which nap's completion was read into."""

    def __init__(self, state: Path) -> None:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            path = f"{COMMAND.parent}:{os.environ['PATH']}"
            environment = os.environ | {"PATH": path, "TERM": "dumb", "NAP_STATE": str(state), "PS1": PROMPT}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self._unread = ""
        self.shown(PROMPT)
        self.run("source <(nap completion bash)")

    def run(self, line: str) -> None:
        """Run a line, whatever was typed before is dropped."""
        os.write(self._terminal, f"\x15{line}\n".encode())
        self.shown(f"{line}\r\n")
        self.shown(PROMPT)

    def typed(self, keys: str, answer: str) -> str:
        """What the terminal shows when these keys are typed, up to `answer`."""
        os.write(self._terminal, keys.encode())
        return self.shown(answer)

    def shown(self, text: str) -> str:
        """What the terminal shows next, up to this text."""
        ends = time.monotonic() + 20
        while text not in self._unread:
            assert select.select([self._terminal], [], [], max(0.0, ends - time.monotonic()))[0], self._unread
            self._unread += os.read(self._terminal, 65536).decode()
        before, _, self._unread = self._unread.partition(text)
        return before + text

    def end(self) -> None:
        """Hang up, which ends it."""
        os.close(self._terminal)
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    """Such a bash."""
    found = Bash(tmp_path)
    yield found
    found.end()


@pytest.mark.parametrize("breaks", ["", "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}"])
def test_commands_with_a_colon_are_completed(bash: Bash, breaks: str) -> None:
    if breaks:
        bash.run(breaks)
    assert "nap ps:scale " in bash.typed("nap ps:sc\t", "ps:scale ")
    bash.run("true")
    listed = bash.typed("nap ps:\t\t", PROMPT).split()[2:-1]
    assert [word.removeprefix("ps:") for word in listed] == ["restart", "scale", "start", "stop"]
    bash.run("true")
    assert "nap gitolite:install " in bash.typed("nap gitolite:in\t", "install ")


def test_what_comes_after_such_a_command_is_completed(bash: Bash) -> None:
    assert "nap releases:info --json " in bash.typed("nap releases:info --js\t", "--json ")
    bash.run("true")
    assert "nap access:add shop alice owner " in bash.typed("nap access:add shop alice ow\t", "owner ")
