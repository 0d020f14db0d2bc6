"""Logs of builds: a file each, which tells by its lock whether the deploy goes on."""

import re
import threading
from pathlib import Path

import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.deploy_log import follow, is_over, log_of, logs, new_log, open_log, result
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.store.lock import Cancelled, Superseded


def test_two_deploys_of_one_moment_have_a_log_each(tmp_path: Path) -> None:
    path = new_log(State(tmp_path), "hello", "1a2b3c4")
    assert re.fullmatch(r"\d{8}T\d{6}-1a2b3c4\.log", path.name)
    with open_log(path) as first, open_log(path) as second:
        first.write("one\n")
        second.write("two\n")
    assert path.read_text() == "one\n"
    assert path.with_stem(f"{path.stem}-2").read_text() == "two\n"
    there = logs(State(tmp_path), "hello")
    assert [log.stem for log in there] == [path.stem, f"{path.stem}-2"]
    assert [log_of(State(tmp_path), "hello", log.stem) for log in there] == there, "by its whole name each"


def test_builds_that_begin_in_one_second_are_listed_in_the_order_of_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, began = State(tmp_path), ["f" * 7, "a" * 7, "c" * 7]
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.5)
    for commit in began:
        open_log(new_log(state, "hello", commit)).close()
    assert [log.stem.partition("-")[2] for log in logs(state, "hello")] == began
    assert log_of(state, "hello", None).stem == "20270115T080002-ccccccc"


def test_a_log_that_was_written_is_not_written_again(tmp_path: Path) -> None:
    with open_log(tmp_path / "x.log") as log:
        log.write("one\n")
    with open_log(tmp_path / "x.log") as log:
        assert log.name == str(tmp_path / "x-2.log")


def test_a_log_is_found_by_a_part_of_its_name(tmp_path: Path) -> None:
    state = State(tmp_path)
    with pytest.raises(NapError, match="there is no build of hello on this host"):
        log_of(state, "hello", None)
    for name in ("20260101T000000-1a2b3c4", "20260102T000000-5d6e7f8", "20260103T000000-1a2b3c4"):
        with open_log(state.deploy_logs / "hello" / f"{name}.log") as log:
            log.write("said\n")
    assert log_of(state, "hello", None).stem == "20260103T000000-1a2b3c4"
    assert log_of(state, "hello", "1a2b3c4").stem == "20260103T000000-1a2b3c4"
    assert log_of(state, "hello", "20260102").stem == "20260102T000000-5d6e7f8"
    for wrong in ("../other", "", "*"):
        if wrong:
            with pytest.raises(NapError, match="there is no build "):
                log_of(state, "hello", wrong)


def test_a_log_is_followed_until_its_deploy_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = open_log(path)
    log.write("from the start\n")
    assert not is_over(path)
    seen: list[str] = []
    with follow(path) as lines:
        seen.append(next(lines))
        log.write("later\n")
        seen.append(next(lines))
        log.write("at the end\n")
        log.close()
        ended = threading.Timer(10, lambda: pytest.fail("it goes on for ever"))
        ended.start()
        seen += list(lines)
        ended.cancel()
    assert seen == ["from the start", "later", "at the end"]
    assert is_over(path)


def test_log_tells_how_its_deploy_ended(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    said = [" !     one thing", "-- succeeded, as an app would say it", "=====> hello v1 is live"]
    with Path("/dev/null").open("w") as nobody:
        for error, wanted in (
            (None, "succeeded"),
            (NapError("no"), "failed"),
            (Cancelled("deploying 1a2b3c4", "bob"), "cancelled"),
            (Superseded("1a2b3c4", "bob's push of 5d6e7f8"), "superseded"),
        ):
            log.unlink(missing_ok=True)
            with Channel(nobody.fileno()) as channel:
                channel.keep_log(log)
                for line in said:
                    channel.detail(line)
                assert result(log) is None, "it goes on"
                if error:
                    channel.failure(error)
            assert result(log) == wanted
            with follow(log) as lines:
                assert [line.strip() for line in lines][: len(said)] == [line.strip() for line in said]
            assert "-- " in log.read_text().splitlines()[-1]
        cut_off = tmp_path / "cut off.log"
        cut_off.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
        assert result(cut_off) is None
        log.unlink()
        with pytest.raises(SystemExit), Channel(nobody.fileno()) as channel:
            channel.keep_log(log)
            raise SystemExit(1)
        assert result(log) == "failed"
        (tmp_path / "empty.log").touch()
        assert result(tmp_path / "empty.log") is None


def test_following_can_end_before_the_deploy(tmp_path: Path) -> None:
    with open_log(tmp_path / "x.log") as log:
        log.write("one\n")
        with follow(tmp_path / "x.log") as lines:
            assert next(lines) == "one"
        assert not is_over(tmp_path / "x.log")
