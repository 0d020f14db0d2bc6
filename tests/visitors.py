"""People who ask an app, at a steady rate, at whatever address is announced at that moment."""

import random
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.nap import Nap, answer


@dataclass
class Visits:
    """How they went."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    """When and why, one entry each."""


@contextmanager
def visitors(nap: Nap, app: str, per_second: int = 50) -> Iterator[Visits]:
    """Ask the app for the block, also while earlier requests still wait for their answers."""
    visits, over = Visits(), threading.Event()
    announced: dict[str, str] = {}
    etcd = nap.etcd()
    prefix = f"/services/{app}/"
    listing = etcd.below(prefix)
    for entry in listing.entries:
        announced[entry.key] = f"http://{entry.value['host']}:{entry.value['port']}"

    def follow() -> None:
        since = listing.revision
        while not over.is_set():
            for change in etcd.changes([prefix], since, 1):
                since = change.revision
                if change.value is None:
                    announced.pop(change.key, None)
                else:
                    announced[change.key] = f"http://{change.value['host']}:{change.value['port']}"

    def ask() -> None:
        try:
            answer(random.choice(list(announced.values())))
        except (IndexError, OSError, urllib.error.URLError) as error:
            visits.failed.append(f"{time.strftime('%X')} {error or 'nothing is announced'}")

    def arrive() -> None:
        with ThreadPoolExecutor(32) as pool:
            begun = time.monotonic()
            while not over.wait(max(0.0, begun + visits.asked / per_second - time.monotonic())):
                visits.asked += 1
                pool.submit(ask)

    threads = [threading.Thread(target=each) for each in (follow, arrive)]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        over.set()
        for thread in threads:
            thread.join()
        etcd.close()
