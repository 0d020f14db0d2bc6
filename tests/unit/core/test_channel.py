"""What the pusher sees and the log keeps, also when nobody reads and no disk has room."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_receiver.core import channel as channel_module
from nap_receiver.core.channel import Channel, plain, tell
from nap_receiver.core.deadline import deadline
from nap_receiver.core.errors import NapError


@dataclass
class Pusher:
    """The other end of a channel's pipe; `lines` is complete once the block of `pusher()` has ended."""

    descriptor: int
    lines: list[str] = field(default_factory=list)
    seen: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, text: str, seconds: float = 5) -> None:
        with self.seen:
            assert self.seen.wait_for(lambda: any(text in line for line in self.lines), seconds), self.lines


@contextmanager
def pusher() -> Iterator[Pusher]:
    """A pusher who reads everything at once."""
    reading, writing = os.pipe()
    one = Pusher(writing)

    def read() -> None:
        with open(reading, encoding="utf-8") as pipe:  # noqa: PTH123 -- a descriptor
            for line in pipe:
                with one.seen:
                    one.lines.append(line.removesuffix("\n"))
                    one.seen.notify_all()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield one
    finally:
        os.close(writing)
        reader.join()


def said(*story: Callable[[Channel], object]) -> list[str]:
    """What a pusher reads of a story."""
    with pusher() as one, Channel(one.descriptor) as channel:
        for sentence in story:
            sentence(channel)
    return one.lines


@contextmanager
def pipe_nobody_reads() -> Iterator[tuple[int, int]]:
    """A pipe's two ends; a test that writes into it for ever fails."""
    reading, writing = os.pipe()
    try:
        with deadline(10, "writing", ""):
            yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def logged(log: Path) -> list[str]:
    """What is in the log, but the last line, which says how it ended."""
    *lines, last = log.read_text(encoding="utf-8").splitlines()
    assert last.startswith("-- succeeded ")
    return lines


def test_the_look() -> None:
    error = NapError("hello: the build failed", words=["make: *** [all] Error 2"], advice=["Fix it.", "Push again."])
    assert said(
        lambda c: c.step("hello: building 1a2b3c4 from master"),
        lambda c: c.detail("Step 1/2 : FROM busybox\n ---> 1234"),
        lambda c: c.trouble("a warning"),
        lambda c: c.result("hello v3 is live"),
        lambda c: c.failure(error),
    ) == [
        "-----> hello: building 1a2b3c4 from master",
        "       Step 1/2 : FROM busybox",
        "        ---> 1234",
        " !     a warning",
        "=====> hello v3 is live",
        "       make: *** [all] Error 2",
        " !     hello: the build failed",
        " !     Fix it.",
        " !     Push again.",
    ]


def test_nothing_said_can_look_like_another_kind_of_line() -> None:
    forged = "x\n=====> hello v3 is live"
    lines = said(
        lambda c: c.step(forged),
        lambda c: c.detail(forged),
        lambda c: c.trouble(forged),
        lambda c: c.result(forged),
        lambda c: c.failure(NapError(forged, words=[forged], advice=[forged])),
    )
    assert [line for line in lines if line.startswith("=====>")] == ["=====> x =====> hello v3 is live"]


