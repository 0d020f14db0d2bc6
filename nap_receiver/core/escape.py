"""Escaping: one function for each place of a unit that a value can be in. Templates use them as filters.

systemd's rules are those of systemd.syntax(7), systemd.service(5) "Command lines" and systemd.unit(5) "Specifiers",
checked against the real parser (docs/design/libraries.md). supervisord's are those of configparser with inline
comments, of its `%(…)s` expansion and of shlex. A value that its place cannot hold is refused.
"""

import re
import shlex

from nap_receiver.core.errors import NapError

FLEET_LINE_BYTES = 2048
"""fleet refuses a line of a unit of this length and more (docs/design/fleet.md)."""

# Code points that systemd does not take for UTF-8 (unichar_is_valid in its utf8.c): it ignores the line they stand in.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    chr(plane | 0xFFFE) + chr(plane | 0xFFFF) for plane in range(0, 17 << 16, 1 << 16)
)
_NOT_UTF8_TO_SYSTEMD = re.compile(f"[{_NONCHARACTERS}\ud800-\udfff]")

_C_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}


def systemd_word(value: str) -> str:
    """Quote one word of an `Exec…=` line; not for the program itself, which must start with a slash."""
    return _within_a_line(f'"{_systemd_quoted(_refuse_nul(value)).replace("$", "$$")}"')


def systemd_script(script: str) -> str:
    """Quote a shell script as one word of an `Exec…=` line, one line of the unit for each line of the script.

    A backslash at a line's end joins it to the next with a space (systemd.syntax(7)), which to the shell is
    indentation; so a script must not care how its lines are indented. A line that begins with `#` or `;` would be a
    comment of the unit's, also in the middle of a value; and a byte order mark there would be dropped.
    """
    lines = [_systemd_quoted(line).replace("$", "$$") for line in _refuse_nul(script).rstrip("\n").split("\n")]
    lines = [re.sub(r"^ *[#;]", lambda begin: f"{begin[0][:-1]}\\x{ord(begin[0][-1]):02x}", line) for line in lines]
    return "\n".join(map(_within_a_line, ('"' + "\\n\\\n".join(lines) + '"').split("\n")))


def systemd_environment(value: str, name: str) -> str:
    """Return `"NAME=value"` for an `Environment=` line."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise NapError(f'"{name}" cannot be the name of an environment variable')
    if _NOT_UTF8_TO_SYSTEMD.search(value):
        raise NapError(f"{name}: systemd drops values that are not UTF-8")
    return _within_a_line(f'"{name}={_systemd_quoted(_refuse_nul(value))}"')


def systemd_text(value: str) -> str:
    """Escape a `Description=`: one line, no specifiers."""
    if _NOT_UTF8_TO_SYSTEMD.search(value):
        raise NapError(f"{value!r}: systemd drops a line that is not UTF-8")
    return _within_a_line(re.sub(r"\s+", " ", _refuse_nul(value)).replace("%", "%%").strip(" \\"))


def supervisor_word(value: str) -> str:
    """Quote one word of a supervisord `command=`.

    The value passes configparser, where ` ;` and ` #` begin a comment, where lines lose their white space at both
    ends and where a carriage return ends a line; then `%` expansion; then shlex. Closing and opening the quotes puts
    a quote beside whatever must not stand beside white space or a line's end, and within `%(here)s`, which supervisord
    replaces before all else.
    """
    if re.search(r"[\r\ud800-\udfff]", _refuse_nul(value)):
        raise NapError(f"{value!r}: a supervisord program can have only UTF-8 without carriage returns")
    value = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", '%%""')
    value = value.replace(";", '"";').replace("#", '""#').replace("\n", '""\n  ""')
    return f'"{value}"'


def supervisor_value(value: str) -> str:
    """Check a path or a plain value in a supervisord configuration: no white space at its ends, no comment in it.

    Nor a `%`, which supervisord expands once in some values and twice in others.
    """
    if value != value.strip() or re.search(r"[\x00-\x1f\ud800-\udfff%]|\s[;#]", value):
        raise NapError(f"{value!r} is not possible in a supervisord configuration")
    return value


def sshd_word(value: str) -> str:
    """Quote one argument in an sshd_config (sshd_config(5)). Some keywords expand `%`, and others do not."""
    if re.search(r'[\x00-\x1f"\\%\ud800-\udfff]', value):
        raise NapError(f"{value!r} is not possible in an sshd configuration")
    return f'"{value}"'


def git_value(value: str) -> str:
    """Quote a value in a git configuration (git-config(1), "Syntax")."""
    if re.search(r"[\x00-\x1f\ud800-\udfff]", value):
        raise NapError(f"{value!r} is not possible in a git configuration")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def perl_word(value: str) -> str:
    """Quote a string of Perl in single quotes (perlop(1), "Quote and Quote-like Operators"); bytes, without `use
    utf8`."""
    return "'" + _refuse_nul(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def sh_word(value: str) -> str:
    """Quote one word of a shell command."""
    return shlex.quote(_refuse_nul(value))


def _systemd_quoted(value: str) -> str:
    return "".join(map(_systemd_character, value))


def _systemd_character(c: str) -> str:
    if c in '\\"':
        return "\\" + c
    if c == "%":
        return "%%"
    if c in _C_ESCAPES:
        return _C_ESCAPES[c]
    if ord(c) < 32 or c in "\x7f\ufeff" or _NOT_UTF8_TO_SYSTEMD.match(c):
        return "".join(f"\\x{byte:02x}" for byte in _bytes(c))
    return c


def _bytes(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")  # a byte that is not UTF-8 is decoded so by Python
    except UnicodeEncodeError as error:
        raise NapError(f"{value!r}: a unit cannot contain half a character") from error


def _refuse_nul(value: str) -> str:
    if "\0" in value:
        raise NapError(f"{value!r}: a unit cannot contain a NUL character")
    return value


def _within_a_line(line: str) -> str:
    if len(_bytes(line)) > FLEET_LINE_BYTES - 256:  # room for the rest of the line
        raise NapError(f"{line[:40]}… is too long for a line of a unit; the limit is {FLEET_LINE_BYTES} bytes")
    return line
