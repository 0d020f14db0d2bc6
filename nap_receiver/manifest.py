"""What a commit says of its app beside the Dockerfile: its Procfile, and Heroku's and Dokku's app.json.

Both are read and checked before anything is built; every mistake is told with its place. What app.json may say besides,
for other platforms, changes nothing and is named.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from nap_receiver.errors import NapError
from nap_receiver.health import Check
from nap_receiver.release import MOST_INSTANCES, PROCESS_TYPE, ROUTER, WEB
from nap_receiver.variables import check_value, checked_name

_PROCFILE_LINE = re.compile(rf"({PROCESS_TYPE.pattern})\s*:\s*(\S.*)")
_RELEASE = "release"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SECRET_BYTES = 32

# What describes an app, and asks for nothing.
_DESCRIPTIONS = {"$schema", "name", "description", "keywords", "website", "repository", "logo", "success_url"}

_Seconds = Annotated[int, msgspec.Meta(ge=0, le=3600)]
_Times = Annotated[int, msgspec.Meta(ge=1, le=3600)]
_WORDS = {
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "str | object": "text or an object",
}
_CHOICES = {"type": '"startup" or "liveness"', "generator": '"secret"'}


class _Formation(msgspec.Struct, frozen=True):
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MOST_INSTANCES)]


class _Ranges(msgspec.Struct, frozen=True, rename="camel"):
    """The ranges of a `Check`'s numbers."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    uptime: _Seconds = 0
    initial_delay: _Seconds = 0
    timeout: _Times = 1
    attempts: _Times = 1
    wait: _Seconds = 0


class Variable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An environment variable that the app needs, as app.json's `env` has it."""

    description: str = ""
    value: str | None = None
    required: bool = True
    """Whether there is no deploy without it; one that has a value or a generator is never missing."""
    generator: Literal["secret"] | None = None
    sync: bool = False  # Dokku's


class _Scripts(msgspec.Struct, frozen=True):
    postdeploy: str = ""


