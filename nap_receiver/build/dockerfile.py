"""Read a Dockerfile before the engine builds it: which images it uses, and which URLs it downloads.

`dockerfile_lines` splits it into instructions. This module does what the parser leaves to the builder: it expands
variables and tells stages from images (Dockerfile reference, docs.docker.com).
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from nap_receiver.build.dockerfile_lines import Instruction, Unparsable, directives_of, split
from nap_receiver.core.errors import NapError
from nap_receiver.model.base_image import Base

# Values that BuildKit has for these depend on the machine (Dockerfile reference, "Automatic platform ARGs").
_OF_THE_PLATFORM = re.compile(r"(TARGET|BUILD)(PLATFORM|OS|OSVERSION|ARCH|VARIANT|STAGE)")

_ASKS_FOR_PLATFORM = re.compile(rf"\$\{{?{_OF_THE_PLATFORM.pattern}\}}?|{_OF_THE_PLATFORM.pattern}")

# What a builder downloads: a URL, or a git repository by ssh (`git@host:path`).
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[^/\s:]+@[^/\s:]+:")
_NAME = re.compile(r"\d+|\w+|[@*#!?$-]")
_OFFICIAL_SYNTAX = re.compile(r"(docker\.io/)?docker/dockerfile(-upstream)?([:@]\S*)?")

NO_ARGUMENTS: Mapping[str, str] = {}

_LARGEST_VALUE = 1 << 20  # characters; a few lines can double a variable until the engine has no memory left
_DEEPEST = 20  # levels of ${a:-${b:-…}}


class Unreadable(Exception):
    """A value that is not known before the build; the message names it."""


class NotForBuilds(Exception):
    """An instruction that is not allowed; the message names it and its line."""


@dataclass(frozen=True)
class Value:
    """The value of a variable. `unknown` names what is not known before the build; then `text` is a guess."""

    text: str
    unknown: str = ""


Variables = Mapping[str, Value]


@dataclass(frozen=True)
class Frontend:
    """The parts of the Dockerfile syntax that a builder supports."""

    heredocs: bool = True
    flags: Mapping[str, frozenset[str]] | None = None
    """The flags of each instruction that has any; None where it takes all that there are."""
    platform: Mapping[str, str] = field(default_factory=dict)
    """`TARGETARCH`, `BUILDPLATFORM`, …, where it has these."""
    is_replaceable: bool = True
    """Whether it lets an image read the Dockerfile instead, as `# syntax=` says."""

    def lacks(self, each: Instruction) -> str:
        """Return the part of an instruction that it does not support; empty if it supports all."""
        if each.heredocs and not self.heredocs:
            return "a here-document"
        asked = each.words if each.name == "ARG" else each.values_of("platform") if each.name == "FROM" else ()
        if not self.is_replaceable and any(map(_ASKS_FOR_PLATFORM.fullmatch, asked)):
            return "FROM --platform with a variable" if each.name == "FROM" else f"ARG {asked[0]}"
        if self.flags is not None:
            for flag in each.flags:
                name = flag.removeprefix("--").partition("=")[0]
                if name in _FLAGS.get(each.name, ()) and name not in self.flags.get(each.name, ()):
                    return f"{each.name} --{name}"
        return ""


# All flags that there are for files and steps (Dockerfile reference); what nobody knows is no builder's to take.
_FLAGS = {
    "ADD": frozenset({"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"}),
    "COPY": frozenset({"chmod", "chown", "exclude", "from", "link", "parents"}),
    "RUN": frozenset({"device", "mount", "network", "security"}),
}

CLASSIC = Frontend(
    False, {"ADD": frozenset({"checksum", "chown"}), "COPY": frozenset({"chown", "from"})}, is_replaceable=False
)
"""The classic builder. What `ADD --checksum` asks for, nap does itself."""

DOCKERFILE_1_2 = Frontend(
    False,
    {
        "ADD": frozenset({"checksum", "chmod", "chown"}),
        "COPY": frozenset({"chmod", "chown", "from"}),
        "RUN": frozenset({"mount", "network", "security"}),
    },
)
"""What the BuildKit of Docker Engine 20.10 has in it."""

NEWEST = Frontend()
"""docker/dockerfile:1, and the BuildKit of Docker Engine 23 and newer."""


def platform_variables(system: str, architecture: str) -> dict[str, str]:
    """Return BuildKit's variables for the platform of the engine: `linux`, `amd64`."""
    whole = {"PLATFORM": f"{system}/{architecture}", "OS": system, "ARCH": architecture, "VARIANT": ""}
    return {f"{side}{name}": value for side in ("BUILD", "TARGET") for name, value in whole.items()}


