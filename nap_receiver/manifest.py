"""What a commit says of its app beside the Dockerfile: its Procfile, and Heroku's and Dokku's app.json.

Both are read and checked before anything is built; every mistake is told with its place. What app.json may say besides,
for other platforms, changes nothing and is named.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_MOST_TOLD = 10  # mistakes of one push

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


class _CheckInRange(Check, frozen=True):
    """A `Check` whose numbers are none that make no sense."""

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
    """What `Procfile` and `app.json` say, whose contents are given by name where there are any.

    Raises `NapError` with every mistake that is in them.
    """
    mistakes = _Mistakes()
    manifest = Manifest()
    with mistakes.noted():
        commands = _procfile(files["Procfile"], mistakes) if "Procfile" in files else {WEB: ""}
        release_command = commands.pop(_RELEASE, "")
        manifest = Manifest(commands, release_command)
    if "app.json" in files:
        # What a Procfile that is wrong would name is not known.
        commands = {} if mistakes.found else manifest.commands
        with mistakes.noted():
            manifest = _app_json(files["app.json"], commands, manifest.release_command, mistakes)
    if mistakes.found:
        raise _refusal(app, mistakes.found)
    return manifest


class _Mistakes:
    """The mistakes that were found so far."""

    def __init__(self) -> None:
        self.found: list[NapError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """The block ends at its first mistake, and what comes after it goes on."""
        try:
            yield
        except NapError as error:
            self.found.append(error)


def _refusal(app: str, mistakes: Sequence[NapError]) -> NapError:
    first, *others = mistakes
    told = list(first.advice)
    for each in others[: _MOST_TOLD - 1]:
        told += [f"{app}: {each}", *each.advice]
    if (more := len(mistakes) - _MOST_TOLD) > 0:
        told.append(f"{app}: and {more} more")
    what = "Mend them" if others else "Mend it"
    return NapError(
        f"{app}: {first}",
        advice=[*told, f"{what}, commit, and push again; nothing was built, and what ran before still runs."],
    )


def _procfile(content: bytes, mistakes: _Mistakes) -> dict[str, str]:
    commands: dict[str, str] = {}
    for number, line in enumerate(_text(content, "Procfile").splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            with mistakes.noted():
                name, command = _process(line, f"Procfile: line {number}", commands)
                commands[name] = command
    if not commands.keys() - {_RELEASE} and not mistakes.found:
        raise NapError(
            "Procfile: it names no process type",
            advice="Write one as NAME: COMMAND, such as web: ./serve; or remove it.",
        )
    return commands


def _process(line: str, place: str, before: Mapping[str, str]) -> tuple[str, str]:
    match = _PROCFILE_LINE.fullmatch(line)
    if not match or _CONTROL.search(line):
        raise NapError(f"{place}: expected NAME: COMMAND, got {line[:80]!a}")
    name, command = match.groups()
    if name in before:
        raise NapError(f"{place}: {name} is there twice")
    if name == ROUTER:
        raise NapError(f"{place}: {name} is what nap calls its own", advice="Give the process type another name.")
    return name, command


def _app_json(content: bytes, commands: dict[str, str], release_command: str, mistakes: _Mistakes) -> Manifest:
    """What app.json says; where no commands are known, any process type may be one."""
    document = _document(content, mistakes)
    ignored = [name for name in document if name not in {"formation", "healthchecks", "env", "scripts", *_DESCRIPTIONS}]
    quantities: dict[str, int] = {}
    for process, value in _of_processes(document, "formation", commands, mistakes):
        with mistakes.noted():
            place = f"formation.{process}"
            quantities[process] = _converted(value, _Formation, place, mistakes).quantity
            ignored += [f"{place}.{name}" for name in value if name != "quantity"]
    checks: dict[str, list[Check]] = {}
    for process, value in _of_processes(document, "healthchecks", commands, mistakes):
        with mistakes.noted():
            place = f"healthchecks.{process}"
            checks[process] = []
            for i, each in enumerate(_converted(value, list[Any], place, mistakes)):
                with mistakes.noted():
                    checks[process].append(_check(each, f"{place}[{i}]", mistakes))
    variables: dict[str, Variable] = {}
    for name, value in _section(document, "env", mistakes).items():
        with mistakes.noted():
            variables[name] = _variable(name, value, mistakes)
    scripts = _Scripts()
    with mistakes.noted():
        scripts = _converted(document.get("scripts", {}), _Scripts, "scripts", mistakes)
        ignored += [f"scripts.{name}" for name in document.get("scripts", {}) if name != "postdeploy"]
        if "\0" in scripts.postdeploy:
            raise NapError("app.json: scripts.postdeploy: a command cannot hold a NUL character")
    return Manifest(commands, release_command, quantities, checks, variables, scripts.postdeploy, ignored)


class _Object(dict[str, Any]):
    """An object of app.json, and which of its names are there twice."""

    twice: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found.twice = [name for name in found if names.count(name) > 1]
    return found


def _document(content: bytes, mistakes: _Mistakes) -> _Object:
    try:
        document = json.loads(_text(content, "app.json"), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"app.json: line {error.lineno}, column {error.colno}"
        raise NapError(f"{place}: not JSON: {error.msg[0].lower()}{error.msg[1:]}") from error
    except RecursionError as error:
        raise NapError("app.json: not JSON that anybody would write: it is nested too deeply") from error
    except ValueError as error:
        raise NapError("app.json: not JSON that anybody would write: a number has too many digits") from error
    if not isinstance(document, _Object):
        raise NapError(f"app.json: expected an object, got {_shown(document)}")
    mistakes.found += [NapError(f"app.json: {place[:80]}: it is there twice") for place in _twice(document)]
    return document


def _twice(document: _Object) -> Iterator[str]:
    """The places of what one object has twice, of which JSON's readers know the last alone."""
    found: list[tuple[str, Any]] = [("", document)]
    for place, value in found:  # it grows meanwhile, so that no depth is too much
        if isinstance(value, _Object):
            yield from (f"{place}.{name}".removeprefix(".") for name in value.twice)
            found += [(f"{place}.{name}", each) for name, each in value.items()]
        elif isinstance(value, list):
            found += [(f"{place}[{i}]", each) for i, each in enumerate(value)]