def test_the_end_comes_after_all_else() -> None:
    def story(channel: Channel) -> None:
        for i in range(20_000):
            channel.detail(str(i))
        channel.result("live")

    lines = said(story)
    assert lines == [*(f"       {i}" for i in range(20_000)), "=====> live"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[91mred\x1b[0m", "red"),
        ("\x1b[38;5;196;1mx\x1b[?25l\x1b[2J\x1b[1;1H", "x"),
        ("\x9b31mred", "red"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("\x1b(Bx\x1b7\x1bc", "x"),
        ("\x1b\x1b[0m[31mx", "[31mx"),
        ("bell\x07 back\x08 nul\x00 del\x7f", "bell back nul del"),
        ("nel\x85 ind\x84", "nel ind"),
        ("10%\r50%\r100%", "100%"),
        ("100%\r", "100%"),
        ("done\r   \r", "done"),
        ("\r", ""),
        ("abc\u202etxt.exe\u202c", "abctxt.exe"),
        ("zero\u200b width\ufeff", "zero width"),
        ("a\u2066b\u2069\u200e\u061c\u2028c", "abc"),
        ("half \ud800 \udc80", "half"),
        ("a\tb", "a       b"),
        ("café 日本語 \U0001f600", "café 日本語 \U0001f600"),
        ("trailing   ", "trailing"),
        ("  indented", "  indented"),
        ("\x1b[31", "31"),
    ],
)
def test_control_sequences_reach_no_terminal(line: str, shown: str) -> None:
    assert plain(line) == shown


@given(
    st.lists(
        st.sampled_from(["\x1b", "[", "]", "\x9b", "31m", "\x07", "\\", "P", "\r", "\u202e", "a"]) | st.text()
    ).map("".join)
)
def test_no_control_character_is_left_of_any_line(line: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", plain(line))


def test_a_pipe_nobody_reads_holds_up_the_deploy_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(channel_module, "PATIENCE", 0.2)
    log = tmp_path / "1.log"
    with pipe_nobody_reads() as (_, writing):
        begin = time.monotonic()
        with Channel(writing) as channel:
            channel.keep_log(log)
            for i in range(20_000):
                channel.detail(f"line {i} " + "x" * 100)
            channel.result("live")
            told = time.monotonic() - begin
        ended = time.monotonic() - begin
    assert 0.2 <= told < 20, "more than an hour if each line waited; on a busy machine the lines alone take seconds"
    assert ended < told + 5
    lines = logged(log)
    assert len(lines) == 20_001
    assert lines[-1] == "=====> live"


def test_one_who_reads_on_is_told_what_was_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(channel_module, "PATIENCE", 0.1)
    with pipe_nobody_reads() as (reading, writing):
        with Channel(writing) as channel:
            channel.keep_log(tmp_path / "hello" / "20260131T235959-1a2b3c4.log")
            for i in range(5000):
                channel.detail(f"line {i} " + "x" * 100)
            os.set_blocking(reading, False)
            received = drained(reading)
            channel.step("reading again")
            channel.result("live")
            received += drained(reading)
        received += drained(reading)
    lines = received.decode().splitlines()
    [lost] = [line for line in lines if "were not sent" in line]
    sentence = r"(\d+) lines were not sent while the connection stalled; all of them: builds:output hello (\S+)"
    number = re.search(sentence, lost)
    assert number
    assert number[2] == "20260131T235959-1a2b3c4"
    assert len([line for line in lines if line.startswith("       line ")]) + int(number[1]) == 5000
    assert lines[-2:] == ["-----> reading again", "=====> live"]


def drained(descriptor: int) -> bytes:
    received = b""
    try:
        while piece := os.read(descriptor, 1 << 20):
            received += piece
    except BlockingIOError:
        pass
    return received


def test_a_pusher_who_comes_back_at_the_end_gets_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "PATIENCE", 0.1)
    with pipe_nobody_reads() as (reading, writing):
        os.set_blocking(reading, False)
        with Channel(writing) as channel:
            while not channel._held_back:
                channel.detail("x" * 100)
            drained(reading)
        assert drained(reading).endswith(b"x\n")


def test_a_closed_pipe_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = tmp_path / "1.log"
    with Channel(writing) as channel:
        channel.keep_log(log)
        channel.step("one")
        channel.result("live")
    os.close(writing)
    assert logged(log) == ["-----> one", "=====> live"]


def test_the_descriptor_blocks_again_afterwards() -> None:
    with pipe_nobody_reads() as (_, writing):
        with Channel(writing) as channel:
            assert not os.get_blocking(writing)
            channel.step("x")
        assert os.get_blocking(writing)


def test_the_log_keeps_everything_and_what_is_not_for_the_pusher(tmp_path: Path) -> None:
    log = tmp_path / "hello" / "1.log"
    lines = said(
        lambda c: c.step("before there was a log"),
        lambda c: c.log_only("Traceback:\n  File x"),
        lambda c: c.keep_log(log),
        lambda c: c.detail("\x1b[31mé\x1b[0m"),
        lambda c: c.result("live"),
    )
    assert lines == ["-----> before there was a log", "       é", "=====> live"]
    assert logged(log) == [
        "-----> before there was a log",
        "Traceback:",
        "  File x",
        "       é",
        "=====> live",
    ]


def test_a_second_deploy_has_a_log_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    for text in ("one", "two"):
        said(lambda c: c.keep_log(log), lambda c, text=text: c.step(text))  # type: ignore[misc]
    assert logged(log) == ["-----> one"]
    assert logged(tmp_path / "1-2.log") == ["-----> two"]


def test_a_full_disk_ends_the_log_and_not_the_deploy() -> None:
    lines = said(
        lambda c: c.step("one"),
        lambda c: c.keep_log(Path("/dev/full")),
        lambda c: c.step("two"),
        lambda c: c.log_only("x"),
        lambda c: c.result("live"),
    )
    assert lines == [
        "-----> one",
        " !     The deploy log ends here: /dev/full: No space left on device",
        "-----> two",
        "=====> live",
    ]


def test_a_log_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    log = tmp_path / "1.log"
    log.mkdir()
    lines = said(lambda c: c.keep_log(log), lambda c: c.result("live"))
    assert lines == [f" !     This deploy has no log: {log}: Is a directory", "=====> live"]


def test_silence_is_broken_with_what_is_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "SILENCE", 0.02)
    with pusher() as one, Channel(one.descriptor) as channel:
        with channel.waiting("building"):
            one.wait_for("       still building")
        with channel.waiting("pushing to registry"):
            one.wait_for("       still pushing to registry")


def test_there_is_no_heartbeat_while_there_is_something_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "SILENCE", 3600)
    assert said(lambda c: c.step("x")) == ["-----> x"]


def told(story: Callable[[Channel], None]) -> tuple[bool, list[str]]:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pusher() as one:
            well = tell(one.descriptor, story)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return well, one.lines


def fail(error: Exception) -> Callable[[Channel], None]:
    def story(channel: Channel) -> None:
        channel.step("one")
        raise error

    return story


def test_a_story_that_ends_well() -> None:
    assert told(lambda c: c.result("live")) == (True, ["=====> live"])


def test_a_failure_is_told_in_the_channels_style() -> None:
    well, lines = told(fail(NapError("no room", words=["df: 100%"], advice="Make some.")))
    assert not well
    assert lines == ["-----> one", "       df: 100%", " !     no room", " !     Make some."]


def test_a_deploy_stopped_from_outside_says_so() -> None:
    well, lines = told(lambda c: signal.raise_signal(signal.SIGTERM))
    assert not well
    assert lines[0].startswith(" !     the deploy was stopped from outside")


def test_a_bug_shows_the_pusher_no_traceback() -> None:
    well, lines = told(fail(ValueError("a\nb")))
    assert not well
    assert lines[1].startswith(" !     nap itself failed (ValueError: a b)")
    assert not any("Traceback" in line for line in lines)
