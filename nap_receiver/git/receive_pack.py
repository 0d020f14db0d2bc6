"""Run git-receive-pack for a pusher: pass on its output, and add nap's output before its end.

git ignores the exit status of post-receive. Of the clients only the git command looks at the exit status of ssh, and
not always (not with `git push --atomic`, before git 2.53). All clients fail when an error is sent before the end of the
stream, in the band for fatal errors of gitprotocol-pack(5), "Packfile Data". So a failed deploy is reported there.
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
        "this push is from a shallow clone, and its older commits are missing here; nothing was built",
        "Fetch the whole history, then push again: git fetch --unshallow",
    ),
    b"pack exceeds maximum allowed size": (
        "this push is larger than ssh.max_push allows; nothing was kept",
        "Find what is large (git count-objects -vH), remove it from the history, and push again.",
    ),
    b"ut of memory": (
        "git needed more memory to receive this push than commit.memory allows",
        "Find what is large (git count-objects -vH), remove it from the history, and push again.",
    ),
    b"deny updating a hidden ref": (
        "nap accepts branches, tags, notes, and what git hosts mirror (refs/pull, refs/merge-requests, …); "
        "other refs of this push were refused",
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
    "git cannot receive this push of many refs, for the reason above; nothing was kept",
    "Run git fsck in your repository. To find the ref that fails, push fewer refs at a time.",
)

_UNTOLD = (
    "the commits have arrived, but git could not report them to nap; they are not deployed",
    "Push again to deploy, without push options if there were many or long ones.",
)


@dataclass(frozen=True)
class Bounds:
    """Limits of a push, and whether it may have refs of any name except `refs/nap/` and `refs/replace/`."""

    refs: int = 20_000
    """In the repository, and in one push."""
    ref_bytes: int = 255
    """Of a ref's name."""
    memory: int = 2 << 30
    """Bytes that each process of git's may take."""
    is_mirror: bool = False


def bounds_of(repository: Path, environment: Mapping[str, str]) -> Bounds:
    """Read the limits from git's configuration below `nap.`: the gate's (unit_templates/machine/gitconfig.j2) and the
    app's."""
    configuration = repository_settings(repository, environment)
    numbers = {"refs": "maxrefs", "ref_bytes": "maxrefbytes", "memory": "memory"}
    found = {name: int(configuration[key]) for name, key in numbers.items() if configuration.get(key, "").isdecimal()}
    return Bounds(**found, is_mirror=configuration.get("mirror") in _TRUE)


@dataclass(frozen=True)
class Received:
    """What the hook handed over: the ref updates, and the push options."""

    updates: list[RefUpdate]
    options: list[str]


class Transfer:
    """One run of git-receive-pack: `received`, then output to `descriptor`, then `end`."""

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
        """Return what was pushed, once it is in the repository; None if git accepted nothing."""
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
        """Let git end, with `failure` as its last message if there is one; return its exit status.

        Until then, output to `descriptor` reaches the pusher as git's own output.
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
        """Whether a signal ended git before it cleaned up. Known after its end."""
        return (self._process.returncode or 0) < 0

    @property
    def was_empty(self) -> bool:
        """Whether the pusher had nothing to send. Known after its end."""
        return not self._pusher_sent

    @property
    def was_broken_off(self) -> bool:
        """Whether the pusher left after the ref advertisement and sent nothing. Known after its end."""
        return self._broken_off

    def _feed(self) -> None:
        """Pass the pusher's data on to git."""
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
        """Pass on everything except the final flush-pkt, one packet at a time."""
        with piped(self._process.stdout) as output:
            packets = list(_packets(output))
            self._advertised = sum(b" refs/" in each for each in packets)
            _write(b"".join(packets))
            for packet in _packets(output):
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
        """Pass on standard error of git to clients without sideband."""
        with piped(self._process.stderr) as output:
            while piece := os.read(output.fileno(), _PIECE_BYTES):
                self._give_up_on(piece)
                _write(piece, 2)

    def _give_up_on(self, output: bytes) -> None:
        """End git where it says that a push of many refs cannot be received.

        Where one object is missing, git would start a program for each ref to find out which are to blame (20,000 refs:
        80 s).
        """
        if b"fatal: " in output and self._updates > _FEW_UPDATES and not self._told and not self._given_up:
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
    """The beginning of the push: whether it had more than a flush-pkt, how many updates, and why they are refused."""

    sent: bool
    updates: int
    refusal: Sequence[str] = ()
    broken_off: bool = False
    """Whether there was nothing at all."""


def pass_on_updates(
    read: Callable[[int], bytes], git: IO[bytes], bounds: Bounds, count_refs: Callable[[], int]
) -> Passed:
    """Pass on the ref updates of a push, up to their flush-pkt or to the first invalid pkt-line.

    `read` returns that many bytes from the pusher, or fewer at the end; `count_refs` returns how many refs the
    repository has, once the pusher knows them. git makes a file and its folders for each ref, so the number is limited.
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
        if updates > bounds.refs or (added > 0 and added + count_refs() > bounds.refs):
            return Passed(
                sent,
                updates,
                (
                    f"this push would make more than {bounds.refs} refs (ssh.max_refs); nothing was kept",
                    "Push fewer branches and tags, or delete some here, or ask the operator to raise the limit.",
                ),
            )
    return Passed(sent, updates, broken_off=not (packet or sent))


def _read(length: int) -> bytes:
    """Read that many bytes from the pusher; fewer at the end."""
    content = b""
    while len(content) < length and (piece := os.read(0, length - len(content))):
        content += piece
    return content


def _packets(stream: IO[bytes]) -> Iterable[bytes]:
    """Yield each whole pkt-line, up to and including a flush-pkt (gitprotocol-common(5))."""
    while length := stream.read(4):
        if not _LENGTH.fullmatch(length):
            yield length + stream.read()
            return
        yield length + stream.read(max(0, int(length, 16) - 4))
        if length == _FLUSH:
            return


def _write(content: bytes, descriptor: int = 1) -> None:
    """Write to the pusher, who may be disconnected."""
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except OSError:
            return
