"""`.dockerignore`: which paths of a tree the build context leaves out.

The engine does not read the file; a client applies it. Patterns mean what they mean to Docker (moby/patternmatcher,
`MatchesUsingParentResults`): each becomes a regular expression in the same way, for the same library, RE2. So the time
of a match is proportional to the length of the path, whatever the pattern is.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nap_receiver.core.errors import NapError

if TYPE_CHECKING:  # most contexts have no pattern that needs it
    import re2

NAME = ".dockerignore"

_REPLACED = re.compile("[\udc80-\udcff]")
_TO_ESCAPE = ".+()|{}$"  # the rest of what means something to RE2 means the same to Docker
_WILDCARDS = re.compile(r"[*?\[\\]")
_RE2_BYTES = 8 << 20  # RE2's own default for one pattern; compiling a larger one fails
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class _Pattern:
    text: str
    """Without the exclamation mark, and cleaned."""
    is_exception: bool
    expression: "re2._Regexp | None"
    """None where the text has no wildcard, and is compared as it is."""

    def matches(self, path: bytes) -> bool:
        if self.expression is None:
            return self.text.encode() == path
        return self.expression.fullmatch(path) is not None


@dataclass(frozen=True)
class Patterns:
    """All patterns of a `.dockerignore` in their order; the last match decides.

    `Dockerfile` is never excluded. A pattern that matches a directory matches everything below it.
    """

    patterns: list[_Pattern]

    def matching(self, path: bytes, above: int = 0) -> int:
        """Return the patterns that match `path`, one bit each; `above` is the result for its directory."""
        if not self.patterns:
            return above
        shown = _text(path).encode()
        found = above
        for number, pattern in enumerate(self.patterns):
            if not found >> number & 1 and pattern.matches(shown):
                found |= 1 << number
        return found

    def is_out(self, matching: int) -> bool:
        """Return whether a path with these matching patterns is excluded."""
        return matching > 0 and not self.patterns[matching.bit_length() - 1].is_exception

    def may_keep_below(self, directory: bytes) -> bool:
        """Return whether an exception (`!dir/file`, `!**/file`) may include something below an excluded directory."""
        prefix = _text(directory) + "/"
        depth = prefix.count("/")
        return any(
            pattern.text.startswith(prefix) or _has_wildcard_before(pattern.text, depth)
            for pattern in self.patterns
            if pattern.is_exception
        )


def patterns_of(content: bytes) -> Patterns:
    """Parse a `.dockerignore`. Raises `NapError` with the line that is not a pattern."""
    found = []
    for number, line in enumerate(_text(content.removeprefix(b"\xef\xbb\xbf")).split("\n"), start=1):
        text = line.strip()
        if text and not line.startswith("#"):
            found.append(_pattern(text, f"{NAME}: line {number}"))
    return Patterns([*found, _pattern("!Dockerfile", NAME)] if found else [])


def _pattern(text: str, place: str) -> _Pattern:
    is_exception = text.startswith("!")
    cleaned = _cleaned(text[1:].strip() if is_exception else text)
    if not cleaned:
        raise NapError(f"{place}: expected a pattern after the exclamation mark")
    expression = None
    if _WILDCARDS.search(cleaned):
        import re2

        options = re2.Options()
        options.log_errors, options.never_capture, options.dot_nl, options.max_mem = False, True, True, _RE2_BYTES
        try:
            expression = re2.compile(_expression(cleaned).encode(), options)
        except re2.error as error:
            shown = f"{text[:_SHOWN_CHARACTERS]!a}"
            raise NapError(
                f"{place}: {shown} is not a valid pattern: {error.args[0].decode(errors='replace')[:80]}"
            ) from error
    return _Pattern(cleaned, is_exception, expression)


def _cleaned(text: str) -> str:
    """Return the pattern without double slashes, `.`, `..` and outer slashes, as Go's `filepath.Clean` does."""
    cleaned = posixpath.normpath(re.sub("^/+", "/", text)) if text else ""
    return cleaned.removeprefix("/") if len(cleaned) > 1 else cleaned


def _expression(pattern: str) -> str:
    """Return the regular expression for a whole path, as moby/patternmatcher's `Pattern.compile` does."""
    parts, characters = [], _Characters(pattern)
    for character in characters:
        if character == "*" and characters.take("*"):
            # Docker compares the rest with a path's end where it has no wildcard, and "**foo" is out in "a/xfoo" too.
            is_suffix = characters.at == 2 and not _WILDCARDS.search(pattern, 2)
            below = characters.take("/")  # "**/" is "**"
            parts.append("(.*/)?" if characters.left and (below or not is_suffix) else ".*")
        elif character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character in _TO_ESCAPE:
            parts.append("\\" + character)
        elif character == "\\":
            parts.append("\\" + next(characters, "\\"))
        else:
            parts.append(character)
    return "".join(parts)


class _Characters(Iterator[str]):
    """The characters of a pattern, with one character of lookahead."""

    def __init__(self, text: str) -> None:
        self._text, self.at = text, 0

    def __next__(self) -> str:
        if not self.left:
            raise StopIteration
        self.at += 1
        return self._text[self.at - 1]

    @property
    def left(self) -> bool:
        return self.at < len(self._text)

    def take(self, character: str) -> bool:
        """Skip the next character if it is this one; return whether it was."""
        found = self._text.startswith(character, self.at)
        self.at += found
        return found


def _has_wildcard_before(pattern: str, depth: int) -> bool:
    """Return whether one of the first `depth` parts of a pattern may match several kinds of names."""
    return "/" in pattern and any(map(_WILDCARDS.search, pattern.split("/", depth)[:depth]))


def _text(path: bytes) -> str:
    """Decode a path or pattern as Go does: each byte that is not UTF-8 becomes a replacement character."""
    return _REPLACED.sub("\ufffd", path.decode("utf-8", "surrogateescape"))
