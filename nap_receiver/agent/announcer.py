"""Announcements of this machine's instances: written to etcd under one lease, and written again whatever etcd loses."""

import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from nap_receiver.core.errors import NapError
from nap_receiver.core.process import log
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.store.assignments import (
    MachineLease,
    boot_of_the_machine,
    known_lease,
    lease_of,
    withdraw_of_another_boot,
)
from nap_receiver.store.etcd import Etcd, EtcdAway, connect

LEASE_SECONDS = 60
"""How long announcements stay while there is no agent: its successor may take long to start on a busy machine."""

REPORT_SECONDS = 600
"""How long what an instance reports stays for the one whose push waits."""

_KEEP_ALIVE_SECONDS = 5.0
_TRY_AGAIN_SECONDS = 0.2
_WATCH_SECONDS = 600
_KEYS_AT_ONCE = 100


class Announcer:
    """Has etcd say what is announced. `announce` and `withdraw` return at once; etcd may be away meanwhile."""

    def __init__(self, places: EtcdSettings, machine: str) -> None:
        self._places, self._machine = places, machine
        self._wanted: dict[str, dict[str, Any]] = {}
        self._lease = 0
        self._lock = threading.Lock()
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def take_over(self, etcd: Etcd) -> set[str]:
        """Go on with the lease of the agent before, where it is of the same boot; the keys that are under it."""
        withdraw_of_another_boot(etcd, self._places, self._machine)
        known = known_lease(etcd, self._places, self._machine)
        if known is None or not etcd.keep_alive(known.id):
            return set()
        self._lease = known.id
        return etcd.under(known.id) - {lease_of(self._places, self._machine)}

    def start(self) -> None:
        """Write, keep alive and look after what is announced, in threads of its own."""
        threading.Thread(target=self._keep, daemon=True).start()
        threading.Thread(target=self._look_after, daemon=True).start()

    def announce(self, key: str, value: dict[str, Any]) -> None:
        """Have this key in etcd from now on."""
        with self._lock:
            self._wanted[key] = value
        self._changed.put(key)

    def withdraw(self, key: str) -> None:
        """Have this key in etcd no more."""
        with self._lock:
            self._wanted.pop(key, None)
        self._changed.put(key)

    def _keep(self) -> None:
        """Write what changes, and keep the lease alive; for ever."""
        while True:
            try:
                with connect(self._places) as etcd:
                    self._ensure_lease(etcd)
                    self._write(etcd, set(self._wanted))
                    self._serve(etcd)
            except NapError as error:
                log(error)
                time.sleep(_TRY_AGAIN_SECONDS)

    def _serve(self, etcd: Etcd) -> None:
        """Write what changes until etcd is away, or has forgotten the lease."""
        keep_alive = time.monotonic() + _KEEP_ALIVE_SECONDS
        while True:
            try:
                keys = {self._changed.get(timeout=max(0.0, keep_alive - time.monotonic()))}
            except queue.Empty:
                keys = set()
            while not self._changed.empty():
                keys.add(self._changed.get())
            try:
                self._write(etcd, keys)
            except NapError:
                for key in keys:
                    self._changed.put(key)
                raise
            if time.monotonic() >= keep_alive:
                if not etcd.keep_alive(self._lease):
                    self._lease = 0
                    return
                keep_alive = time.monotonic() + _KEEP_ALIVE_SECONDS

    def _ensure_lease(self, etcd: Etcd) -> None:
        if self._lease and etcd.keep_alive(self._lease):
            return
        lease = etcd.grant(LEASE_SECONDS)
        etcd.put(lease_of(self._places, self._machine), MachineLease(lease, boot_of_the_machine()), lease=lease)
        self._lease = lease

    def _write(self, etcd: Etcd, keys: set[str]) -> None:
        with self._lock:
            values: Mapping[str, Any] = {key: self._wanted.get(key) for key in keys}
        left = list(values.items())
        while left:
            etcd.write(dict(left[:_KEYS_AT_ONCE]), lease=self._lease)
            del left[:_KEYS_AT_ONCE]

    def _look_after(self) -> None:
        """Write again what somebody else deletes, or etcd loses; for ever."""
        prefixes = [f"{self._places.announcements}/", f"{self._places.prefix}/apps/"]
        while True:
            try:
                with connect(self._places) as etcd:
                    for change in etcd.changes(prefixes, etcd.revision(), _WATCH_SECONDS):
                        if change.value is None and change.key in self._wanted:
                            self._changed.put(change.key)
            except EtcdAway:
                time.sleep(_TRY_AGAIN_SECONDS)


class Reports:
    """What an instance tells the one whose push waits for it. Each goes by itself after ten minutes."""

    def __init__(self, places: EtcdSettings) -> None:
        self._places = places

    def write(self, key: str, value: object) -> None:
        """Write a report; where etcd is away it is lost, for nobody waits then."""
        try:
            with connect(self._places) as etcd:
                etcd.put(key, value, lease=etcd.grant(REPORT_SECONDS))
        except NapError as error:
            log(error)

    def forget(self, key: str) -> None:
        """Take a report back."""
        try:
            with connect(self._places) as etcd:
                etcd.delete(key)
        except NapError as error:
            log(error)