def is_platform(name: str, platform: Mapping[str, str]) -> bool:
    """Return whether this is another name of the platform (containerd/platforms, `Parse` and `Normalize`)."""
    words = name.lower().split("/")
    if len(words) == 1 and words[0] != platform["TARGETOS"]:
        words = [platform["TARGETOS"], *words]
    aliases = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
    system, architecture, variant = (*words, "", "")[:3]
    return (system, aliases.get(architecture, architecture) or platform["TARGETARCH"], variant) in {
        (platform["TARGETOS"], platform["TARGETARCH"], each) for each in ("", "v1", "v8")
    } and len(words) < 4


@dataclass(frozen=True)
class Download:
    """An ADD with a URL; its sources and destination are expanded."""

    instruction: Instruction
    sources: tuple[str, ...]
    destination: str

    @property
    def urls(self) -> list[str]:
        """The sources that are URLs."""
        return [each for each in self.sources if _REMOTE.match(each)]

    @property
    def files(self) -> list[str]:
        """The sources in the build context."""
        return [each for each in self.sources if not _REMOTE.match(each)]


@dataclass
class _Stage:
    name: str
    environment: dict[str, Value] = field(default_factory=dict)
    arguments: dict[str, Value] = field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """All variables; ENV overrides ARG."""
        return self.arguments | self.environment


def instructions_of(text: bytes, app: str, largest: int) -> list[Instruction]:
    """Return the instructions of a Dockerfile of at most `largest` bytes.

    Raises `NapError` if it is larger, or if builders of different versions would read different instructions.
    """
    if len(text) > largest:
        raise refused(
            app,
            f"it has {len(text)} bytes; build.dockerfile_size allows {largest}",
            "Move commands into a script in the repository",
        )
    readable = text.decode("utf-8", "replace")
    directives = directives_of(readable)
    syntax, escape = directives.get("syntax", ""), directives.get("escape", "\\")
    if syntax and not _OFFICIAL_SYNTAX.fullmatch(syntax):
        raise refused(app, f"# syntax={syntax[:100]} is not allowed", "Use docker/dockerfile, or remove `# syntax=`")
    if escape not in {"\\", "`"}:
        raise refused(app, f"# escape={escape[:20]} is not allowed", "Use \\ or `")
    try:
        return list(split(readable, escape))
    except Unparsable as error:
        raise refused(app, str(error), "Correct it") from error


def escape_of(text: bytes) -> str:
    """Return the escape character: a backslash, or the one in `# escape=`."""
    return directives_of(text.decode("utf-8", "replace")).get("escape", "\\")


def syntax_of(text: bytes) -> str:
    """Return the value of `# syntax=`; empty without one."""
    return directives_of(text.decode("utf-8", "replace")).get("syntax", "")


def arguments_of(instructions: list[Instruction]) -> set[str]:
    """Return the names of the build arguments that it declares."""
    return {word.partition("=")[0] for each in instructions if each.name == "ARG" for word in each.words}


def images_and_downloads(
    instructions: list[Instruction],
    escape: str,
    use: Callable[[str, int], Base],
    given: Mapping[str, str] = NO_ARGUMENTS,
    platform: Mapping[str, str] = NO_ARGUMENTS,
) -> Iterator[Download]:
    """Call `use` for every image of the build, with name and line, and yield every ADD that downloads.

    `given` are the build's arguments, and `platform` the builder's own variables, such as `TARGETARCH`. Raises
    `Unreadable` if an image or a download depends on a value that is known only during the build.
    """
    constants = {name: Value(text) for name, text in platform.items()}
    arguments = {name: Value(text) for name, text in given.items()}
    stages: list[_Stage] = []
    named: dict[str, _Stage] = {}
    for each in instructions:
        try:
            if each.name == "FROM":
                stage = _begun(each, named, len(stages), constants, escape, use)
                stages.append(stage)
                if stage.name:
                    named[stage.name] = stage
            elif not stages:
                if each.name == "ARG":
                    _set_arguments(each.words, constants, constants, arguments, {}, escape)
            elif each.trigger:
                _require_confined(each.trigger, each.lines[0], named, len(stages), use)
            else:
                yield from _in_stage(each, stages, named, arguments, constants, escape, use)
        except Unreadable as error:
            raise Unreadable(f"line {each.lines[0]}: {error}") from error


