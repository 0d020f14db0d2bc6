"""Containers of instances: what the agent waits for before it asks the engine."""

import fcntl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docker.errors import NotFound

from nap_receiver.agent.containers import InstanceContainers
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.store.assignments import Assignment

BODY = {"Image": "127.0.0.1:15000/hello@sha256:" + "ab" * 32, "HostConfig": {}, "Labels": {}}


class Engine:
    """An engine that has no image, and notes when it is asked to pull one."""

    def __init__(self) -> None:
        self.api = self
        self.has_pulled = threading.Event()
        self.created: list[Any] = []

    def network(self, bridge: str) -> str:
        return bridge

    def inspect_image(self, image: str) -> None:
        raise NotFound("no such image", SimpleNamespace(status_code=404))

    def pull(self, repository: str, **which: Any) -> None:
        self.has_pulled.set()

    def create_container_from_config(self, body: Any, name: str) -> None:
        self.created.append(body)


def test_no_image_is_pulled_while_the_registry_is_stopped(tmp_path: Path) -> None:
    state, engine = State(tmp_path), Engine()
    state.run.mkdir()
    containers = InstanceContainers(state, Settings(), engine)  # type: ignore[arg-type]
    given = Assignment("running", "d1ge57")
    with state.registry_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        creating = threading.Thread(target=containers.create, args=("hello.v1.web.1", given, BODY), daemon=True)
        creating.start()
        assert not engine.has_pulled.wait(0.5), "that is longer than anything before the pull takes"
    creating.join(10)
    assert engine.has_pulled.is_set()
    (body,) = engine.created
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "unless-stopped"}
