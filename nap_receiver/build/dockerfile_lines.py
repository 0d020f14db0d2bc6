"""Split a Dockerfile into instructions, as BuildKit's parser does (moby/buildkit, frontend/dockerfile/parser).

The only library with that parser exists for one kind of processor. The tests compare this module with it.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace

KNOWN = frozenset(
    (
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    )
)
"""The instructions that there are."""

_LONGEST_LINE = 65535  # bytes, of bufio.Scanner, with which the parser reads lines
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_ONBUILD = re.compile(r"\s*ONBUILD\s*", re.IGNORECASE)
_HEREDOC = re.compile(r"\d*<<-?\s*[^<]+")  # what some version of BuildKit's may take for one
_BARE = re.compile(r"\d*<<-?")
_PLAIN_HEREDOC = re.compile(r"\d*<<(?P<tabs>-?)(?P<quote>[\"']?)(?P<end>[A-Za-z0-9_.]+)(?P=quote)")
_PLAIN_VARIABLE = re.compile(r"\$(?:\{\w+\}|(?!\{))", re.ASCII)
# unicode.IsSpace of Go; str.isspace takes four more
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_ODD_SPACES = frozenset(_SPACES) - frozenset("\t\n\v\f\r ")
_WITH_WORDS = frozenset({"ADD", "ARG", "COPY", "ENV", "FROM"})


class Unparsable(Exception):
    """The text is not a Dockerfile that nap supports; the message has the reason and the line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction; its words are not expanded."""

    name: str
    """`FROM`, `ADD`, …"""
    words: tuple[str, ...]
    """Of ADD, COPY and FROM, what they name; of ARG its words; of ENV names and values in turn. Of others none."""
    flags: tuple[str, ...]
    """`--from=builder`, …, without quotes."""
    lines: tuple[int, int]
    """The first and the last line, from 1."""
    trigger: str = ""
    """Of ONBUILD, what runs when the image is another one's base."""
    heredocs: tuple[str, ...] = ()
    """The ends of its here-documents, as `EOF`; what stands in them is no instruction."""

    def values_of(self, flag: str) -> list[str]:
        """Return the values of `--flag=`, in order."""
        start = f"--{flag}="
        return [each.removeprefix(start) for each in self.flags if each.startswith(start)]


def directives_of(text: str) -> dict[str, str]:
    """Return the parser directives at the top: `# escape=`, `# syntax=` (Dockerfile reference, "Parser directives")."""
    return {name: value for name, value, _ in _directives(text)}


def with_syntax(text: str, syntax: str) -> str:
    """Return the Dockerfile with this `# syntax=` instead of its own; without one if it is empty."""
    lines = text.removeprefix("\ufeff").split("\n")
    directives = _directives(text)
    kept = [lines[number - 1] for name, _, number in directives if name != "syntax"]
    rest = lines[directives[-1][2] :] if directives else lines
    return "\n".join([*([f"# syntax={syntax}"] if syntax else []), *kept, *rest])


