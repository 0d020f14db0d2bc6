"""Parse what a commit says about its app: the Procfile, and Heroku's and Dokku's app.json.

Both are checked before the build. A mistake is refused with its place; other spellings of the same key are accepted;
the push lists keys that have no meaning here. The keys are those of Heroku's "app.json Schema", of Dokku's
plugins/app-json/appjson.go and, for checks, of docker-container-healthchecker's appjson/healthcheck.go.
"""

import json
import re
import secrets
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import msgspec

from nap_receiver.core.errors import NapError, some
from nap_receiver.core.relaxed_json import loads
from nap_receiver.model.command import in_shell
from nap_receiver.model.health import UPTIME_SECONDS, Check, Header
from nap_receiver.model.release import MOST_INSTANCES, PROCESS_TYPE, ROUTER, WEB
from nap_receiver.model.variables import check_value, checked_name, is_naps_own

_PROCFILE_LINE = re.compile(rf"({PROCESS_TYPE.pattern})\s*:\s*(\S.*)")
_RELEASE = "release"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SECRET_BYTES = 32
_MOST_TOLD = 10  # mistakes of one push
_MOST_FOUND = 100  # after so many nobody reads on, and looking for more takes time
_SHOWN_CHARACTERS = 80

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
_CHOICES = {"type": '"startup", "readiness" or "liveness"', "scheme": '"http" or "https"'}
_OF_A_CHECK = frozenset([*(each.encode_name for each in msgspec.structs.fields(Check)), "description"])
_MOST_CHECKS = 20  # of one process type
_USUAL_FROM_ZERO = ("attempts", "timeout")  # a number that is not above zero means the usual one, as in Dokku
_USUAL_BELOW_ZERO = ("wait", "initialDelay", "uptime")


_Checks = Annotated[list[Any], msgspec.Meta(max_length=_MOST_CHECKS)]


class _Formation(msgspec.Struct, frozen=True):
    quantity: Annotated[int, msgspec.Meta(ge=0, le=MOST_INSTANCES)] | None = None


class _CheckInRange(Check, frozen=True):
    """A `Check` with limits on its numbers."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    uptime: _Seconds = 0
    initial_delay: _Seconds = 0
    timeout: _Times = 1
    attempts: _Times = 1
    wait: _Seconds = 0


class Variable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An environment variable of the app, as app.json's `env` has it."""

    description: str = ""
    value: str | None = None
    required: bool = True
    """Whether there is no deploy without it; one that has a value or a generator is never missing."""
    generator: Literal["secret"] | None = None
    sync: bool = False
    """Whether each deploy sets it to `value`, whatever it was set to meanwhile."""


_OF_A_VARIABLE = frozenset(each.name for each in msgspec.structs.fields(Variable))


class _DokkuScripts(msgspec.Struct, frozen=True):
    predeploy: str = ""
    postdeploy: str = ""


class _Scripts(msgspec.Struct, frozen=True):
    postdeploy: str = ""
    dokku: _DokkuScripts = _DokkuScripts()


