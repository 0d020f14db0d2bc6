"""What escape writes, real parsers read back: systemd's manager, supervisord's options and OpenSSH's."""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nap_receiver.core import escape
from nap_receiver.core.errors import NapError
from tests.parsers import supervisor_reads, supervisor_runs, systemd_reads

NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)] + [
    chr(plane << 16 | c) for plane, c in product(range(17), (0xFFFE, 0xFFFF))
]

# What means something to one of the parsers, and words that have gone wrong, or nearly.
MEANINGFUL = [
    "'",
    '"',
    "\\",
    "$",
    "%",
    ";",
    "#",
    "\n",
    "\t",
    " ",
    "`",
    "!",
    "*",
    "~",
    "=",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
]
MEANINGFUL += ["&", "|", "<", ">", ":", ",", "-", "@", "+", "\x01", "\x0b", "\x1b", "\x1c", "\x7f", "\x85", "\xa0"]
MEANINGFUL += ["\u2028", "\u202e", "\ufeff", "é", "n", "x41", "(here)s", "${A}", "%n", "%%", "$$", "\\\n", " ;", " #"]
NASTY = [
    *MEANINGFUL,
    "",
    "  both ends\t",
    "\n\nlines\n",
    "\n;\n ;;\n#\n  # x\n",
    "byte order marks\n\ufeff\n\ufeff;\n \ufeff#",
    "ends with a backslash\\",
    "ends with two\\\\",
    "%(here)s",
    "%%(here)s",
    "%(ENV_PATH)s",
    "[x]\ncommand=/bin/sh",
    "$(id) `id` ${PATH} $PATH",
    'a" ; reboot "',
    "日本語 \U0001f600",
    "a" * 1700,
]


def texts(also: Sequence[str] = (), but: str = "\0") -> st.SearchStrategy[str]:
    """Text of every character but NUL, those that mean something to a parser more often than others."""
    meaningful = [text for text in [*MEANINGFUL, *also] if not set(text) & set(but)]
    any_character = st.characters(codec="utf-8", exclude_characters=but)
    return st.lists(st.sampled_from(meaningful) | any_character, max_size=30).map("".join)


words = texts(also=["\r", "\udc80", "\udcff", "\ufffe", "\ufdd0"])
values = texts(also=["\r"], but="\0" + "".join(NONCHARACTERS))
supervised = texts(but="\0\r")
many_at_once = partial(st.lists, max_size=12)

# An example starts a process or two, and so takes much longer than hypothesis is used to.
through_systemd = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def systemd_round_trip(
    words: Sequence[str] = (), scripts: Sequence[str] = (), values: Sequence[str] = (), description: str = ""
) -> None:
    lines = ["[Unit]", f"Description={escape.systemd_text(description)}", "[Service]"]
    lines += [f"Environment={escape.systemd_environment(value, f'V{i}')}" for i, value in enumerate(values)]
    lines += [f"ExecStartPre=/bin/sh -c {escape.systemd_script(script)}" for script in scripts]
    lines += [" \\\n    ".join(["ExecStart=/bin/true", *map(escape.systemd_word, words)])]
    read = systemd_reads({"t.service": "\n".join([*lines, ""])}, "t.service")
    assert read.complaints == ""
    assert read.commands["ExecStart"] == [["/bin/true", *words]]
    assert read.commands.get("ExecStartPre", []) == [["/bin/sh", "-c", indented(script)] for script in scripts]
    assert read.environment == {f"V{i}": value for i, value in enumerate(values)}
    assert read.description == (" ".join(description.split()).strip(" \\") or "t.service")


def indented(script: str) -> str:
    """A script as `systemd_script` promises it: each line but the first indented by a space more."""
    return script.rstrip("\n").replace("\n", "\n ")


@through_systemd
@given(many_at_once(words), many_at_once(words, max_size=5), many_at_once(values), values)
def test_systemd_reads_back_what_was_written(
    words: list[str], scripts: list[str], values: list[str], description: str
) -> None:
    systemd_round_trip(words, scripts, values, description)


def test_systemd_reads_back_nasty_values() -> None:
    not_utf8 = ["\udc80", "a\udcffb", *NONCHARACTERS]
    systemd_round_trip(words=NASTY + not_utf8, scripts=NASTY + not_utf8, values=NASTY)


@pytest.mark.parametrize("description", ["a  b\n[Service]\nExecStart=/bin/sh", "%n 100%", "ends with a backslash \\\\"])
def test_a_description_stays_one_line(description: str) -> None:
    systemd_round_trip(description=description)


def test_a_script_does_the_same_after_systemd() -> None:
    script = """\
# a comment, dropped by nobody but the shell
greet() {
    printf '%s|' "$@" "${1#a}" '$HOME' "a\\b" `echo back` $((7 % 4)) "%%n %n"
}
case $# in
    0)
        greet abc "d  e" 'f;g' "h\\"i"
        ;;
    *) greet none ;;
esac
; """.removesuffix("; ")
    read = systemd_reads(
        {"t.service": f"[Service]\nExecStart=/bin/sh -c {escape.systemd_script(script)}\n"}, "t.service"
    )
    [[_, _, after]] = read.commands["ExecStart"]
    before = subprocess.run(["sh", "-c", script], capture_output=True, check=True, text=True)
    assert before.stdout.startswith("abc|d  e|f;g|")
    same = subprocess.run(["sh", "-c", after], capture_output=True, check=True, text=True)
    assert (same.stdout, same.stderr) == (before.stdout, "")


