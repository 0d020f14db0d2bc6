"""End all instances of this machine, as `nap down` does. Their assignments stay: `nap up` brings them back."""

import time
from concurrent.futures import ThreadPoolExecutor

from docker.errors import APIError

from nap_receiver.agent.containers import InstanceContainers
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine import daemon
from nap_receiver.engine.client import engine_at
from nap_receiver.store.assignments import withdraw_all
from nap_receiver.store.etcd import EtcdAway, connect

_AT_ONCE = 8


def end_instances(state: State, settings: Settings) -> None:
    """Withdraw, drain, stop and remove all of them, while no agent runs. Raises `NapError` where one stays."""
    if not daemon.answers(settings.engine.url or daemon.USUAL):
        return
    with engine_at(settings.engine.url) as engine:
        containers = InstanceContainers(state, settings, engine)
        units = containers.units()
        if not units:
            return
        try:
            with connect(settings.etcd) as etcd:
                withdraw_all(etcd, settings.etcd, state.name)
        except EtcdAway:  # then nobody sees what it has
            pass
        time.sleep(settings.deploy.drain)

        def end(unit: str) -> str:
            try:
                containers.stop(unit, settings.deploy.grace)
                containers.remove(unit)
            except APIError as error:
                return f"{unit}: {error.explanation}"
            return ""

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            failures = list(filter(None, pool.map(end, units)))
    if failures:
        raise NapError("the engine did not stop all apps", words=failures, advice="Try again: nap down")
