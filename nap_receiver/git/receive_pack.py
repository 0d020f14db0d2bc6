"""Run git-receive-pack for a pusher: pass on its output, and add nap's output before its end.

git ignores how post-receive ends, and of the clients only the git command looks at how ssh ended, and that not always
(not with `git push --atomic`, before git 2.53). All of them end with an error when one is sent before the end of the
stream, in the band for fatal errors of gitprotocol-pack(5), "Packfile Data"; so that is how a failed deploy is told.
"""

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from nap_receiver.core.bounded import bounded
from nap_receiver.core.process import piped
from nap_receiver.git.git import git
from nap_receiver.git.push import RefUpdate, read_updates, repository_settings

_FLUSH = b"0000"
_PROGRESS, _FATAL = b"\2", b"\3"
_LONGEST_BANDED_BYTES = 65515  # LARGE_PACKET_DATA_MAX less the band
_PIECE_BYTES = 1 << 20
_OPTION = re.compile(rb"option (\d{1,9}) ([^\n]*)")
_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
_TRUE = {"true", "yes", "on", "1", ""}  # to git (git-config(1), "bool")
_ANY_REF = ["receive.hideRefs=!refs/", "receive.hideRefs=refs/replace", "receive.hideRefs=refs/nap"]

_REFUSALS = {
    b"shallow update not allowed": (
        "this push comes from a shallow clone, and its history is not here; nothing was built",
        "Fetch the whole history, then push again: git fetch --unshallow",
    ),
    b"pack exceeds maximum allowed size": (
        "this push is larger than nap takes (ssh.max_push in its settings); nothing was kept",
        "See what is large (git count-objects -vH), take it out of the history, and push again.",
    ),
    b"ut of memory": (
        "git needed more memory to receive this push than nap gives it (commit.memory in its settings)",
        "See what is large (git count-objects -vH), take it out of the history, and push again.",
    ),
    b"deny updating a hidden ref": (
        "nap takes branches, tags, notes, and what git hosts mirror (refs/pull, refs/merge-requests, …); "
        "other refs of this push were not taken",
        "Push those you need by name, or ask the operator for: git config nap.mirror true",
    ),
    b"trying to write non-commit object": (
        "a branch holds a commit, and this push sent an annotated tag to one; the branch is unchanged, "
        "and nothing was built",
        "Push the commit of the tag: git push nap TAG^{}:BRANCH, such as git push nap v1^{}:master",
    ),
}
"""What git says when it refuses a push, and what the pusher needs to know besides."""

_FEW_UPDATES = 100

_MISSING = (
    "git cannot receive this push of many refs, and says why above; nothing was kept",
    "Run git fsck in your repository; to find the ref that is to blame, push fewer at a time.",
)

_UNTOLD = (
    "the commits have arrived, but git could not tell nap of them, and they are not deployed",
    "Push again to deploy; where there were many or long push options, without them.",
)


@dataclass(frozen=True)
class Bounds:
    """What a push may have, and whether refs of any name are taken but `refs/nap/` and `refs/replace/`."""

    refs: int = 20_000
    """In the repository, and in one push."""
    ref_bytes: int = 255
    """Of a ref's name."""
    memory: int = 2 << 30
    """Bytes that each process of git's may take."""
    is_mirror: bool = False


