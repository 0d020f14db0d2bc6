"""An etcd and a scheduler in this process's memory, for tests of what uses them. Both pass the real ones' tests."""

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.model.release import DISCOVERY, Instance
from nap_receiver.schedulers.null import Null
from nap_receiver.schedulers.scheduler import RunsOn, Units, Work
from nap_receiver.store.etcd import LARGEST_BYTES, Entry, Etcd, Listing


@dataclass
class Lease:
    """A lease of `FakeEtcd`."""

    id: int


class FakeEtcd(Etcd):
    """Keys and values with revisions, transactions, watches and leases."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._history: list[Entry] = []
        self._revision = 1
        self._changed = threading.Condition()
        self._leases = itertools.count(1)

    def close(self) -> None:
        pass

    def get(self, key: str) -> Entry | None:
        with self._changed:
            return self._entries.get(key)

    def below(self, prefix: str) -> Listing:
        with self._changed:
            found = [self._entries[key] for key in sorted(self._entries) if key.startswith(prefix)]
            return Listing([Entry(each.key, each.value, each.revision) for each in found], self._revision)

    def keys_below(self, prefix: str) -> list[str]:
        return [entry.key for entry in self.below(prefix).entries]

    def delete_below(self, prefix: str, but: Collection[str] = ()) -> None:
        self.write({key: None for key in self.keys_below(prefix) if key not in but})

    def revision(self) -> int:
        with self._changed:
            return self._revision

    def write(
        self, values: Mapping[str, object], *, unchanged: Mapping[str, int] | None = None, lease: Any = None
    ) -> int:
        encoded = {key: None if value is None else msgspec.json.encode(value) for key, value in values.items()}
        if sum(len(value) for value in encoded.values() if value) > LARGEST_BYTES:
            raise NapError("that cannot be written: it is too large")
        with self._changed:
            for key, revision in (unchanged or {}).items():
                there = self._entries.get(key)
                if (there.revision if there else 0) != revision:
                    return 0
            if any(value is not None or key in self._entries for key, value in encoded.items()):
                self._revision += 1
            for key, value in encoded.items():
                if value is not None:
                    held_by = lease.id if isinstance(lease, Lease) else lease or 0
                    self._entries[key] = Entry(key, msgspec.json.decode(value), self._revision, held_by)
                    self._history.append(self._entries[key])
                elif self._entries.pop(key, None):
                    self._history.append(Entry(key, None, self._revision))
            self._changed.notify_all()
            return self._revision

    def changes(self, prefixes: list[str], since: int, timeout: float) -> Iterator[Entry]:
        end, seen = time.monotonic() + timeout, 0
        while True:
            with self._changed:
                while seen == len(self._history):
                    left = end - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        return
                entry = self._history[seen]
                seen += 1
            if entry.revision > since and entry.key.startswith(tuple(prefixes)):
                yield entry

    @contextmanager
    def lease(self, seconds: int) -> Iterator[Any]:
        lease = Lease(next(self._leases))
        try:
            yield lease
        finally:
            self.write({key: None for key, entry in self._entries.items() if entry.lease == lease.id})


LEASE = Lease(1 << 32)
"""The lease of what runs: what instances write goes with it, and not with a deploy."""

Outcome = Callable[[Instance], Literal["good", "exits", "silent"]]


@dataclass
class FakeScheduler(Null):
    """Runs nothing, and says in etcd what instances would: that they are good, or that they have ended."""

    etcd: Etcd
    places: EtcdSettings
    outcome: Outcome = lambda instance: "good"
    runs_on: RunsOn = "a cluster"
    started: dict[str, Instance] = field(default_factory=dict)
    calls: list[tuple[str, list[str]]] = field(default_factory=list)
    """What it was told to do, and with which instances."""

    def start(self, work: Work) -> None:
        self._note("start", [each.unit for each in work.instances])
        for instance in work.instances:
            self.started[instance.unit] = instance
            match self.outcome(instance):
                case "good":
                    self.etcd.put(*self._announcement(instance), lease=LEASE)
                case "exits":
                    report = {"status": 3, "error": b"", "output": b"it failed\n"}
                    self.etcd.put(f"{self.places.exits_of(instance.release.app)}{instance.key}", report)

    def withdraw(self, instances: Sequence[str]) -> None:
        self._note("withdraw", instances)
        self._withdraw(instances)

    def stop(self, instances: Sequence[str]) -> None:
        self._note("stop", instances)
        for unit in instances:
            self.started.pop(unit, None)

    def discard(self, instances: Sequence[str]) -> None:
        self._note("discard", instances)
        self._withdraw(instances)
        for unit in instances:
            if (instance := self.started.get(unit)) and self.outcome(instance) == "silent":
                report = {"status": 137, "error": b"", "output": b"it waited\n"}
                self.etcd.put(f"{self.places.exits_of(instance.release.app)}{instance.key}", report)
        for unit in instances:
            self.started.pop(unit, None)

    def running(self, app: str) -> list[str]:
        return sorted(unit for unit in self.started if unit.startswith(f"{app}."))

    def status(self) -> Units:
        units = frozenset(name for unit in self.started for name in (unit, unit + DISCOVERY))
        return Units(units, units, units)

    def is_ours(self, unit: str) -> bool:
        return True

    def _note(self, call: str, instances: Sequence[str]) -> None:
        self.calls.append((call, list(instances)))

    def _withdraw(self, instances: Sequence[str]) -> None:
        for unit in instances:
            with suppress(KeyError):
                self.etcd.delete(self._announcement(self.started[unit])[0])

    def _announcement(self, instance: Instance) -> tuple[str, object]:
        app = instance.release.app
        if not instance.is_web:
            return f"{self.places.up_of(app)}{instance.key}", {}
        told = {"host": "10.0.0.1", "port": 32000 + instance.release.number, "ports": {}}
        return f"{self.places.announcements_of(app)}{instance.key}", told
