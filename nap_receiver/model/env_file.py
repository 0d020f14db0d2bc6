"""Variables as text: parse a `.env` file; format variables as one, for a shell, or as JSON.

Variables in values are not expanded: `$HOME` in a file stays `$HOME`.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Literal, get_args

from nap_receiver.core.errors import NapError
from nap_receiver.model.variables import check_value, checked_name, is_naps_own

LONGEST_BYTES = 1 << 20
"""Of a file that is read: more than any app may have, with room for comments."""

Form = Literal["dotenv", "shell", "json"]
FORMS: tuple[Form, ...] = get_args(Form)

_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")
_REFERENCE = re.compile(r"\$\{[A-Za-z_]")
_NEWLINE = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class EnvFile:
    """The variables of a `.env` file, and notices for its reader, one sentence each."""

    values: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def read_env_file(content: bytes) -> EnvFile:
    """Parse a `.env` file as python-dotenv does; if a name is defined twice, the last value counts.

    A variable that nap sets itself is left out, with a notice. Raises `NapError`, with the number of the line, for
    what is no variable.
    """
    from dotenv.parser import parse_stream  # a library that no other command needs

    if len(content) > LONGEST_BYTES:
        raise NapError(f"a file of variables has at most {LONGEST_BYTES} bytes; nothing was changed")
    text = content.decode("utf-8", "surrogateescape")
    found = EnvFile()
    for binding in parse_stream(StringIO(text, newline="")):
        written = binding.original.string
        skipped = written[: len(written) - len(written.lstrip())]
        place = f"line {binding.original.line + len(_NEWLINE.findall(skipped))}"
        if binding.error:
            raise _refusal(place, "expected NAME=VALUE, or a quote that ends")
        if binding.key is None:
            continue
        if is_naps_own(binding.key):
            found.notices.append(f"{place}: {binding.key} is set by nap: skipped")
            continue
        try:
            name = checked_name(binding.key)
            if binding.value is None:
                raise NapError(f"{name} has no value", advice=f"To set it empty, write {name}= there.")
            check_value(name, binding.value)
        except NapError as error:
            raise _refusal(place, str(error), error.advice) from error
        if _REFERENCE.search(binding.value):
            found.notices.append(f"{place}: {name} keeps ${{…}} as written: nap does not expand it")
        found.values[name] = binding.value
    return found


def written_as(values: Mapping[str, str], form: Form) -> str:
    """Format the variables as text, ordered by name: as a `.env` file, as shell commands, or as one JSON object.

    `read_env_file`, `eval` of a POSIX shell, and a reader of JSON give the same values again.
    """
    ordered = dict(sorted(values.items()))
    if form == "json":
        return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"
    if form == "shell":
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in ordered.items())
    return "".join(f"{name}={_quoted(value)}\n" for name, value in ordered.items())


def _quoted(value: str) -> str:
    """Quote a value for a `.env` file in the first way on which all readers of such files agree."""
    if _PLAIN.fullmatch(value):
        return value
    if not set(value) & set("'\\"):
        return f"'{value}'"
    if not set(value) & set('"\\$`'):
        return f'"{value}"'
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _refusal(place: str, reason: str, advice: list[str] | None = None) -> NapError:
    return NapError(f"{place}: {reason}; nothing was changed", advice=advice or [])
