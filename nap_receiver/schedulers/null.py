"""The scheduler `null`: nap builds images and records releases, and another program runs them."""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine.container import Body
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.log_source import Source
from nap_receiver.schedulers.placement import Placement
from nap_receiver.schedulers.scheduler import Dependency, RunsOn, Units, VersionOf, Work


class Null:
    """A `Scheduler` that runs nothing."""

    runs_on: RunsOn = "nothing"

    def __init__(self, state: State, settings: Settings) -> None:
        pass

    def place(self, app: str, repository: Path, formation: dict[str, int]) -> Placement:
        return Placement()

    def asked_of_engine(self, instance: Instance, body: Body) -> Body:
        return body

    def start(self, work: Work) -> None:
        pass

    def require_placed(self, work: Work) -> None:
        pass

    def withdraw(self, instances: Sequence[str]) -> None:
        pass

    def stop(self, instances: Sequence[str]) -> None:
        pass

    def discard(self, instances: Sequence[str]) -> None:
        pass

    def running(self, app: str) -> list[str]:
        return []

    def status(self) -> Units:
        return Units(frozenset(), frozenset(), frozenset())

    @contextmanager
    def logs(self, app: str) -> Iterator[Source]:
        raise NapError(f"nap runs no instance of {app}, so it has no logs", advice="Look where its image is deployed.")
        yield

    def apps_to_renew(self) -> list[str]:
        return []

    def renew(self, work: Work) -> None:
        pass

    def is_stopping(self, instance: str) -> bool:
        return False

    def is_ours(self, unit: str) -> bool:
        return False

    def how_to_remove(self, app: str, unit: str) -> str:
        return ""

    def dependencies(self) -> Sequence[Dependency]:
        return ()

    def versions(self) -> Mapping[str, VersionOf]:
        return {}

    def clocks(self) -> Mapping[str, tuple[str, ssl.SSLContext | None]]:
        return {}