def bounds_of(repository: Path, environment: Mapping[str, str]) -> Bounds:
    """What git's configuration says below `nap.`: the gate's (unit_templates/machine/gitconfig.j2), and the app's."""
    said = repository_settings(repository, environment)
    numbers = {"refs": "maxrefs", "ref_bytes": "maxrefbytes", "memory": "memory"}
    found = {name: int(said[key]) for name, key in numbers.items() if said.get(key, "").isdecimal()}
    return Bounds(**found, is_mirror=said.get("mirror") in _TRUE)


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
        self._bounds = bounds_of(repository, environment)
        settings = [word for each in _ANY_REF if self._bounds.is_mirror for word in ("-c", each)]
        self._process = subprocess.Popen(
            bounded(git(*settings, "receive-pack", str(repository)), memory=self._bounds.memory),
            env={**environment, "NAP_GATE": f"{for_hook} {from_gate}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(for_hook, from_gate),
        )
        os.close(for_hook)
        os.close(from_gate)
        self._handed: IO[bytes] = os.fdopen(hook_hands, "rb")
        self._pusher_sent = self._broken_off = self._took = self._told = self._whole = False
        self._banded = self._given_up = False
        self._advertised = self._updates = 0
        self._refusals: list[str] = []
        self._passing_on = threading.Thread(target=self._pass_on, daemon=True)
        self._passing_on.start()
        self._passing_on_errors = threading.Thread(target=self._pass_on_errors, daemon=True)
        self._passing_on_errors.start()
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
        self._passing_on_errors.join()
        if self._took and not self._told:
            self._refusals += _UNTOLD
        for line in self._refusals:
            self._add(_PROGRESS, f" !     {line}\n")
        if failure:
            self._add(_FATAL, failure)
        if self._whole:
            _write(_FLUSH)
        self._handed.close()
        return abs(self._process.wait())

    @property
    def was_ended(self) -> bool:
        """Whether git was ended by a signal, and did not clean up. Known once it has ended."""
        return (self._process.returncode or 0) < 0

    @property
    def was_empty(self) -> bool:
        """Whether the pusher had nothing to send: all was there already. Known once it has ended."""
        return not self._pusher_sent

    @property
    def was_broken_off(self) -> bool:
        """Whether the pusher left after hearing what is there, and sent nothing. Known once it has ended."""
        return self._broken_off

    def _feed(self) -> None:
        """What the pusher sends goes to git; whether it is more than the flush-pkt of one who has nothing to send."""
        with suppress(OSError), piped(self._process.stdin) as git:  # git may have seen enough, or the pusher be gone
            passed = pass_on_updates(_read, git, self._bounds, lambda: self._advertised)
            self._pusher_sent, self._updates, self._broken_off = passed.sent, passed.updates, passed.broken_off
            if passed.refusal:
                self._refusals += passed.refusal
                self._process.terminate()  # it has done nothing yet: it waits for the last of the updates
                return
            git.flush()
            while os.splice(0, git.fileno(), _PIECE_BYTES):
                pass

    def _pass_on(self) -> None:
        """Everything but what ends it, a packet at a time."""
        with piped(self._process.stdout) as said:
            there = list(_packets(said))
            self._advertised = sum(b" refs/" in each for each in there)
            _write(b"".join(there))
            for packet in _packets(said):
                if packet == _FLUSH:
                    self._whole = True
                    break
                if packet[4:5] == _PROGRESS:
                    self._give_up_on(packet)
                self._banded = packet[4:5] in {b"\1", _PROGRESS, _FATAL}
                self._took |= b"ok refs/" in packet
                is_gits = packet[4:5] == b"\1" or packet[4:7] == b"ng " or not self._told  # else a build may say so
                for mark, refusal in _REFUSALS.items():
                    if mark in packet and is_gits:
                        self._refusals += [line for line in refusal if line not in self._refusals]
                _write(packet)

    def _pass_on_errors(self) -> None:
        """What git and its programs say to those who have no bands."""
        with piped(self._process.stderr) as said:
            while piece := os.read(said.fileno(), _PIECE_BYTES):
                self._give_up_on(piece)
                _write(piece, 2)

    def _give_up_on(self, said: bytes) -> None:
        """End git where it says that a push of many refs cannot be received.

        Where one object is missing, git would start a program for each ref to find out which are to blame (20,000 refs:
        80 s).
        """
        if b"fatal: " in said and self._updates > _FEW_UPDATES and not self._told and not self._given_up:
            self._given_up = True
            self._refusals += _MISSING
            self._process.terminate()

    def _add(self, band: bytes, text: str) -> None:
        content = text.encode("utf-8", "replace")[:_LONGEST_BANDED_BYTES]
        if self._banded:
            _write(b"%04x" % (len(content) + 5) + band + content)
        else:
            _write(content, 2)


class Passed(NamedTuple):
    """What the pusher sent first: whether it was more than a flush-pkt, how many updates, and why they are refused."""

    sent: bool
    updates: int
    refusal: Sequence[str] = ()
    broken_off: bool = False
    """Whether there was nothing at all."""


def pass_on_updates(read: Callable[[int], bytes], git: IO[bytes], bounds: Bounds, there: Callable[[], int]) -> Passed:
    """Pass on the updates of a push, up to their flush-pkt or to what is no pkt-line.

    `read` gives so many bytes of the pusher's, or fewer at their end; `there` tells how many refs the repository has,
    once the pusher knows them. git makes a file and its folders for each ref, so nobody may push any number.
    """
    sent, updates, added = False, 0, 0
    while packet := read(len(_FLUSH)):
        sent |= packet != _FLUSH
        length = int(packet, 16) - len(_FLUSH) if _LENGTH.fullmatch(packet) else 0
        if length <= 0:
            git.write(packet)
            break
        content = read(length)
        git.write(packet + content)
        old, _, rest = content.partition(b"\0")[0].partition(b" ")
        new, _, ref = rest.partition(b" ")
        updates += 1
        added += bool(ref) and (not old.strip(b"0")) - (not new.strip(b"0"))
        size = len(ref.rstrip(b"\n"))
        if size > bounds.ref_bytes:
            return Passed(
                sent,
                updates,
                (
                    f"the name of a ref has {size} bytes, and ssh.max_ref_bytes is {bounds.ref_bytes}; "
                    "nothing was kept",
                    "Rename the branch or tag, and push again.",
                ),
            )
        if updates > bounds.refs or (added > 0 and added + there() > bounds.refs):
            return Passed(
                sent,
                updates,
                (
                    f"with this push there would be more than {bounds.refs} refs (ssh.max_refs); nothing was kept",
                    "Push fewer branches and tags, or delete some that are here; the operator can raise the limit.",
                ),
            )
    return Passed(sent, updates, broken_off=not (packet or sent))


def _read(length: int) -> bytes:
    """So many bytes of the pusher's; fewer at their end."""
    content = b""
    while len(content) < length and (piece := os.read(0, length - len(content))):
        content += piece
    return content


def _packets(stream: IO[bytes]) -> Iterable[bytes]:
    """Each pkt-line whole, up to a flush-pkt and with it (gitprotocol-common(5))."""
    while length := stream.read(4):
        if not _LENGTH.fullmatch(length):
            yield length + stream.read()
            return
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