def _begun(
    each: Instruction,
    named: Mapping[str, _Stage],
    stages: int,
    constants: Variables,
    escape: str,
    use: Callable[[str, int], Base],
) -> _Stage:
    """Return the stage that a FROM begins."""
    for platform in each.values_of("platform") if "TARGETOS" in constants else ():
        asked = expand(platform, constants, escape)
        if asked and not is_platform(asked, {key: value.text for key, value in constants.items()}):
            own = f"{constants['TARGETOS'].text}/{constants['TARGETARCH'].text}"
            raise NotForBuilds(f"line {each.lines[0]}: FROM --platform={asked[:80]}: this nap builds only for {own}")
    name = expand(each.words[0], constants, escape) if each.words else ""
    stage = _Stage(each.words[2].lower() if len(each.words) > 2 else "")
    if parent := named.get(name.lower()):
        stage.environment = dict(parent.environment)
    elif name and name != "scratch":
        base = use(name, each.lines[0])
        stage.environment = {key: Value(text) for key, text in base.variables.items()}
        for trigger in base.triggers:
            _require_confined(trigger, each.lines[0], named, stages, use)
    return stage


def _in_stage(
    each: Instruction,
    stages: list[_Stage],
    named: Mapping[str, _Stage],
    given: Variables,
    constants: Variables,
    escape: str,
    use: Callable[[str, int], Base],
) -> Iterator[Download]:
    stage = stages[-1]
    if each.name == "ARG":
        _set_arguments(each.words, stage.arguments, stage.variables, given, constants, escape)
    elif each.name == "ENV":
        before = stage.variables
        for name, value in zip(each.words[::2], each.words[1::2], strict=False):
            stage.environment[_expanded(name, before, escape).text] = _expanded(value, before, escape)
    elif each.name in {"COPY", "RUN"}:
        _require_sandbox(each, each.lines[0])
        for image in _images_of(each):
            if not _is_stage(image, named, len(stages) - 1):
                use(image, each.lines[0])
    elif each.name == "ADD" and any(may_be_remote(word, escape) for word in each.words[:-1]):
        words = [expand(word, stage.variables, escape) for word in each.words]
        found = Download(each, tuple(words[:-1]), words[-1])
        if found.urls and each.heredocs:
            raise Unreadable("an ADD of a URL and a here-document")
        if found.urls:
            yield found


def _require_confined(
    trigger: str, line: int, named: Mapping[str, _Stage], stages: int, use: Callable[[str, int], Base]
) -> None:
    """Call `use` for the images of a trigger. Raises `Unreadable` if the trigger downloads."""
    unreadable = Unreadable(f"ONBUILD {trigger[:80]}")
    try:
        found = list(split(trigger))
    except Unparsable as error:
        raise unreadable from error
    for each in found:
        if each.name == "ADD" and any(may_be_remote(word, "\\`") for word in each.words[:-1]):
            raise unreadable
        _require_sandbox(each, line)
        for image in _images_of(each):
            if not _is_stage(image, named, stages):
                use(image, line)


def _require_sandbox(each: Instruction, line: int) -> None:
    """Raise `NotForBuilds` for a step that requests the machine's network or more rights."""
    for flag, harmless in (("network", {"default", "none"}), ("security", {"sandbox"}), ("device", set[str]())):
        for value in each.values_of(flag) if each.name == "RUN" else ():
            if value not in harmless:
                raise NotForBuilds(f"line {line}: RUN --{flag}={value[:80]} is not allowed")
    for options in _mounts_of(each):
        for kind in {value.lower() for name, value in options if name == "type"} & {"secret", "ssh"}:
            raise NotForBuilds(
                f"line {line}: RUN --mount=type={kind} is not allowed: builds have no secrets and no ssh agent"
            )


def may_be_remote(word: str, escape: str) -> bool:
    """Return whether a builder may treat this word, once expanded, as a URL or git repository."""
    literal = re.match(rf"[^$'\"{re.escape(escape)}]*", word)
    start = literal[0] if literal else ""
    if start == word or _REMOTE.match(start):
        return bool(_REMOTE.match(start))
    return not re.match(r"[^:@/]*/", start)  # a path, whatever follows


def expand(word: str, variables: Variables, escape: str) -> str:
    """The word without quotes, its variables replaced, as the builder does it (Dockerfile reference, "Environment
    replacement"). Raises `Unreadable`."""
    value = _expanded(word, variables, escape)
    if value.unknown:
        raise Unreadable(value.unknown)
    return value.text