@dataclass(frozen=True)
class Manifest:
    """The contents of Procfile and app.json."""

    commands: dict[str, str] = field(default_factory=lambda: {WEB: ""})
    """What each process type runs; empty for the image's own command."""
    release_command: str = ""
    quantities: dict[str, int] = field(default_factory=dict)
    """How many instances of a process type there are at first; one where this says nothing."""
    checks: dict[str, list[Check]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    postdeploy: str = ""
    """What runs once, after the app's first release that is live."""
    before_each: str = ""
    """What runs before anything of a release starts, before the release command."""
    after_each: str = ""
    """What runs after each release that a push made live."""
    ignored: list[str] = field(default_factory=list)
    """Places in app.json that mean nothing here."""
    warnings: list[str] = field(default_factory=list)
    """What is taken, and probably not meant; a sentence each."""

    def formation(self, before: Mapping[str, int]) -> dict[str, int]:
        """Return the number of instances of each process type; types that existed `before` keep their count."""
        return {process: before.get(process, self.quantities.get(process, 1)) for process in self.commands}

    def unset(self, app: str, existing: Mapping[str, str]) -> dict[str, str]:
        """Return values for the variables that are not in `existing`, and for those that each deploy sets.

        Raises `NapError` that names those without which none runs.
        """
        synced = {name: each.value for name, each in self.variables.items() if each.sync and each.value is not None}
        missing = {name: variable for name, variable in self.variables.items() if name not in {*existing, *synced}}
        values = {name: value for name, variable in missing.items() if (value := _value(variable)) is not None}
        if lacking := [name for name, each in missing.items() if each.required and name not in values]:
            shown = lacking[:_MOST_TOLD]
            raise NapError(
                f"{app}: app.json: env.{lacking[0]}: required, and not set"
                + (f"; nor are {some(lacking[1:])}" if lacking[1:] else ""),
                advice=[
                    f"Set what is missing, then push again: config:set {app} {' '.join(f'{n}=…' for n in shown)}",
                    "Nothing was built, and running instances were not changed.",
                ],
            )
        return values | synced


def manifest_of(app: str, files: Mapping[str, bytes]) -> Manifest:
    """Parse `Procfile` and `app.json`, given by name as far as they exist.

    Raises `NapError` with every mistake that is in them.
    """
    mistakes = _Mistakes()
    manifest = Manifest()
    with suppress(_EnoughMistakes):
        manifest = _manifest(files, mistakes)
    if mistakes.found:
        raise _refusal(app, mistakes.found)
    return manifest


def _manifest(files: Mapping[str, bytes], mistakes: "_Mistakes") -> Manifest:
    manifest = Manifest()
    with mistakes.noted():
        commands = _procfile(files["Procfile"], mistakes) if "Procfile" in files else {}
        release_command = commands.pop(_RELEASE, "")
        manifest = Manifest(commands or {WEB: ""}, release_command, warnings=_unlike(commands))
    if "app.json" in files:
        # What a Procfile that is wrong would name is not known.
        commands = {} if mistakes.found else manifest.commands
        with mistakes.noted():
            content = _app_json(files["app.json"], commands, mistakes)
            manifest = replace(
                content,
                commands=manifest.commands,
                release_command=manifest.release_command,
                warnings=manifest.warnings,
            )
    return manifest


class _EnoughMistakes(Exception):
    """There are so many mistakes that the search stops."""


class _Mistakes:
    """The mistakes that were found so far."""

    def __init__(self) -> None:
        self.found: list[NapError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the first mistake in the block, which ends the block."""
        try:
            yield
        except NapError as error:
            self.add(error)

    def add(self, error: NapError) -> None:
        """Note a mistake. Raises `_EnoughMistakes` at the limit."""
        self.found.append(error)
        if len(self.found) >= _MOST_FOUND:
            raise _EnoughMistakes


def _refusal(app: str, mistakes: Sequence[NapError]) -> NapError:
    first, *others = mistakes
    lines = list(first.advice)
    for each in others[: _MOST_TOLD - 1]:
        lines += [f"{app}: {each}", *each.advice]
    if (more := len(mistakes) - _MOST_TOLD) > 0:
        lines.append(f"{app}: and {more} more" + (", or even more" if len(mistakes) >= _MOST_FOUND else ""))
    what = "Fix them" if others else "Fix it"
    return NapError(
        f"{app}: {first}",
        advice=[*lines, f"{what}, commit, and push again; nothing was built, and running instances were not changed."],
    )


def _procfile(content: bytes, mistakes: _Mistakes) -> dict[str, str]:
    commands: dict[str, str] = {}
    for number, line in enumerate(_text(content, "Procfile").splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            with mistakes.noted():
                name, command = _process(line, f"Procfile: line {number}", commands)
                commands[name] = command
    return commands


def _unlike(commands: Mapping[str, str]) -> list[str]:
    """Return warnings about process types that are probably meant to be `web` and `release`."""
    found = []
    for name in commands:
        for meant, what in ((WEB, "nothing answers requests"), (_RELEASE, "it runs all the time")):
            if name != meant and name.lower() == meant and meant not in commands:
                found.append(f"Procfile: {name} is not the process type {meant}, so {what}; write {meant}: …")
    return found


def _process(line: str, place: str, before: Mapping[str, str]) -> tuple[str, str]:
    match = _PROCFILE_LINE.fullmatch(line)
    if not match or _CONTROL.search(line):
        raise NapError(f"{place}: expected NAME: COMMAND, got {line[:80]!a}")
    name, command = match.groups()
    if name in before:
        raise NapError(f"{place}: {name} is defined twice")
    if name == ROUTER:
        raise NapError(f"{place}: nap uses the name {name} itself", advice="Give the process type another name.")
    return name, command


def _app_json(content: bytes, commands: Mapping[str, str], mistakes: _Mistakes) -> Manifest:
    """Parse app.json; if no commands are known, any process type is valid."""
    document = _document(content, mistakes)
    ignored: list[str] = []
    document = _known(document, ("formation", "healthchecks", "env", "scripts"), "", ignored, _DESCRIPTIONS)
    quantities: dict[str, int] = {}
    for process, value in _of_processes(document, "formation", commands, ignored, mistakes):
        with mistakes.noted():
            place = f"formation.{_cut(process)}"
            said = value if isinstance(value, dict) else {"quantity": value}
            converted = _converted(_known(said, ("quantity",), place, ignored), _Formation, place, mistakes)
            if converted.quantity is not None:
                quantities[process] = converted.quantity
    checks: dict[str, list[Check]] = {}
    for process, value in _of_processes(document, "healthchecks", commands, ignored, mistakes):
        with mistakes.noted():
            place = f"healthchecks.{_cut(process)}"
            checks[process] = []
            for i, each in enumerate(_converted(value, _Checks, place, mistakes)):
                with mistakes.noted():
                    if check := _check(each, f"{place}[{i}]", ignored, mistakes):
                        checks[process].append(check)
    variables: dict[str, Variable] = {}
    for name, value in _section(document, "env", mistakes).items():
        with mistakes.noted():
            if is_naps_own(name):
                ignored.append(f"env.{_cut(name)}")
            else:
                variables[name] = _variable(name, value, ignored, mistakes)
    scripts = _Scripts()
    with mistakes.noted():
        scripts = _scripts(document.get("scripts", {}), ignored, mistakes)
    return Manifest(
        quantities=quantities,
        checks=checks,
        variables=variables,
        postdeploy=scripts.postdeploy,
        before_each=scripts.dokku.predeploy,
        after_each=scripts.dokku.postdeploy,
        ignored=ignored,
    )


def _known(said: Any, names: Container[str], place: str, ignored: list[str], silently: Container[str] = ()) -> Any:
    """Return an object without nulls and unknown names, which are noted; return another value unchanged."""
    if not isinstance(said, dict):
        return said
    others = [name for name in said if name not in names and name not in silently]
    ignored += [_cut(f"{place}.{_cut(name)}".removeprefix(".")) for name in others]
    return {name: value for name, value in said.items() if name in names and value is not None}


class _Object(dict[str, Any]):
    """An object of app.json, and the names that it defines twice."""

    twice: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        found.twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    return found


def _document(content: bytes, mistakes: _Mistakes) -> _Object:
    text = _text(content, "app.json")
    if not text.strip():
        return _Object()
    try:
        document = loads(text, _object)
        json.dumps(document, ensure_ascii=False).encode()  # halves of characters have no place to go from here
    except json.JSONDecodeError as error:
        place = f"app.json: line {error.lineno}, column {error.colno}"
        raise NapError(f"{place}: not JSON: {error.msg[0].lower()}{error.msg[1:]}") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise NapError(f"app.json: {half} is half a character; the other half is missing") from error
    except RecursionError as error:
        raise NapError("app.json: not valid JSON for nap: it is nested too deeply") from error
    except ValueError as error:
        raise NapError("app.json: not valid JSON for nap: a number has too many digits") from error
    if not isinstance(document, _Object):
        raise NapError(f"app.json: expected an object, got {_shown(document)}")
    for place in _twice(document):
        mistakes.add(NapError(f"app.json: {place} is defined twice"))
    return document


def _twice(document: _Object) -> Iterator[str]:
    """Yield the places of names that one object defines twice: JSON parsers keep only the last."""
    found: list[tuple[str, Any]] = [("", document)]
    for place, value in found:  # it grows meanwhile, so that no depth is too much
        if isinstance(value, _Object):
            yield from (_cut(f"{place}.{_cut(name)}".removeprefix(".")) for name in value.twice)
            found += [(_cut(f"{place}.{_cut(name)}"), each) for name, each in value.items()]
        elif isinstance(value, list):
            found += [(_cut(f"{place}[{i}]"), each) for i, each in enumerate(value)]


def _section(document: Mapping[str, Any], name: str, mistakes: _Mistakes) -> dict[str, Any]:
    with mistakes.noted():
        section: dict[str, Any] = _converted(document.get(name, {}), dict[str, Any], name, mistakes)
        return section
    return {}


def _of_processes(
    document: Mapping[str, Any], section: str, commands: Mapping[str, str], ignored: list[str], mistakes: _Mistakes
) -> Iterator[tuple[str, Any]]:
    for process, value in _section(document, section, mistakes).items():
        if process not in commands and commands:
            ignored.append(f"{section}.{_cut(process)} (no such process type)")
        elif value is not None:
            yield process, value


def _check(said: Any, place: str, ignored: list[str], mistakes: _Mistakes) -> Check | None:
    """Parse a check; return None for a kind of check that nap does not have."""
    value = _spelt_out(_known(said, _OF_A_CHECK, place, ignored), place, ignored)
    _converted(value, _CheckInRange, place, mistakes)
    check = msgspec.convert(value, Check, strict=False)
    kinds = ("path", "listening", "command", "uptime")
    if sum(bool(getattr(check, kind)) for kind in kinds) != 1:
        raise NapError(f"app.json: {place}: expected one of {', '.join(kinds)} to choose the kind of check")
    if _CONTROL.search(check.path) or "\t" in check.path:
        raise NapError(f"app.json: {place}.path: expected a path such as /health, got {_shown(check.path)}")
    for what, words in (
        ("command", check.command),
        ("onFailure.command", check.failure_command),
        ("content", [check.content]),
    ):
        if any("\0" in word for word in words):
            raise NapError(f"app.json: {place}.{what}: a NUL character is not possible")
    if (url := check.on_failure.url if check.on_failure else "") and not re.match("https?://", url, re.IGNORECASE):
        raise NapError(f"app.json: {place}.onFailure.url: expected http://… or https://…, got {_shown(url)}")
    for i, header in enumerate(check.http_headers):
        _require_header(header, f"{place}.httpHeaders[{i}]")
    if check.uptime and check.type == "liveness":
        ignored.append(f"{place} (uptime is asked at the start only)")
        return None
    return check


def _spelt_out(value: Any, place: str, ignored: list[str]) -> Any:
    """Rewrite a check from the spellings of other platforms to that of `Check`."""
    if not isinstance(value, dict):
        return value
    spelt = {name: each for name, each in value.items() if name != "description"}
    for name, least in (*((name, 1) for name in _USUAL_FROM_ZERO), *((name, 0) for name in _USUAL_BELOW_ZERO)):
        if isinstance(each := spelt.get(name), int) and each < least:
            del spelt[name]
    _put_in_words(spelt)
    if isinstance(on_failure := spelt.get("onFailure"), dict):
        spelt["onFailure"] = _known(on_failure, ("command", "url"), f"{place}.onFailure", ignored)
        _put_in_words(spelt["onFailure"])
    if isinstance(scheme := spelt.get("scheme"), str):
        spelt["scheme"] = scheme.lower()
    if isinstance(path := spelt.get("path"), str) and path and not path.startswith("/"):
        spelt["path"] = f"/{path}"
    if isinstance(headers := spelt.get("httpHeaders"), list):
        spelt["httpHeaders"] = [
            _known(each, ("name", "value"), f"{place}.httpHeaders[{i}]", ignored) for i, each in enumerate(headers)
        ]
    if not any(spelt.get(name) for name in ("path", "listening", "command", "uptime")):
        is_of_http = any(spelt.get(name) for name in ("content", "httpHeaders", "scheme"))
        spelt |= {"path": "/"} if is_of_http else {"uptime": UPTIME_SECONDS}
    return spelt


def _put_in_words(check: dict[str, Any]) -> None:
    """Replace a command that is a line of shell by the arguments that run it."""
    if isinstance(command := check.get("command"), str):
        check["command"] = in_shell(command)


def _require_header(header: Header, place: str) -> None:
    if not _HEADER_NAME.fullmatch(header.name):
        raise NapError(f"app.json: {place}.name: expected the name of a header, got {_shown(header.name)}")
    if _CONTROL.search(header.value):
        raise NapError(
            f"app.json: {place}.value: a header cannot contain control characters, got {_shown(header.value)}"
        )


def _variable(name: str, said: Any, ignored: list[str], mistakes: _Mistakes) -> Variable:
    place = f"env.{name}"
    try:
        checked_name(name)
        value = _known(said if isinstance(said, dict) else {"value": said}, _OF_A_VARIABLE, place, ignored)
        if isinstance(value.get("value"), int | float):
            value["value"] = json.dumps(value["value"])
        if value.get("generator", "secret") != "secret":
            ignored.append(f"{place}.generator")
            del value["generator"]
        variable: Variable = _converted(value, Variable, place, mistakes)
        check_value(name, variable.value or "")
    except NapError as error:
        text = str(error)
        raise NapError(
            text if text.startswith("app.json") else f"app.json: env: {text}", advice=error.advice
        ) from error
    return variable


def _scripts(said: Any, ignored: list[str], mistakes: _Mistakes) -> _Scripts:
    value = _known(said, ("postdeploy", "dokku"), "scripts", ignored)
    if isinstance(value, dict) and "dokku" in value:
        value["dokku"] = _known(value["dokku"], ("predeploy", "postdeploy"), "scripts.dokku", ignored)
    scripts: _Scripts = _converted(value, _Scripts, "scripts", mistakes)
    for name, command in (
        ("postdeploy", scripts.postdeploy),
        ("dokku.predeploy", scripts.dokku.predeploy),
        ("dokku.postdeploy", scripts.dokku.postdeploy),
    ):
        if "\0" in command:
            raise NapError(f"app.json: scripts.{name}: a command cannot contain a NUL character")
    return scripts


def _value(variable: Variable) -> str | None:
    return secrets.token_hex(_SECRET_BYTES) if variable.generator else variable.value


def _converted(value: Any, kind: Any, place: str, mistakes: _Mistakes) -> Any:
    """Convert `value` to `kind`. Notes all mistakes except the last, each with its place, and raises the last.

    msgspec tells one, so it is asked again about what is left without the setting that one is in.
    """
    found: list[NapError] = []
    rest = value
    while True:
        try:
            converted = msgspec.convert(rest, kind, strict=False)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            if not (found and what.startswith("Object missing")):  # it may have been left out here
                found.append(NapError(f"app.json: {_mistake(what, path, place, rest)}"))
            if len(found) >= _MOST_FOUND:
                break
            wrong = re.match(r"\.(\w+)", path) or re.match(r"Object contains unknown field `(.*)`", what, re.DOTALL)
            if wrong:
                rest = dict(rest) if rest is value else rest
                del rest[wrong[1]]
                continue
        break
    if found:
        for each in found[:-1]:
            mistakes.add(each)
        raise found[-1]
    return converted


def _mistake(what: str, path: str, place: str, value: Any) -> str:
    """Translate an error message of msgspec for people."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
        place += f".{name}" if name else f"[{index}]"
    if field := re.match(r"Object missing required field `(.*)`", what):
        return f"{place}: {field[1]} is missing"
    if what.startswith("Invalid enum value"):
        return f"{place}: expected {_CHOICES[place.rpartition('.')[2]]}, got {_shown(value)}"
    expected = re.match(r"Expected `(.*?)`(?: (>=|<=|of length <=) (\d+))?", what)
    if not expected:
        return f"{place}: {what}"
    names = expected[1].removesuffix(" | null")
    words, most = _WORDS[names], expected[3]
    in_it = "characters" if names == "str" else "entries"
    bound = {">=": f", {most} or more", "<=": f", {most} or less", "of length <=": f" of at most {most} {in_it}"}
    return f"{place}: expected {words}{bound.get(expected[2], '')}, got {_shown(value)}"


def _shown(value: object) -> str:
    return _cut(json.dumps(value, ensure_ascii=True))


def _cut(text: str) -> str:
    return text[:_SHOWN_CHARACTERS]


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NapError(f"{name}: not UTF-8: byte {error.start + 1}") from error
