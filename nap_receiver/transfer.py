"""git-receive-pack between a pusher and nap: what it says is passed on, and what nap has to add comes before its end.

git ignores how post-receive ends, and of the clients only the git command looks at how ssh ended, and that not always
(not with `git push --atomic`, before git 2.53). All of them end with an error when one is sent before the end of the
stream, in the band for fatal errors of gitprotocol-pack(5), "Packfile Data"; so that is how a failed deploy is told.
"""

import os
import re
import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nap_receiver.push import RefUpdate, read_updates

_FLUSH = b"0000"
_PROGRESS, _FATAL = b"\2", b"\3"
_LONGEST_BANDED_BYTES = 65515  # LARGE_PACKET_DATA_MAX less the band
_PIECE_BYTES = 1 << 20
_OPTION = re.compile(rb"option (\d+) ([^\n]*)")

_REFUSALS = {
    b"shallow update not allowed": (
        "this push comes from a shallow clone, and its history is not here; nothing was built",
        "Fetch the whole history, then push again: git fetch --unshallow",
    ),
    b"pack exceeds maximum allowed size": (
        "this push is larger than nap takes (ssh.max_push in its settings); nothing was kept",
        "See what is large (git count-objects -vH), take it out of the history, and push again.",
    ),
}
"""What git says when it refuses a push, and what the pusher needs to know besides."""

_UNTOLD = (
    "the commits have arrived, but git could not tell nap of them, and they are not deployed",
    "Push again to deploy; where there were many or long push options, without them.",
)


@dataclass(frozen=True)
class Received:
    """What the hook handed over: the ref updates, and the push options."""

    updates: list[RefUpdate]
    options: list[str]


class Transfer:
    """One git-receive-pack on its way: `received`, then what is written to `descriptor`, then `end`."""

    def __init__(self, repository: Path, environment: Mapping[str, str]) -> None:
        hook_hands, for_hook = os.pipe()
        from_gate, self.descriptor = os.pipe()
        self._process = subprocess.Popen(
            ["git", "receive-pack", str(repository)],
            env={**environment, "NAP_GATE": f"{for_hook} {from_gate}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(for_hook, from_gate),
        )
        os.close(for_hook)
        os.close(from_gate)
        self._handed: IO[bytes] = os.fdopen(hook_hands, "rb")
        self._pusher_sent = self._took = self._told = self._whole = False
        self._banded = False
        self._refusals: list[str] = []
        self._passing_on = threading.Thread(target=self._pass_on, daemon=True)
        self._passing_on.start()
        threading.Thread(target=self._feed, daemon=True).start()

    def received(self) -> Received | None:
        """What was pushed, once it is in the repository; None where git took nothing."""
        options: dict[int, str] = {}
        lines: list[bytes] = []
        for line in self._handed:
            if line == b"\n":
                self._told = True
                return Received(read_updates(lines), [options[number] for number in sorted(options)])
            if option := _OPTION.match(line):
                options[int(option[1])] = option[2].decode("utf-8", "replace")
            else:
                lines.append(line)
        return None

    def end(self, failure: str = "") -> int:
        """Let git end, with `failure` as its last word where there is one; its exit status.

        Until then, what is written to `descriptor` reaches the pusher as git's own output.
        """
        os.close(self.descriptor)
        self._passing_on.join()
        if self._took and not self._told:
            self._refusals += _UNTOLD
        for line in self._refusals:
            self._add(_PROGRESS, f" !     {line}\n")
        if failure:
            self._add(_FATAL, failure)
        if self._whole:
            _write(_FLUSH)
        self._handed.close()
        return self._process.wait()

    @property
    def was_empty(self) -> bool:
        """Whether the pusher had nothing to send: all was there already. Known once it has ended."""
        return not self._pusher_sent

    def _feed(self) -> None:
        """What the pusher sends goes to git; whether it is more than the flush-pkt of one who has nothing to send."""
        assert self._process.stdin
        with suppress(OSError), self._process.stdin as git:  # git may have seen enough, or the pusher be gone
            begin = b""
            while len(begin) < len(_FLUSH) and (piece := os.read(0, len(_FLUSH) - len(begin))):
                begin += piece
            self._pusher_sent = begin not in {_FLUSH, b""}
            os.write(git.fileno(), begin)
            while os.splice(0, git.fileno(), _PIECE_BYTES):
                pass

    def _pass_on(self) -> None:
        """Everything but what ends it, a packet at a time."""
        assert self._process.stdout
        with self._process.stdout as said:
            _write(b"".join(_packets(said)))  # which refs there are
            for packet in _packets(said):
                if packet == _FLUSH:
                    self._whole = True
                    break
                self._banded = packet[4:5] in {b"\1", _PROGRESS, _FATAL}
                self._took |= b"ok refs/" in packet
                for mark, refusal in _REFUSALS.items():
                    if mark in packet and not self._told:  # else it may be a build that says so
                        self._refusals += [line for line in refusal if line not in self._refusals]
                _write(packet)

    def _add(self, band: bytes, text: str) -> None:
        content = text.encode("utf-8", "replace")[:_LONGEST_BANDED_BYTES]
        if self._banded:
            _write(b"%04x" % (len(content) + 5) + band + content)
        else:
            _write(content, 2)


def _packets(stream: IO[bytes]) -> Iterable[bytes]:
    """Each pkt-line whole, up to a flush-pkt and with it (gitprotocol-common(5))."""
    while length := stream.read(4):
        yield length + stream.read(max(0, int(length, 16) - 4))
        if length == _FLUSH:
            return


def _write(content: bytes, descriptor: int = 1) -> None:
    """To the pusher, who may be gone."""
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except OSError:
            return
