"""The time that an app has to answer: it does not run while a busy machine keeps the processor from the app."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.core.templates import TEMPLATES
from nap_receiver.store.announcements import Silent, Wait, await_announcements
from nap_receiver.store.etcdctl import Entry
from tests.releases import RELEASE

PLACES = EtcdSettings()
ANSWERS = {"host": "10.0.0.1", "port": 1, "ports": {}, "release": 3}


class Quiet:
    """An etcd in which nothing changes; each wait for a change finds the next of these nanoseconds told."""

    def __init__(self, *starved: object, answers_after: int = 99) -> None:
        self.starved = list(starved)
        self.waits: list[float] = []
        self.answers_after = answers_after

    def changes(self, prefixes: Sequence[str], _since: int, seconds: float) -> Iterator[Entry]:
        self.waits.append(seconds)
        if len(self.waits) > self.answers_after:
            for instance in RELEASE.instances:
                yield Entry(f"{prefixes[1]}{instance.key.partition('.')[2]}", cast("Any", ANSWERS), 7)

    def get(self, key: str) -> Entry | None:
        if not key.endswith("starved") or not self.starved:
            return None
        told = self.starved[min(max(len(self.waits) - 2, 0), len(self.starved) - 1)]
        return Entry(key, cast("Any", told), 5)


def waited(etcd: Quiet, seconds: float = 60) -> tuple[list[float], str]:
    """How long was waited for changes, and what was said in the end, or the empty text."""
    wait = Wait(1, seconds, lambda: None, lambda _check, _what: None, "")
    with Path(os.devnull).open("w") as nobody, Channel(nobody.fileno()) as channel:
        try:
            await_announcements(cast("Any", etcd), PLACES, RELEASE, wait, channel)
        except Silent as silent:
            return etcd.waits, f"{silent}\n" + "\n".join(silent.advice)
    return etcd.waits, ""


@pytest.mark.parametrize("told", [{"waited": 400_000_000}, {"waited": "long"}, {}, None])
def test_silent_app_gets_no_more_time(told: object) -> None:
    waits, said = waited(Quiet(*([told] if told is not None else [])))
    assert sum(waits) == 60
    assert "within 60 s\n" in said
    assert "busy" not in said


def test_starved_app_gets_the_time_that_it_was_kept_waiting() -> None:
    waits, said = waited(Quiet({"waited": 24 * 10**9}, {"waited": 30 * 10**9}))
    assert waits == [10, 50, 24, 6]
    assert "within 90 s, of which it got no processor for 30 s\n" in said
    assert "resource:limit team-shop" in said


def test_starved_app_gets_twice_the_time_at_most() -> None:
    waits, _ = waited(Quiet({"waited": 500 * 10**9}))
    assert sum(waits) == 120


def test_starved_app_that_answers_late_is_live() -> None:
    waits, said = waited(Quiet({"waited": 20 * 10**9}, answers_after=2))
    assert waits == [10, 50, 20]
    assert said == ""


def test_how_long_a_process_has_waited_for_a_processor_is_told(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'top c -o pid' ] && printf 'PID\\n{os.getpid()}\\n'\n")
    program.chmod(0o755)
    functions = (TEMPLATES / "announce.sh").read_text().partition("# Runs beside a start")[0]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = f"{functions}\nid=c\nstarved\nid=none\nstarved\n"
    told = subprocess.run(["sh", "-c", script], env=environment, text=True, capture_output=True, check=True).stdout
    (nanoseconds,) = told.split()
    longest = max(int(path.read_text().split()[1]) for path in Path("/proc/self/task").glob("*/schedstat"))
    assert 0 <= int(nanoseconds) <= longest
