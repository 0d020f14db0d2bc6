"""Unit files as fleet reads, writes and hashes them, by the rules of go-systemd.

Reading is done with the same buffer of 4,096 bytes as there, because it decides which long lines are refused.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_LINE_MAX = 2048
_BUFFER = 4096
_NAME_MAX = 256
# Go's idea of white space lacks the four separators of ASCII that are in Python's.
_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")
_PLAYED = {"Conflicts", "MachineID", "MachineMetadata", "MachineOf"}
_KNOWN = {
    *_PLAYED,
    "Global",
    "Replaces",
    "X-Conflicts",
    "X-ConditionMachineBootID",
    "X-ConditionMachineID",
    "X-ConditionMachineMetadata",
    "X-ConditionMachineOf",
}

Option = tuple[str, str, str]
"""Section, name and value."""


class Refused(Exception):
    """A unit that fleet does not take, in its words."""


class UnitFile(NamedTuple):
    """A unit's options, in their order."""

    options: Sequence[Option]

    @property
    def text(self) -> str:
        """The unit as fleet writes it down: grouped by section, without comments and empty lines."""
        sections: dict[str, list[str]] = {}
        for section, name, value in self.options:
            sections.setdefault(section, [f"[{section}]\n"]).append(f"{name}={value}\n")
        return "\n".join("".join(lines) for lines in sections.values())

    @property
    def hash(self) -> str:
        return hashlib.sha1(_bytes(self.text)).hexdigest()

    @property
    def description(self) -> str:
        return next((value for section, name, value in self.options if (section, name) == ("Unit", "Description")), "")

    def requirements(self, unit: str = "") -> dict[str, list[str]]:
        """What `[X-Fleet]` asks for, with specifiers expanded where the unit's name is given."""
        asked: dict[str, list[str]] = {}
        name = unit.rpartition(".")[0]
        specifiers = {"%n": unit, "%N": name, "%p": name.partition("@")[0], "%i": name.partition("@")[2]}
        for _, key, value in (option for option in self.options if option[0] == "X-Fleet"):
            for word in _several(value):
                for specifier, meant in specifiers.items() if unit else ():
                    word = word.replace(specifier, meant)
                asked.setdefault(key, []).append(word)
        return asked

    def unknown_requirements(self) -> list[str]:
        """What `[X-Fleet]` asks for and fleet knows nothing of."""
        return sorted(set(self.requirements()) - _KNOWN)

    def unplayed_requirements(self) -> list[str]:
        """What `[X-Fleet]` asks for and only the real fleet knows."""
        return sorted(set(self.requirements()) & _KNOWN - _PLAYED)


def read(text: bytes) -> UnitFile:
    """What fleet makes of a file. Raises `Refused`."""
    return UnitFile(_Lexer(text).options())


def validate(unit: UnitFile, name: str) -> None:
    """Raise `Refused` where fleet does not take `unit` under `name`."""
    if len(_bytes(name)) > _NAME_MAX:
        raise Refused(f"unit name exceeds maximum length ({_NAME_MAX})")
    bad = re.search(r"[^0-9a-zA-Z:_.\\@-]", name.rpartition(".")[0])
    if bad:
        raise Refused(f"invalid character '{bad[0]}' in unit name")
    read(_bytes(unit.text))
    asked = unit.requirements()
    conflicts = words(asked, "Conflicts")
    for peer in asked.get("MachineOf", []):
        for conflict in conflicts:
            if matches(conflict, peer):
                raise Refused(f'unresolvable requirements: peer "{peer}" matches conflict "{conflict}"')
    if "MachineID" in asked and "MachineOf" in asked:
        raise Refused("MachineID cannot be used with Peers")
    if "MachineID" in asked and conflicts:
        raise Refused("MachineID cannot be used with Conflicts")


def words(requirements: dict[str, list[str]], key: str) -> list[str]:
    """All the words of a requirement that takes several in one value."""
    return [word for value in requirements.get(key, []) for word in value.split()]


def matches(pattern: str, name: str) -> bool:
    """Whether `name` matches as by Go's `path.Match`, but that a pattern it calls bad never does."""
    parts = {"*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\\.|\[\^?[^]]+\]|.", pattern, re.DOTALL)
    expression = "".join(parts.get(t) or (t if len(t) > 1 and t[0] == "[" else re.escape(t[-1])) for t in tokens)
    try:
        return re.fullmatch(expression, name, re.DOTALL) is not None
    except re.error:
        return False


