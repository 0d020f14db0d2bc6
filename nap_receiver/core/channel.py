"""The text that goes back to the person who pushed, and into the deploy log.

The format is Heroku's. Two promises are kept here. Output of a build cannot send control sequences to the pusher's
terminal. A pusher who has disconnected never blocks the deploy: git keeps the hook's pipe open and stops reading it
when its client disconnects, so that a write into the full pipe would block for ever (docs/design/libraries.md). So the
descriptor is non-blocking, and each wait for it has a limit.
"""

import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from nap_receiver.core.deploy_log import last_line, open_log
from nap_receiver.core.errors import End, NapError
from nap_receiver.core.interruption import interrupted_by, is_interrupted_by

STEP = "----->"
"""How the line of a step begins."""

PATIENCE = 3.0
"""Seconds that a pusher who reads nothing may hold up the deploy, once."""

SILENCE = 10.0
"""Seconds without a line after which one is printed all the same; connections that idle longer get cut."""

_HELD_BACK_BYTES = 65536

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI (ECMA-48 5.4)
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC up to their terminator
    r"|\x1b[ -/]*[0-~]"  # two-byte escapes
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
# C0, DEL, C1, line and paragraph separators, and what reorders or hides text (Unicode TR 9 and 36).
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def plain(line: str) -> str:
    """Return `line` without control characters; of a progress line that is redrawn over `\\r`, only its last state."""
    line = _ESCAPE_SEQUENCE.sub("", line)
    shown = [part for part in line.split("\r") if part.strip()]
    return _CONTROL.sub("", (shown[-1] if shown else "").expandtabs()).rstrip()