def _section(document: Mapping[str, Any], name: str, mistakes: _Mistakes) -> dict[str, Any]:
    with mistakes.noted():
        section: dict[str, Any] = _converted(document.get(name, {}), dict[str, Any], name, mistakes)
        return section
    return {}


def _of_processes(
    document: Mapping[str, Any], section: str, commands: Mapping[str, str], mistakes: _Mistakes
) -> Iterator[tuple[str, Any]]:
    for process, value in _section(document, section, mistakes).items():
        if process in commands or not commands:
            yield process, value
        else:
            there = ", ".join(commands)
            mistakes.found.append(
                NapError(f"app.json: {section}.{process[:40]}: there is no such process type; there are {there}")
            )


def _check(value: Any, place: str, mistakes: _Mistakes) -> Check:
    _converted(value, _CheckInRange, place, mistakes)
    check = msgspec.convert(value, Check)
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


def _variable(name: str, value: Any, mistakes: _Mistakes) -> Variable:
    place = f"env.{name}"
    try:
        checked_name(name)
        converted: str | Variable = _converted(value, str | Variable, place, mistakes)
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


def _converted(value: Any, kind: Any, place: str, mistakes: _Mistakes) -> Any:
    """`value` as `kind`. Where it is not, notes its mistakes, each with its place, but for the last, and raises that.

    msgspec tells one, so it is asked again about what is left without the setting that one is in.
    """
    found: list[NapError] = []
    rest = value
    while True:
        try:
            converted = msgspec.convert(rest, kind)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            if not (found and what.startswith("Object missing")):  # it may have been left out here
                found.append(NapError(f"app.json: {_mistake(what, path, place, rest, kind)}"))
            wrong = re.match(r"\.(\w+)", path) or re.match(r"Object contains unknown field `(.*)`", what, re.DOTALL)
            if wrong:
                rest = {name: each for name, each in rest.items() if name != wrong[1]}
                continue
        break
    if found:
        mistakes.found += found[:-1]
        raise found[-1]
    return converted


def _mistake(what: str, path: str, place: str, value: Any, kind: Any) -> str:
    """msgspec's complaint in words for people."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
        place += f".{name}" if name else f"[{index}]"
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
    """The one whose settings are told, in their order."""
    if kind is _CheckInRange:
        return Check
    return Variable if kind == str | Variable else kind


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)[:80]


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NapError(f"{name}: not UTF-8: byte {error.start + 1}") from error
