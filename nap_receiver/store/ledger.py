"""The ledger of releases in etcd: numbered by transaction, never changed once written.

Below `<prefix>/apps/<app>/`:
    releases/<number, 8 digits>   a release
    configs/<number, 8 digits>    a configuration: `{NAME: value in base64, …}`; never changed, releases name theirs
    containers/<instance>         what its machine asks the engine to create (`container`), while it may run
    checks/<instance>/<n>         what its check number n asks, where a tenant chose it; likewise
    checks/<instance>/<n>-failure what runs in its container when that check has failed; likewise
    removed                       the number of the last release whose image was removed (`image_pruning`)
    config                        the number of the configuration that the first release will have
    formation                     instances by process type that the first release will have, of those types it has
    limits                        the limits by process type that the first release will have
    port                          the port that the first release will have by ports:set, 0 for none
    protocol                      the protocol that the first release will have
    outcomes/<number, 8 digits>   `{"state": "live" | "failed", "reason": …}`, once it is known
    current                       the number of the release that serves
    up/<instance>                 that an instance is good which is not announced (written on its machine, leased)
    exits/<instance>              how an instance ended that nobody had asked to end (written on its machine, leased)
    lock, next                    who deploys now, and who waits (`lock`, leased)
"""

import base64
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nap_receiver.core.settings import EtcdSettings
from nap_receiver.model.release import Instance, Limits, Outcome, Protocol, Release
from nap_receiver.store.etcdctl import Reader

if TYPE_CHECKING:  # etcd's library is for those who call it
    from nap_receiver.store.etcd import Etcd
    from nap_receiver.store.lock import Lock

T = TypeVar("T")


_BYTES = "bytes:"
"""Stands before a value that is not UTF-8, which could be set once."""


_LONGEST_REASON = 4000
"""Characters of why a release failed that are kept; the deploy's log has all of it."""


class Records:
    """The releases and configurations of one app, read-only."""

    def __init__(self, reader: Reader, places: EtcdSettings, app: str) -> None:
        self.reader = reader
        self.places = places
        self.app = app
        self.root = places.root_of(app)

    def first_config(self) -> int:
        """The number of the configuration for the first release, 0 for none."""
        entry = self.reader.get(f"{self.root}/config")
        return int(entry.value) if entry else 0

    def first_formation(self) -> dict[str, int]:
        """Instances of the first release by process type, as far as they were set."""
        entry = self.reader.get(f"{self.root}/formation")
        return dict(entry.value) if entry else {}

    def first_limits(self) -> dict[str, Limits]:
        """The limits of the first release, by process type."""
        entry = self.reader.get(f"{self.root}/limits")
        return msgspec.convert(entry.value, dict[str, Limits]) if entry else {}

    def first_port(self) -> int:
        """The port of the first release that ports:set has set, 0 for none."""
        entry = self.reader.get(f"{self.root}/port")
        return int(entry.value) if entry else 0

    def first_protocol(self) -> Protocol:
        """The protocol of the first release."""
        entry = self.reader.get(f"{self.root}/protocol")
        return msgspec.convert(entry.value, Protocol) if entry else "http"

    def config_in_force(self) -> int:
        """The number of the configuration for the next release, unless it changes it."""
        current = self.current()
        return current.config if current else self.first_config()

    def configuration(self, number: int) -> dict[str, str]:
        """Return the variables of a configuration, by name."""
        entry = self.reader.get(self.places.config_of(self.app, number)) if number else None
        found = entry.value.items() if entry else ()
        return {
            name: base64.b64decode(value.removeprefix(_BYTES)).decode("utf-8", "surrogateescape")
            for name, value in found
        }

    def current(self) -> Release | None:
        """Return the current release; None before the first."""
        number = self.reader.get(f"{self.root}/current")
        entry = self.reader.get(self._release_key(number.value)) if number else None
        return _converted(entry.value, Release) if entry else None

    def history(self) -> list[tuple[Release, Outcome | None]]:
        """Return each release and how its deploy ended, None if that is unknown; oldest first.

        Invalid records are skipped; `unreadable` names them.
        """
        prefix = f"{self.root}/outcomes/"
        ended = {
            entry.key.removeprefix(prefix): _converted(entry.value, Outcome)
            for entry in self.reader.below(prefix).entries
        }
        written = self.reader.below(f"{self.root}/releases/").entries
        found = [(_converted(each.value, Release), ended.get(each.key.rpartition("/")[2])) for each in written]
        return [(release, outcome) for release, outcome in found if release]

    def unreadable(self) -> list[str]:
        """Return the keys of invalid release records."""
        written = self.reader.below(f"{self.root}/releases/").entries
        return [entry.key for entry in written if _converted(entry.value, Release) is None]

    def last_of(self, commit: str) -> tuple[Release, Outcome | None] | None:
        """Return the last release of a commit, and how its deploy ended."""
        return next((entry for entry in reversed(self.history()) if entry[0].commit == commit), None)

    def unfinished(self) -> list[Release]:
        """Return the releases without an outcome. Under the deploy lock, these are releases whose deploy was killed."""
        return [release for release, outcome in self.history() if outcome is None]

    def _release_key(self, number: int) -> str:
        return f"{self.root}/releases/{number:08}"

    def _outcome_key(self, number: int) -> str:
        return f"{self.root}/outcomes/{number:08}"