@dataclass(frozen=True)
class Manifest:
    """What the Procfile and app.json say."""

    commands: dict[str, str] = field(default_factory=lambda: {WEB: ""})
    """What each process type runs; empty for the image's own command."""
    release_command: str = ""
    quantities: dict[str, int] = field(default_factory=dict)
    """How many instances of a process type there are at first; one where this says nothing."""
    checks: dict[str, list[Check]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    postdeploy: str = ""
    """What runs once, after the app's first release that is live."""
    ignored: list[str] = field(default_factory=list)
    """Places in app.json that mean nothing here."""

    def formation(self, before: Mapping[str, int]) -> dict[str, int]:
        """How many instances of each process type there are; those that were there `before` keep their count."""
        return {process: before.get(process, self.quantities.get(process, 1)) for process in self.commands}

    def unset(self, app: str, there: Mapping[str, str]) -> dict[str, str]:
        """Values for the variables that are not `there`. Raises `NapError` that names those without which none runs."""
        missing = {name: variable for name, variable in self.variables.items() if name not in there}
        values = {name: value for name, variable in missing.items() if (value := _value(variable)) is not None}
        if lacking := [name for name, each in missing.items() if each.required and name not in values]:
            raise NapError(
                f"{app}: app.json: env.{lacking[0]}: required, and not set"
                + (f"; nor are {', '.join(lacking[1:])}" if lacking[1:] else ""),
                advice=[
                    f"Set what is missing, then push again: config:set {app} {' '.join(f'{n}=…' for n in lacking)}",
                    "Nothing was built, and what ran before still runs.",
                ],
            )
        return values


def manifest_of(app: str, files: Mapping[str, bytes]) -> Manifest:
    """What `Procfile` and `app.json` say, whose contents are given by name where there are any. Raises `NapError`."""
    try:
        commands = _procfile(files["Procfile"]) if "Procfile" in files else {WEB: ""}
        release_command = commands.pop(_RELEASE, "")
        return _app_json(files.get("app.json"), commands, release_command)
    except NapError as error:
        advice = [*error.advice, "Mend it, commit, and push again; nothing was built, and what ran before still runs."]
        raise NapError(f"{app}: {error}", advice=advice) from error


def _procfile(content: bytes) -> dict[str, str]:
    commands: dict[str, str] = {}
    for number, line in enumerate(_text(content, "Procfile").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        place = f"Procfile: line {number}"
        match = _PROCFILE_LINE.fullmatch(line)
        if not match or _CONTROL.search(line):
            raise NapError(f"{place}: expected NAME: COMMAND, got {line[:80]!a}")
        name, command = match.groups()
        if name in commands:
            raise NapError(f"{place}: {name} is there twice")
        if name == ROUTER:
            raise NapError(f"{place}: {name} is what nap calls its own", advice="Give the process type another name.")
        commands[name] = command
    if not commands.keys() - {_RELEASE}:
        raise NapError(
            "Procfile: it names no process type",
            advice="Write one as NAME: COMMAND, such as web: ./serve; or remove it.",
        )
    return commands


def _app_json(content: bytes | None, commands: dict[str, str], release_command: str) -> Manifest:
    if content is None:
        return Manifest(commands, release_command)
    try:
        document = json.loads(_text(content, "app.json"))
    except json.JSONDecodeError as error:
        place = f"app.json: line {error.lineno}, column {error.colno}"
        raise NapError(f"{place}: not JSON: {error.msg[0].lower()}{error.msg[1:]}") from error
    except RecursionError as error:
        raise NapError("app.json: not JSON that anybody would write: it is nested too deeply") from error
    if not isinstance(document, dict):
        raise NapError(f"app.json: expected an object, got {_shown(document)}")
    ignored = [name for name in document if name not in {"formation", "healthchecks", "env", "scripts", *_DESCRIPTIONS}]
    quantities: dict[str, int] = {}
    for process, value in _of_processes(document, "formation", commands):
        place = f"formation.{process}"
        quantities[process] = _converted(value, _Formation, place).quantity
        ignored += [f"{place}.{name}" for name in value if name != "quantity"]
    checks = {
        process: [
            _check(each, f"healthchecks.{process}[{i}]")
            for i, each in enumerate(_converted(value, list[Any], f"healthchecks.{process}"))
        ]
        for process, value in _of_processes(document, "healthchecks", commands)
    }
    scripts = _converted(document.get("scripts", {}), _Scripts, "scripts")
    ignored += [f"scripts.{name}" for name in document.get("scripts", {}) if name != "postdeploy"]
    if "\0" in scripts.postdeploy:
        raise NapError("app.json: scripts.postdeploy: a command cannot hold a NUL character")
    variables = {name: _variable(name, value) for name, value in _section(document, "env").items()}
    return Manifest(commands, release_command, quantities, checks, variables, scripts.postdeploy, ignored)


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section: dict[str, Any] = _converted(document.get(name, {}), dict[str, Any], name)
    return section


def _of_processes(document: dict[str, Any], section: str, commands: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for process, value in _section(document, section).items():
        if process not in commands:
            raise NapError(
                f"app.json: {section}.{process[:40]}: there is no such process type; there are {', '.join(commands)}"
            )
        yield process, value


def _check(value: Any, place: str) -> Check:
    check: Check = _converted(value, Check, place)
    _converted(value, _Ranges, place)
    kinds = ("path", "listening", "command", "uptime")
    if sum(bool(getattr(check, kind)) for kind in kinds) != 1:
        raise NapError(f"app.json: {place}: expected one of {', '.join(kinds)} to say what is asked")
    if check.path and not re.fullmatch(r"/[!-~]*", check.path):
        raise NapError(f"app.json: {place}.path: expected a path such as /health, got {_shown(check.path)}")
    if any("\0" in word for word in check.command):
        raise NapError(f"app.json: {place}.command: a command cannot hold a NUL character")
    if check.uptime and check.type == "liveness":
        raise NapError(f'app.json: {place}.type: uptime can only be asked at the start, got "liveness"')
    return check


def _variable(name: str, value: Any) -> Variable:
    place = f"env.{name}"
    try:
        checked_name(name)
        converted: str | Variable = _converted(value, str | Variable, place)
        variable = Variable(value=converted) if isinstance(converted, str) else converted
        check_value(name, variable.value or "")
    except NapError as error:
        said = str(error)
        raise NapError(
            said if said.startswith("app.json") else f"app.json: env: {said}", advice=error.advice
        ) from error
    return variable


def _value(variable: Variable) -> str | None:
    return secrets.token_hex(_SECRET_BYTES) if variable.generator else variable.value


def _converted(value: Any, kind: Any, place: str) -> Any:
    """`value` as `kind`. Raises `NapError` with its place where it is not."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        steps = re.findall(r"\.(\w+)|\[(\d+)\]", path)
        for name, index in steps:
            value = value[name] if name else value[int(index)]
            place += f".{name}" if name else f"[{index}]"
        raise NapError(f"app.json: {_mistake(what, place, value, kind)}") from error


def _mistake(what: str, place: str, value: Any, kind: Any) -> str:
    """msgspec's complaint in words for people."""
    if field := re.match(r"Object contains unknown field `(.*)`", what):
        known = ", ".join(each.encode_name for each in msgspec.structs.fields(_struct(kind)))
        return f"{place}.{field[1][:40]}: no such setting; there are {known}"
    if field := re.match(r"Object missing required field `(.*)`", what):
        return f"{place}: {field[1]} is missing"
    if what.startswith("Invalid enum value"):
        return f"{place}: expected {_CHOICES[place.rpartition('.')[2]]}, got {_shown(value)}"
    expected = re.match(r"Expected `(.*?)`(?: (>=|<=) (\d+))?", what)
    assert expected, what
    names = expected[1].removesuffix(" | null")
    words = _WORDS[names]
    bound = {">=": f", {expected[3]} or more", "<=": f", {expected[3]} or less", None: ""}[expected[2]]
    return f"{place}: expected {words}{bound}, got {_shown(value)}"


def _struct(kind: Any) -> type[msgspec.Struct]:
    return Variable if kind == str | Variable else kind


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)[:80]


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NapError(f"{name}: not UTF-8: byte {error.start + 1}") from error
