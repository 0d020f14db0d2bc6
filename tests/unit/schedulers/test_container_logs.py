"""What instances printed, while the engine removes their containers."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.container_logs import ContainerLogs
from nap_receiver.schedulers.log_source import Wanted
from tests.releases import RELEASE


class Engine:
    """An engine that knows a container and answers with this status when it is asked for its log."""

    def __init__(self, status: int) -> None:
        self.answer = requests.Response()
        self.answer.status_code = status

    def inspect_container(self, name: str) -> dict[str, str]:
        return {"Id": "26ed77", "Created": "2026-01-01T00:00:00Z"}

    def logs(self, container: str, **which: Any) -> list[bytes]:
        raise APIError("can not get logs from container which is dead or marked for removal", self.answer)


def past(folder: Path, status: int) -> list[str]:
    """The text of the lines that the engine has of an instance."""
    state, instance = State(folder), Instance(RELEASE, "web", 1)
    return [line.text for line in ContainerLogs(RELEASE.app, state, Engine(status)).past([instance], 10)]


@pytest.mark.parametrize("status", [404, 409])
def test_a_container_that_is_being_removed_has_no_lines(tmp_path: Path, status: int) -> None:
    assert past(tmp_path, status) == []


def test_an_engine_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(NapError, match="the Docker Engine did not answer"):
        past(tmp_path, 500)


class Restarted(Engine):
    """An engine whose container is started again while the end of its first run is read."""

    def __init__(self) -> None:
        super().__init__(200)
        self.printed = [b"2026-01-01T00:00:01Z one\n", b"2026-01-01T00:00:02Z last words"]
        self.end_is_read, self.is_started = threading.Event(), threading.Event()

    def logs(self, container: str, **which: Any) -> list[bytes]:
        printed = list(self.printed)
        if not which["follow"] and not self.end_is_read.is_set():
            self.end_is_read.set()
            assert self.is_started.wait(10)
        return printed


def test_a_container_that_is_started_again_is_followed_on(tmp_path: Path) -> None:
    engine, heard = Restarted(), queue.Queue[str]()
    containers, name = ContainerLogs(RELEASE.app, State(tmp_path), engine), Instance(RELEASE, "web", 1).unit
    wanted = Wanted(RELEASE.app)

    def follow() -> None:
        containers._follow("26ed77", f"{name}.{State(tmp_path).name}", wanted, lambda line: heard.put(line.text))

    follow()
    assert engine.end_is_read.wait(10)
    engine.printed.append(b"2026-01-01T00:00:03Z begins\n")
    follow()  # as at the event of its start
    engine.printed.append(b"2026-01-01T00:00:04Z goes on\n")
    engine.is_started.set()
    assert [heard.get(timeout=10) for _ in range(4)] == ["one", "last words", "begins", "goes on"]
    assert heard.empty()