class Ledger(Records):
    """The releases and configurations of one app, for a change of it."""

    def __init__(self, etcd: "Etcd", places: EtcdSettings, app: str) -> None:
        super().__init__(etcd, places, app)
        self.etcd = etcd
        self._exits = places.exits_of(app)

    def set_first_config(self, number: int) -> None:
        self.etcd.put(f"{self.root}/config", number)

    def set_first_formation(self, formation: dict[str, int]) -> None:
        self.etcd.put(f"{self.root}/formation", formation)

    def set_first_limits(self, limits: dict[str, Limits]) -> None:
        self.etcd.put(f"{self.root}/limits", limits)

    def set_first_port(self, port: int) -> None:
        self.etcd.put(f"{self.root}/port", port)

    def set_first_protocol(self, protocol: Protocol) -> None:
        self.etcd.put(f"{self.root}/protocol", protocol)

    def is_full(self, most: int) -> bool:
        """Return whether it has the records of `most` releases or more."""
        return len(self._numbers_below("releases")) >= most

    def forget(self, releases: Iterable[Release]) -> None:
        """Remove the records of these releases, and the configurations that no other release uses.

        Only before a change writes anything of its own, while the deploy lock is held.
        """
        for release in releases:
            self.etcd.write({self._release_key(release.number): None, self._outcome_key(release.number): None})
        self._forget_configurations()

    def _forget_configurations(self) -> int:
        """Remove the configurations that no release uses, except that for the first release; return the highest number
        of any."""
        named = {self.first_config(), *(release.config for release, _ in self.history())}
        numbers = self._numbers_below("configs")
        for number in numbers:
            if number not in named:
                self.etcd.delete(self.places.config_of(self.app, number))
        return max([*numbers, *named])

    def write_configuration(self, values: dict[str, str]) -> int:
        """Write a configuration; return its number, 0 for an empty one. Unused configurations are removed first.

        No number is used again while a release names it.
        """
        if not values:
            return 0
        encoded = {name: base64.b64encode(value.encode()).decode() for name, value in sorted(values.items())}
        number = self._forget_configurations()
        while True:
            number += 1
            if self.etcd.create(self.places.config_of(self.app, number), encoded):
                return number

    def configured(self, values: dict[str, str]) -> int:
        """Return the number of a configuration with these values: the one in force if it has them, else a new one."""
        number = self.config_in_force()
        return number if self.configuration(number) == values else self.write_configuration(values)

    def next_number(self, units: Iterable[str]) -> int:
        """Return the number of the next release, under the deploy lock.

        It is above that of every release in etcd and of all `units`, which still run if etcd has lost its data: no name
        is used twice.
        """
        running = [int(match[1]) for match in map(re.compile(rf"{self.app}\.v(\d+)\.").match, units) if match]
        return max([*self._numbers_below("releases"), *running], default=0) + 1

    def write(self, draft: Release, number: int) -> Release:
        """Write a release as `number`, or as the next free number if that one was taken meanwhile.

        What failed is written down too, so the numbers have no gaps.
        """
        while True:
            release = msgspec.structs.replace(draft, number=number, at=time.time())
            if self.etcd.create(self._release_key(number), release):
                return release
            number += 1

    def _numbers_below(self, what: str) -> list[int]:
        """Return the numbers of the keys below `<root>/<what>/`, without reading the values."""
        names = [key.rpartition("/")[2] for key in self.etcd.keys_below(f"{self.root}/{what}/")]
        return [int(name) for name in names if name.isdecimal()]

    def write_container(self, instance: Instance, body: object, asked: Mapping[str, object]) -> None:
        """Write the body of the engine's create call for an instance, and the requests of its checks, by the ends of
        their keys."""
        self.etcd.put(self.places.container_of(self.app, instance.key), body)
        for end, what in asked.items():
            self.etcd.put(f"{self.places.checks_of(self.app, instance.key)}{end}", what)

    def forget_containers(self, instances: Iterable[str]) -> None:
        """Remove the bodies and requests of these instances (`v3.web.1`), which never start again."""
        for key in instances:
            self.etcd.delete(self.places.container_of(self.app, key))
            self.etcd.delete_below(self.places.checks_of(self.app, key))

    def make_current(self, release: Release, lock: "Lock") -> bool:
        """Record in one transaction that the release is live and current; return false, without a write, if the lock
        was lost or the deploy cancelled."""
        written = {self._outcome_key(release.number): Outcome("live"), f"{self.root}/current": release.number}
        return bool(self.etcd.write(written, unchanged={lock.key: lock.revision}))

    def mark_failed(self, release: Release, reason: str) -> None:
        """Record why it failed, and remove the records of how its instances ended."""
        for instance in release.instances:
            self.etcd.delete(f"{self._exits}{instance.key}")
        self.etcd.put(self._outcome_key(release.number), Outcome("failed", reason[:_LONGEST_REASON]))


def _converted(value: object, kind: type[T]) -> T | None:
    """Return `value` as this type; None if it is not a valid one."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None