def _several(value: str) -> list[str]:
    """The words of `"a=b" "c=d"`; any other value is one word."""
    if not (value.startswith('"') and value.endswith('"')):
        return [value]
    found, inside = [""], False
    for letter in value:
        if letter == '"':
            inside = not inside
        elif letter == " " and not inside:
            found.append("")
        else:
            found[-1] += letter
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(read: bytes) -> str:
    # What is not UTF-8 does not survive the API's JSON.
    return read.decode("utf-8", "replace")


def _is_blank(read: bytes) -> bool:
    return not _text(read).strip(_SPACE)


_Step = Callable[[], "_Step | None"]


class _Lexer:
    """go-systemd's, step by step: how long a line may be is looked at between two steps."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._at = self._filled = 0
        self._found: list[Option] = []
        self._section = self._name = ""
        self._value = b""

    def options(self) -> list[Option]:
        step: _Step | None = self._between_sections
        while step is not None:
            if self._filled - self._at >= _LINE_MAX:
                line = self.text[self._at : self._at + _LINE_MAX]
                if b"\r" not in line and b"\n" not in line:
                    raise Refused(f"line too long (max {_LINE_MAX} bytes)")
            step = step()
        return self._found

    def _between_sections(self) -> "_Step | None":
        rune = self._rune()
        if rune is None:
            return None
        if rune == "[":
            return self._section_name
        if rune in "#;":
            return lambda: self._comment(self._between_sections)
        return self._between_sections

    def _section_name(self) -> _Step:
        name, ended = self._until(b"]")
        if not ended:
            raise Refused("unable to find end of section")
        self._section = _text(name[:-1])
        return self._after_section_name

    def _after_section_name(self) -> _Step:
        garbage, _ = self._line()
        if not _is_blank(garbage):
            codes = " ".join(map(str, _text(garbage).strip(_SPACE).encode()))
            raise Refused(f"found garbage after section name : [{codes}]")
        return self._section_or_option

    def _section_or_option(self) -> "_Step | None":
        before = self._at
        rune = self._rune()
        if rune is None:
            return None
        if rune in _SPACE:
            return self._section_or_option
        if rune == "[":
            return self._section_name
        if rune in "#;":
            return lambda: self._comment(self._section_or_option)
        self._at = before
        return self._option_name

    def _option_name(self) -> _Step:
        name = ""
        while (rune := self._rune()) != "=":
            if rune is None:
                raise Refused("EOF")
            if rune in "\r\n":
                raise Refused("unexpected newline encountered while parsing option name")
            name += rune
        self._name, self._value = name.strip(_SPACE), b""
        return self._option_value

    def _option_value(self) -> _Step:
        line, ended = self._line()
        if not _is_blank(line):
            self._value += line
            if line.endswith(b"\\"):
                self._value += b"\n" if ended else b""
                return self._option_value
        value = _text(self._value)
        value = value.strip(_SPACE) + "\n" * value.endswith("\n")
        self._found.append((self._section, self._name, value))
        return self._section_or_option

    def _comment(self, step: _Step) -> _Step:
        while self._line()[0].removesuffix(b" ").endswith(b"\\"):
            pass
        return step

    def _line(self) -> tuple[bytes, bool]:
        """The bytes up to the end of the line, and whether it was ended by one."""
        line, ended = self._until(b"\n")
        return line.removesuffix(b"\r").removesuffix(b"\n"), ended

    def _until(self, end: bytes) -> tuple[bytes, bool]:
        start = self._at
        while True:
            found = self.text.find(end, self._at, self._filled)
            if found >= 0:
                self._at = found + 1
                return self.text[start : self._at], True
            if self._filled - self._at >= _BUFFER:
                self._at = self._filled
            elif not self._fill():
                self._at = self._filled
                return self.text[start : self._at], False

    def _rune(self) -> str | None:
        if self._at == self._filled and not self._fill():
            return None
        lead = self.text[self._at]
        width = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        if self._at + width > self._filled:
            self._fill()
        rune = _text(self.text[self._at : self._at + width])
        self._at += width if len(rune) == 1 else 1
        return rune[0]

    def _fill(self) -> bool:
        """Have the buffer begin here, and as full as it gets; whether that gave it more."""
        before = self._filled
        self._filled = min(len(self.text), self._at + _BUFFER)
        return self._filled > before