@settings(max_examples=80, deadline=None)
@given(many_at_once(many_at_once(supervised, max_size=4), min_size=1, max_size=6))
def test_supervisord_runs_the_words_that_were_written(commands: list[list[str]]) -> None:
    supervisor_round_trip(commands)


def test_supervisord_runs_nasty_words() -> None:
    supervisor_round_trip([[*NASTY], *([word] for word in [*NASTY, *NONCHARACTERS])])


def supervisor_round_trip(commands: list[list[str]]) -> None:
    text = ""
    for i, command in enumerate(commands):
        lines = [f"[program:p{i}]", "command=/bin/true", *(f"    {escape.supervisor_word(word)}" for word in command)]
        text += "\n".join([*lines, "priority=7", ""])
    with tempfile.TemporaryDirectory() as folder:
        programs = supervisor_reads({"u.conf": text}, Path(folder))
    assert {program.config.priority for program in programs.values()} == {7}
    assert {name: supervisor_runs(program) for name, program in programs.items()} == {
        f"p{i}": ["/bin/true", *command] for i, command in enumerate(commands)
    }


@settings(max_examples=100, deadline=None)
@given(texts(also=["/"]))
def test_supervisord_reads_back_a_value_that_is_not_refused(value: str) -> None:
    try:
        escaped = escape.supervisor_value(f"/{value}")
    except NapError:
        return
    with tempfile.TemporaryDirectory() as folder:
        programs = supervisor_reads({"u.conf": f"[program:p]\ncommand=/bin/true\ndirectory={escaped}\n"}, Path(folder))
    assert programs["p"].config.directory == f"/{value}"


@pytest.mark.parametrize("path", ["/a b", "/a;b#c", "/é'\"\\", "/(here)s $x"])
def test_usual_paths_can_stand_in_a_supervisord_configuration(path: str, tmp_path: Path) -> None:
    logs = Path(f"{tmp_path}{path}")
    logs.mkdir()
    escaped = escape.supervisor_value(f"{logs}/a.log")
    programs = supervisor_reads({"u.conf": f"[program:p]\ncommand=/bin/true\nstdout_logfile={escaped}\n"}, tmp_path)
    assert programs["p"].config.stdout_logfile == f"{logs}/a.log"


Escape = Callable[[str], str]
EVERYWHERE: list[Escape] = [
    escape.systemd_word,
    escape.systemd_script,
    partial(escape.systemd_environment, name="A"),
    escape.systemd_text,
    escape.supervisor_word,
    escape.supervisor_value,
    escape.sshd_word,
]


@pytest.mark.parametrize("escaped", EVERYWHERE)
@pytest.mark.parametrize("value", ["a\0b", "\ud800", "a\udfff"])
def test_what_no_program_can_be_given_is_refused(escaped: Escape, value: str) -> None:
    with pytest.raises(NapError):
        escaped(value)


@pytest.mark.parametrize(
    ("escaped", "value"),
    [
        (escape.supervisor_word, "a\rb"),
        (escape.supervisor_word, "not UTF-8: \udc80"),
        *((escape.supervisor_value, value) for value in (" a", "a ", "a\nb", "a ;b", "a\t#b", "100%", "\udc80")),
        *((escape.sshd_word, value) for value in ('a"b', "a\\b", "a\nb", "100%")),
        *((escape.systemd_text, value) for value in ("\udc80", "\ufffe")),
        *((partial(escape.systemd_environment, name="A"), value) for value in ("\udc80", "\ufdd0", "\U0010ffff")),
        *((partial(escape.systemd_environment, name=name), "") for name in ("", "1A", "A-B", "A B", "A=B", "A\n", "É")),
    ],
)
def test_what_cannot_stand_in_a_place_is_refused(escaped: Escape, value: str) -> None:
    with pytest.raises(NapError):
        escaped(value)


@pytest.mark.parametrize("escaped", EVERYWHERE[:4])
@pytest.mark.parametrize("value", ["a" * 2040, "é" * 1000, "a %" + "\\$" * 900])
def test_a_line_too_long_for_fleet_is_refused(escaped: Escape, value: str) -> None:
    with pytest.raises(NapError, match="too long"):
        escaped(value)


def test_a_long_script_of_short_lines_is_not_too_long() -> None:
    script = "echo hello\n" * 1000
    assert escape.systemd_script(script).count("\n") == 999


def test_openssh_reads_back_words() -> None:
    paths = ["/a b", "/a#b", "/a #b", "/a'b", "/a;$b", "/é"]
    for path in paths:
        # The client's parser of words is the server's, and it needs no host key.
        configuration = f"GlobalKnownHostsFile {escape.sshd_word(path)}\n"
        read = subprocess.run(
            ["ssh", "-G", "-F", "/dev/stdin", "host"], input=configuration, capture_output=True, check=True, text=True
        )
        assert f"globalknownhostsfile {path}\n" in read.stdout
