"""Split the output of a build into whole lines."""

from collections.abc import Iterable

from nap_receiver.core.channel import plain

_LONGEST_LINE = 65536  # characters that a build may print without a line's end


class Lines:
    """Whole lines out of chunks that end anywhere, fit for a terminal."""

    def __init__(self) -> None:
        self._rest = ""

    def of(self, chunk: str) -> Iterable[str]:
        """The lines that are whole now."""
        *whole, self._rest = (self._rest + chunk).split("\n")
        if len(self._rest) > _LONGEST_LINE:
            whole.append(self._rest)
            self._rest = ""
        return [line for line in map(plain, whole) if line]

    def rest(self) -> Iterable[str]:
        """What was said last, when no line's end came after it."""
        return self.of("\n")