def _directives(text: str) -> list[tuple[str, str, int]]:
    """Return name, value and line of each directive; a second one of the same name is an error to builders and is
    skipped."""
    found: list[tuple[str, str, int]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if number == 1 and line.startswith("#!"):  # which BuildKit passes over, from 0.12 on
            continue
        directive = _DIRECTIVE.fullmatch(line.strip())
        if not directive:
            break
        if all(directive[1].lower() != name for name, _, _ in found):
            found.append((directive[1].lower(), directive[2], number))
    return found


def split(text: str, escape: str = "\\") -> Iterator[Instruction]:
    """Yield the instructions of a Dockerfile. Raises `Unparsable` if there is none, or for an unknown one."""
    some = False
    every_line = text.removeprefix("\ufeff").split("\n")
    lines, whole_lines = enumerate(every_line, 1), frozenset(line.strip("\r\t") for line in every_line)
    for whole, first, last in _logical_lines(lines, escape):
        some = True
        try:
            instruction = _instruction(whole, (first, last), escape)
            if heredocs := _heredocs(instruction.name, whole, whole_lines):
                last = _after(heredocs, lines)
                ends = tuple(each["end"] for each in heredocs)
                instruction = replace(instruction, lines=(first, last), heredocs=ends)
        except Unparsable as error:
            raise Unparsable(f"line {first}: {error}") from error
        yield instruction
    if not some:
        raise Unparsable("it has no instructions")


def _heredocs(name: str, line: str, whole_lines: Set[str]) -> list[re.Match[str]]:
    """Return the here-documents that a line announces (`heredocsFromLine` of BuildKit's parser).

    `whole_lines` are all lines of the file; any of them may end a here-document. Raises `Unparsable` where builders of
    different versions could disagree about here-documents.
    """
    if name not in {"ADD", "COPY", "ONBUILD", "RUN"} or "<<" not in line:
        return []
    words = words_of(line, "\\")
    # Newer versions take what follows << after a blank for its end, older ones take the two for words of a shell's.
    for before, word in itertools.pairwise(words):
        if _BARE.fullmatch(before) and re.sub(r"[\"'\\]", "", word) in whole_lines:
            raise Unparsable("a blank after << is not supported")
    if not (found := [word for word in words if _HEREDOC.fullmatch(word)]):
        return []
    if re.search(r"<<\s", line):
        raise Unparsable("a blank after << is not supported in a line with a here-document")
    plain = list(filter(None, map(_PLAIN_HEREDOC.fullmatch, found)))
    if name == "ONBUILD":
        raise Unparsable("a here-document in ONBUILD is not supported")
    if len(plain) < len(found):
        raise Unparsable("the end of a here-document must be named with letters and digits, as in <<EOF")
    if _is_open(line) or line.count("$") != len(_PLAIN_VARIABLE.findall(line)):
        raise Unparsable("in a line with <<, close all quotes and write variables as $NAME or ${NAME}")
    if any(word.startswith("[") for word in words):
        raise Unparsable("a list and a here-document in one instruction are not supported")
    return plain


def _after(heredocs: list[re.Match[str]], lines: Iterator[tuple[int, str]]) -> int:
    """Skip the here-documents; return the number of their last line."""
    number = 0
    for each in heredocs:
        for number, line in lines:
            if len(line.encode("utf-8", "replace")) > _LONGEST_LINE:
                raise Unparsable(f"line {number}: it has more than {_LONGEST_LINE} bytes")
            bare = line.rstrip("\r")
            if (bare.lstrip("\t") if each["tabs"] else bare) == each["end"]:
                break
        else:
            raise Unparsable(f"its here-document is not closed: the line {each['end']} is missing")
    return number


def _logical_lines(lines: Iterable[tuple[int, str]], escape: str) -> Iterator[tuple[str, int, int]]:
    """Yield each line, joined with its continuation lines, without comments; with the numbers of its first and last
    line.

    `lines` are numbered. The caller may take more of them between two logical lines: the body of a here-document.
    """
    continued = re.compile(rf"{re.escape(escape)}[ \t]*$")
    twice = re.compile(rf"{re.escape(escape * 2)}[ \t]*$")
    parts: list[str] = []
    first = last = 0
    for number, line in lines:
        if len(line.encode("utf-8", "replace")) > _LONGEST_LINE:
            raise Unparsable(f"line {number}: it has more than {_LONGEST_LINE} bytes")
        line = line.removesuffix("\r")
        bare = line.strip(_SPACES)
        if bare.startswith("#") or not bare:
            continue
        # What builders of different ages read differently.
        if "\r" in line:
            raise Unparsable(f"line {number}: it has a carriage return in the middle")
        if twice.search(line):
            raise Unparsable(f"line {number} ends in {escape * 2}: write one {escape} or none")
        if not parts:
            first = number
        last = number
        parts.append(continued.sub("", line))
        if not continued.search(line):
            yield "".join(parts), first, last
            parts = []
    if parts:
        yield "".join(parts), first, last


def _instruction(line: str, lines: tuple[int, int], escape: str) -> Instruction:
    head, *after = _BLANKS.split(line.strip(_SPACES), maxsplit=1)
    name, rest = head.upper(), "".join(after).strip(_SPACES)
    if name not in KNOWN:
        raise Unparsable(f"unknown instruction: {name[:40]}")
    if name == "ONBUILD":
        return Instruction(name, (), (), lines, _ONBUILD.sub("", line, count=1))
    rest, flags = _flags(rest)
    # Of these, some parsers read bytes and others letters, and not all take the same for blanks.
    before = line[: len(line.rstrip(_SPACES)) - len(rest)]
    if not before.isascii() or (name in _WITH_WORDS and not _ODD_SPACES.isdisjoint(rest)):
        raise Unparsable(f"there is a non-ASCII letter or an unusual blank between the words of {name}")
    words: list[str] = []
    if name in {"ADD", "COPY"}:
        words = _listed(rest)
    elif name == "FROM":
        words = _BLANKS.split(rest) if rest else []
    elif name == "ARG":
        words = words_of(rest, escape)
    elif name == "ENV":
        words = _names_and_values(rest, escape)
    return Instruction(name, tuple(words), flags, lines)


def _listed(rest: str) -> list[str]:
    """Return the words, or the members of a JSON list. The parser ignores text after the list."""
    if rest.startswith("["):
        try:
            found, _ = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            found = None  # then these are words
        if found is not None and not all(isinstance(each, str) for each in found):
            raise Unparsable("its list must have only strings")
        if found is not None:
            return [each.encode("utf-8", "replace").decode() for each in found]
    return _BLANKS.split(rest) if rest else []


def _names_and_values(rest: str, escape: str) -> list[str]:
    words = words_of(rest, escape)
    if words and "=" not in words[0]:
        name, *value = _BLANKS.split(rest, maxsplit=1)
        if not value:
            raise Unparsable("ENV has a name without a value")
        return [name, *value]
    if not all("=" in word for word in words):
        raise Unparsable("ENV has a name without a value")
    return [part for word in words for part in word.split("=", 1)]


def _is_open(line: str) -> bool:
    """Return whether a quote is not closed, or the line ends with a backslash."""
    quote = ""
    characters = iter(line)
    for here in characters:
        if here == "\\" and quote != "'":
            if not next(characters, ""):
                return True
        elif here == quote:
            quote = ""
        elif here in "'\"" and not quote:
            quote = here
    return bool(quote)


def words_of(rest: str, escape: str) -> list[str]:
    """Split a line into words and keep their quotes: a blank in quotes, or after `escape`, does not end a word."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    characters = iter(rest)
    for here in characters:
        if not quote and here in _SPACES:
            if word:
                words.append("".join(word))
            word = []
            continue
        if here == escape and quote != "'":
            following = next(characters, "")
            if not following:
                break
            word.append(here + following)
            continue
        if here == quote:
            quote = ""
        elif here in "'\"" and not quote:
            quote = here
        word.append(here)
    if word:
        words.append("".join(word))
    return words


def _flags(rest: str) -> tuple[str, tuple[str, ...]]:
    """Return the text after the words that begin with `--`, and these words; here a backslash always escapes."""
    flags: list[str] = []
    at = 0
    while rest.startswith("--", at):
        word: list[str] = []
        quote = ""
        while at < len(rest) and (quote or rest[at] not in _SPACES):
            here = rest[at]
            at += 1
            if here == quote:
                quote = ""
            elif here in "'\"" and not quote:
                quote = here
            elif here == "\\":
                word.append(rest[at : at + 1])
                at += 1
            else:
                word.append(here)
        if "".join(word) == "--":
            break
        flags.append("".join(word))
        while at < len(rest) and rest[at] in _SPACES:
            at += 1
    while at < len(rest) and rest[at] in _SPACES:
        at += 1
    return rest[at:], tuple(flags)
