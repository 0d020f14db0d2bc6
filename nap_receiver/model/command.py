"""How a container runs a line of shell, such as one of a Procfile.

A container is stopped with SIGTERM to its first process only: Docker's init passes the signal to its child and to no
other process. A shell there would die of it and leave its children. So a simple command replaces its shell or needs
none. For other commands the shell passes the signal on and waits.
"""

import re
import shlex

_ASSIGNMENTS = re.compile(r"""\s*(?:[A-Za-z_][A-Za-z0-9_]*=(?:'[^']*'|"[^"]*"|[^\s'"])*(?:\s+|$))*""")
_PLAIN = re.compile(r"[A-Za-z0-9_./:=@%+, \t'\"-]*")
_OPERATORS = ";&|<>()\n"
_QUOTED_QUOTE = re.compile(r"""\\['"]""")
_WORD = re.compile(r"""(?:[^'"]|'[^']*'|"[^"]*")+""")  # whose quotes end, for shlex knows only those that begin a word

# Reserved words and built-in utilities of POSIX.1-2024 (XCU 2.4 and 2.15) and of bash; there may be no program.
_WORDS_OF_THE_SHELL = """
! { } [[ case coproc do done elif else esac fi for function if in select then time until while
. : [ alias bg break builtin cd command continue declare echo eval exec exit export false fc fg getopts hash jobs kill
let local popd printf pushd pwd read readonly return set shift shopt source test times trap true type typeset ulimit
umask unalias unset wait
"""
_OF_THE_SHELL = frozenset(_WORDS_OF_THE_SHELL.split())

# The inner shell, that of the line, ends when what it runs then has ended. All of them are one process group.
_PASSING_ON = """\
trap 'trap "" TERM; kill -TERM 0; wait $!; exit $?' TERM
{ trap 'status=$?; wait; exit $status' TERM; eval "$1"; } &
wait $!
"""


def in_shell(command: str) -> list[str]:
    """Return the arguments of a container that runs a command as a Dockerfile's `CMD command`; none for no command."""
    return ["/bin/sh", "-c", command] if command else []


def heeding_signals(command: str) -> list[str]:
    """Return the same, so that SIGTERM reaches the programs of the command and they get their time to end.

    A command of plain words needs no shell in the image.
    """
    match = _ASSIGNMENTS.match(command)
    assignments = match[0] if match else ""
    program = command.removeprefix(assignments)
    words = _words(program)
    if not words or (words[0] == "exec" and not assignments):
        return in_shell(command)
    if words[0] in _OF_THE_SHELL or any(set(word) <= set(_OPERATORS) for word in words):
        return ["/bin/sh", "-c", _PASSING_ON, "sh", command]
    if not assignments and _PLAIN.fullmatch(program):
        return shlex.split(program)
    return in_shell(f"{assignments}exec {program}")


def _words(command: str) -> list[str]:
    """Split the command into words, with quotes kept and operators as separate words; one operator if that is
    uncertain."""
    if _QUOTED_QUOTE.search(command):
        return [_OPERATORS]
    lexer = shlex.shlex(command, punctuation_chars=_OPERATORS)
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:  # a quote does not end
        return [_OPERATORS]
    return words if all(map(_WORD.fullmatch, words)) else [_OPERATORS]