def _expanded(word: str, variables: Variables, escape: str) -> Value:
    expansion = _Expansion(word, variables, escape)
    text = expansion.until("")
    return Value(text, expansion.unknown)


class _Expansion:
    """A word that is expanded from left to right."""

    def __init__(self, word: str, variables: Variables, escape: str) -> None:
        self.unknown = ""
        self._word, self._variables, self._escape = word, variables, escape
        self._at = self._depth = 0

    def until(self, stop: str) -> str:
        """Return the expanded text up to an unquoted `stop`, and skip `stop`."""
        parts: list[str] = []
        quote, size = "", 0
        while self._at < len(self._word):
            here = self._word[self._at]
            self._at += 1
            if here == quote:
                quote = ""
            elif quote == "'":
                parts.append(here)
            elif here == stop and not quote:
                return "".join(parts)
            elif here in "'\"" and not quote:
                quote = here
            elif here == self._escape:
                following = self._word[self._at : self._at + 1]
                self._at += 1
                keeps = quote and following not in {'"', "$", self._escape}
                parts.append(here + following if keeps else following)
            else:
                parts.append(self._variable() if here == "$" else here)
            size += len(parts[-1]) if parts else 0
            if size > _LARGEST_VALUE:
                raise Unreadable(f"a value of more than {_LARGEST_VALUE} characters")
        if quote or stop:
            self.unknown = self.unknown or f"{self._word[:80]} (a quote or brace is not closed)"
        return "".join(parts)

    def _variable(self) -> str:
        """Return the value of the variable after a `$`."""
        braced = self._word.startswith("{", self._at)
        name = _NAME.match(self._word, self._at + braced)
        if not name:
            return self._unknown(self._word) if braced else "$"
        self._at = name.end()
        value = self._value_of(name[0])
        if not braced:
            return value or ""
        colon = self._word.startswith(":", self._at)
        modifier = self._word[self._at + colon : self._at + colon + 1]
        self._at += colon + 1
        if modifier == "}" and not colon:
            return value or ""
        if modifier not in {"-", "+", "?"} or self._depth == _DEEPEST:
            return self._unknown(self._word)
        self._depth += 1
        other = self.until("}")
        self._depth -= 1
        is_set = bool(value) if colon else value is not None
        if modifier == "+":
            return other if is_set else ""
        return value or "" if is_set else other

    def _value_of(self, name: str) -> str | None:
        """Return the value; None if the variable is not set."""
        value = self._variables.get(name)
        if value is None:
            if _OF_THE_PLATFORM.fullmatch(name) or not name.isascii():
                self._unknown(name)
            return None
        self.unknown = self.unknown or value.unknown
        return value.text

    def _unknown(self, what: str) -> str:
        self.unknown = self.unknown or what[:80]
        return ""


def _set_arguments(
    words: tuple[str, ...],
    into: dict[str, Value],
    known: Variables,
    given: Variables,
    constants: Variables,
    escape: str,
) -> None:
    for word in words:
        name, has_default, value = word.partition("=")
        if name in given:
            into[name] = given[name]
        elif has_default and _OF_THE_PLATFORM.fullmatch(name):
            into[name] = Value("", name)  # which of the two stands is another matter in each version
        elif has_default:
            into[name] = _expanded(value, known, escape)
        elif name in constants:
            into[name] = constants[name]


def _images_of(each: Instruction) -> Iterator[str]:
    """Yield the images from which COPY copies and which RUN mounts."""
    if each.name == "COPY":
        yield from filter(None, each.values_of("from"))
    for options in _mounts_of(each):
        yield from (value for name, value in options if name == "from" and value)


def _mounts_of(each: Instruction) -> Iterator[list[tuple[str, str]]]:
    """Yield the options of each mount of a RUN."""
    for mount in each.values_of("mount") if each.name == "RUN" else []:
        options = (option.partition("=") for option in next(csv.reader([mount]), []))
        yield [(name.strip().lower(), value) for name, _, value in options]


def _is_stage(name: str, named: Mapping[str, _Stage], before: int) -> bool:
    return name.lower() in named or (name.isascii() and name.isdigit() and int(name) < before)


def refused(app: str, why: str, advice: str) -> NapError:
    """Return the error for a Dockerfile that is not built; `advice` is what to change before the next push."""
    return NapError(
        f"{app}: the build failed in the Dockerfile: {why}",
        advice=f"{advice}, commit, and push again; nothing was started, and running instances were not changed.",
    )
