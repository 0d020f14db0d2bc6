"""What instances printed, while the engine removes their containers."""

from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.container_logs import Containers
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
    return [line.text for line in Containers(RELEASE.app, state, Engine(status)).past([instance], 10)]


@pytest.mark.parametrize("status", [404, 409])
def test_a_container_that_is_being_removed_has_no_lines(tmp_path: Path, status: int) -> None:
    assert past(tmp_path, status) == []


def test_an_engine_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(NapError, match="the Docker Engine did not answer"):
        past(tmp_path, 500)