class Channel:
    """Writes lines to the pusher's descriptor and to the deploy log; use it as a context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._log: TextIO | None = None
        self._log_path: Path | None = None
        self._before_log: list[str] = []
        self._lock = threading.RLock()
        self._held_back = b""
        self._lost_lines = 0
        self._end: End = "succeeded"
        self._pusher = "here"
        self._last_line = time.monotonic()

    def __enter__(self) -> "Channel":
        self._was_blocking = os.get_blocking(self._descriptor)
        os.set_blocking(self._descriptor, False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._pusher == "stalled":
                self._pusher = "here"  # one last wait: the end matters most
                self._flush()
            if error is not None:
                self._end = error.end if isinstance(error, NapError) else "failed"
            if self._log:
                self._to_log(last_line(self._end))
        if self._log:
            self._log.close()
        if self._pusher == "here":
            os.set_blocking(self._descriptor, self._was_blocking)

    def keep_log(self, path: Path) -> Path:
        """Write all output so far and from now on to `path`, or to a free name beside it; return the path.

        A log that cannot be written ends no deploy.
        """
        with self._lock:
            self._log_path = path
            try:
                self._log = open_log(path)
            except OSError as error:
                self._to_pusher(f" !     This deploy has no log: {path}: {error.strerror}")
                return path
            self._log_path = Path(self._log.name)
            for line in self._before_log:
                self._to_log(line)
            return self._log_path

    def step(self, text: str) -> None:
        """Write the title of a step."""
        self._line(f"{STEP} {text}")

    def detail(self, text: str) -> None:
        """Write output of a step, one or more lines."""
        for line in text.split("\n"):
            self._line(f"       {line}")

    def trouble(self, text: str) -> None:
        """Write a warning."""
        self._line(_trouble(text))

    def result(self, text: str) -> None:
        """Write the result of the push."""
        self._line(f"=====> {text}")

    def pass_on(self, line: str) -> None:
        """Write a line of another channel unchanged."""
        self._line(line.rstrip("\n"))

    def log_only(self, text: str) -> None:
        """Write a line only to the deploy log, for the operator."""
        with self._lock:
            for line in text.splitlines():
                self._to_log(line)

    def failure(self, error: NapError, last_words: Callable[[str], None] | None = None) -> None:
        """Write the last lines of a failed push: the output of the failed program, what happened, what to type next.

        With `last_words`, what happened and what to type next go there, because the caller shows them in another way.
        """
        self._end = error.end
        for line in error.words:
            self.detail(line)
        if last_words is None:
            for line in (str(error), *error.advice):
                self.trouble(line)
            return
        lines = [plain(_trouble(line)) for line in (str(error), *error.advice)]
        with self._lock:
            for line in lines:
                self._to_log(line)
        last_words("\n".join(lines))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Repeat that `what` is still running whenever no line was written for `SILENCE` seconds."""
        over = threading.Event()
        heart = threading.Thread(target=self._beat, args=(what, over), daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()

    def _beat(self, what: str, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._last_line + SILENCE - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._last_line >= SILENCE:
                    self.detail(f"still {what}")

    def _line(self, text: str) -> None:
        line = plain(text.replace("\n", " "))
        with self._lock:
            self._last_line = time.monotonic()
            self._to_log(line)
            self._to_pusher(line)

    def _to_log(self, line: str) -> None:
        if self._log_path is None:
            self._before_log.append(line)
        if self._log is None:
            return
        try:
            self._log.write(line + "\n")
        except OSError as error:
            with suppress(OSError):
                self._log.close()
            self._log = None  # a full disk must not end the deploy, only its record
            self._to_pusher(f" !     The deploy log ends here: {self._log_path}: {error.strerror}")

    def _to_pusher(self, line: str) -> None:
        if self._pusher == "gone":
            return
        if self._held_back and not self._flush():
            self._lost_lines += 1
            return
        if self._lost_lines:
            lost = f"{self._lost_lines} lines were not sent while the connection stalled"
            if self._log:
                log = Path(self._log.name)
                lost += f"; all of them: builds:output {log.parent.name} {log.stem}"
            line = f" !     {lost}\n{line}"
            self._lost_lines = 0
        self._held_back += (line + "\n").encode("utf-8", "replace")
        if not self._flush() and len(self._held_back) > _HELD_BACK_BYTES:
            self._held_back = self._held_back[:_HELD_BACK_BYTES]

    def _flush(self) -> bool:
        """Send the buffered output; return whether all of it was sent. Waits at most `PATIENCE`, and only once."""
        deadline = time.monotonic() + (PATIENCE if self._pusher == "here" else 0)
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        while self._held_back:
            try:
                sent = os.write(self._descriptor, self._held_back)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    self._pusher = "stalled"
                    return False
                continue
            except OSError:
                self._pusher = "gone"
                self._held_back = b""
                return True
            self._held_back = self._held_back[sent:]
        self._pusher = "here"
        return True


def tell(descriptor: int, story: Callable[[Channel], None], last_words: Callable[[str], None] | None = None) -> bool:
    """Run `story` with a channel to `descriptor`; return whether it succeeded.

    A failure is told in the channel's style, what happened and what to do next to `last_words` where there is one.
    """
    stoppable = nullcontext() if is_interrupted_by(signal.SIGTERM) else interrupted_by(signal.SIGTERM, _stopped)
    with Channel(descriptor) as channel, stoppable:
        try:
            story(channel)
        except NapError as error:
            channel.failure(error, last_words)
        except Exception as error:  # noqa: BLE001 -- a bug of nap's must not show the pusher a traceback
            import traceback  # only for such a bug

            channel.log_only(traceback.format_exc())
            channel.failure(
                NapError(
                    f"nap itself failed ({type(error).__name__}: {error}); running instances were not changed",
                    advice="Ask the operator to read the deploy log, or push again.",
                ),
                last_words,
            )
        else:
            return True
    return False


def _trouble(text: str) -> str:
    return f" !     {text}".replace("\n", " ")


def _stopped() -> NapError:
    what = "the deploy was stopped from outside; running instances were not changed"
    return NapError(what, advice="Push again to deploy.")
