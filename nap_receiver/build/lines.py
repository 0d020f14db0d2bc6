"""Split the output of a build into whole lines."""

from collections.abc import Iterable

from nap_receiver.core.channel import plain

_LONGEST_LINE = 65536  # characters that a build may print without a line's end


class Lines:
    """Joins chunks of output into whole lines without control characters."""

    def __init__(self) -> None:
        self._rest = ""

    def of(self, chunk: str) -> Iterable[str]:
        """Add a chunk; return the lines that are complete now."""
        *whole, self._rest = (self._rest + chunk).split("\n")
        if len(self._rest) > _LONGEST_LINE:
            whole.append(self._rest)
            self._rest = ""
        return [line for line in map(plain, whole) if line]

    def rest(self) -> Iterable[str]:
        """Return the last line, which has no line end."""
        return self.of("\n")
