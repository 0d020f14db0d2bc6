"""The ledger of releases in etcd: numbered by transaction, never changed once written.

Below `<prefix>/apps/<app>/`:
    releases/<number, 8 digits>   a release
    configs/<number, 8 digits>    a configuration: `{NAME: value in base64, …}`, with `bytes:` before what is no UTF-8;
                                  never changed, releases name theirs
    removed                       the number of the last release whose image was removed (`retention`)
    config                        the number of the configuration that the first release will have
    outcomes/<number, 8 digits>   `{"state": "live" | "failed", "reason": …}`, once it is known
    current                       the number of the release that serves
    up/<instance>                 that an instance is good which is not announced (written on its machine, leased)
    exits/<instance>              how an instance ended that nobody had asked to end (written on its machine, leased)
    lock, next                    who deploys now, and who waits (`lock`, leased)
"""

import base64
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from nap_receiver.health import UPTIME_SECONDS, Check
from nap_receiver.kept import Reader
from nap_receiver.settings import EtcdSettings
from nap_receiver.variables import bytes_of, is_text, value_of

if TYPE_CHECKING:  # etcd's and docker's libraries are for those who call them
    from nap_receiver.etcd import Etcd
    from nap_receiver.lock import Lock


EVERY = "*"
"""Stands for every process type that has no limits of its own."""

_BYTES = "bytes:"
"""Stands before a value that only a container itself can take up (`unit_templates/configure.sh`)."""

PROCESS_TYPE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,29}[A-Za-z0-9])?")
"""What a process type can be called: it is part of the names of units, containers and keys."""

INSTANCE = re.compile(rf"v[0-9]+\.{PROCESS_TYPE.pattern}\.[0-9]+")
"""What an instance is called within its app, and its keys in etcd: `v3.web.1`."""

UNIT = re.compile(rf"([a-z0-9-]+)\.({INSTANCE.pattern})")
"""The name of an instance's app unit: the app's, and what the instance is called within it."""

MOST_INSTANCES = 100
"""Of one process type."""

WEB = "web"
"""The process type that is announced to the web. Its instances alone have a port, and the image's HEALTHCHECK."""

ROUTER = "router"
"""No process type can be called so: it is how the router is told from them."""

RUN = "run"
"""What stands among the process types for commands that somebody runs once, where their limits are told."""

RENAMED = "Rename from"
"""How the `why` of a release begins that an app has since it has its name."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The most that one instance may use, enforced by Docker; 0 for as much as there is."""

    memory: int = 0
    """Bytes."""
    cpus: float = 0
    """Of the machine's processors."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What one deploy runs. `at` is in seconds since the epoch; `formation` is instances by process type."""

    app: str
    commit: str
    image: str
    ports: list[str]
    has_healthcheck: bool
    formation: dict[str, int]
    by: str
    why: str
    number: int = 0
    """0 for a draft, which the ledger has not got yet."""
    at: float = 0.0
    config: int = 0
    """The number of its configuration, 0 for none."""
    commands: dict[str, str] = msgspec.field(default_factory=lambda: {WEB: ""})
    """What each process type runs in a shell, as the Procfile says; empty for the image's own command."""
    release_command: str = ""
    """What runs once before a release of other code or configuration starts; empty for nothing."""
    checks: dict[str, list[Check]] = {}
    """What instances must pass to be good, by process type, as app.json says."""
    limits: dict[str, Limits] = {}
    """By process type; what `EVERY` has counts for those that have none."""
    stopped: bool = False
    """Whether none of it runs until it is started again."""
    rollback_to: int = 0
    """The number of the release that it is again, by a rollback; 0 where it is none."""

    @property
    def name(self) -> str:
        """`v3`"""
        return f"v{self.number}"

    @property
    def port(self) -> str:
        """The number of the port that must answer, which PORT names: `8080`"""
        return self.ports[0].partition("/")[0]

    @property
    def instances(self) -> "list[Instance]":
        """What is to run of it, in the order of its process types."""
        if self.stopped:
            return []
        return [Instance(self, process, index) for process, n in self.formation.items() for index in range(1, n + 1)]

    def at_rest(self, process: str = "") -> tuple[str, str] | None:
        """Why nothing of it runs, or nothing of this process type of it, and the command that starts it; else None."""
        if self.stopped:
            return "stopped", f"ps:start {self.app}"
        wanted = {process} if process else self.formation.keys()
        if not wanted <= self.formation.keys() or any(self.formation[each] for each in wanted):
            return None
        first = WEB if WEB in wanted else next(iter(wanted), WEB)
        return "scaled to 0", f"ps:scale {self.app} {first}=1"

    def is_same_as(self, other: "Release") -> bool:
        """Whether both are of the same code and configuration, whatever their counts and limits."""
        return all(getattr(self, each) == getattr(other, each) for each in _CODE_AND_CONFIGURATION)

    def limits_of(self, process: str) -> Limits:
        """What an instance of this process type may use."""
        return self.limits.get(process) or self.limits.get(EVERY) or Limits()


_CODE_AND_CONFIGURATION = ("image", "commands", "release_command", "checks", "config")


@dataclass(frozen=True)
class Instance:
    """One container of a release: `hello v3 web.1`."""

    release: Release
    process: str
    index: int

    @property
    def label(self) -> str:
        """`web.1`"""
        return f"{self.process}.{self.index}"

    @property
    def key(self) -> str:
        """`v3.web.1`: unique within the app, so that no name is ever used again."""
        return f"{self.release.name}.{self.label}"

    @property
    def unit(self) -> str:
        """`hello.v3.web.1`; an app's name has no dot, so no two instances share one."""
        return f"{self.release.app}.{self.key}"

    @property
    def is_web(self) -> bool:
        """Whether it is announced, and answers on the release's ports."""
        return self.process == WEB

    @property
    def words(self) -> list[str]:
        """The arguments that its container gets; none for the image's own command."""
        return in_shell(self.release.commands.get(self.process, ""))

    @property
    def checks(self) -> list[Check]:
        """What it must pass. What answers nobody must at least keep running for a while."""
        given = self.release.checks.get(self.process, [])
        if self.is_web or any(check.at_start for check in given):
            return given
        return [Check(type="startup", uptime=UPTIME_SECONDS), *given]

    @property
    def limits(self) -> Limits:
        """What it may use."""
        return self.release.limits_of(self.process)


def in_shell(command: str) -> list[str]:
    """What a container is given to run a command as a Dockerfile's `CMD command` would; nothing for no command."""
    return ["/bin/sh", "-c", command] if command else []


class Outcome(msgspec.Struct, frozen=True):
    """How a release's deploy ended, and why it failed."""

    state: Literal["live", "failed"]
    reason: str = ""


class Records:
    """What was released of one app, as it is read."""

    def __init__(self, reader: Reader, places: EtcdSettings, app: str) -> None:
        self.reader = reader
        self.places = places
        self.app = app
        self.root = places.root_of(app)

    def first_config(self) -> int:
        """The number of the configuration that the first release will have, 0 for none."""
        entry = self.reader.get(f"{self.root}/config")
        return int(entry.value) if entry else 0

    def config_in_force(self) -> int:
        """The number of the configuration that the next release has, unless it brings another."""
        current = self.current()
        return current.config if current else self.first_config()

    def configuration(self, number: int) -> dict[str, str]:
        """The values of a configuration by name."""
        entry = self.reader.get(self.places.config_of(self.app, number)) if number else None
        found = entry.value.items() if entry else ()
        return {name: value_of(base64.b64decode(value.removeprefix(_BYTES))) for name, value in found}

    def current(self) -> Release | None:
        """The release that serves, or None before the first."""
        number = self.reader.get(f"{self.root}/current")
        entry = self.reader.get(self._release_key(number.value)) if number else None
        return msgspec.convert(entry.value, Release) if entry else None

    def keys(self) -> set[str]:
        """Every key that is kept of the app."""
        return {entry.key for entry in self.reader.below(f"{self.root}/").entries}

    def history(self) -> list[tuple[Release, Outcome | None]]:
        """Every release and how its deploy ended, None where nothing tells of that; the oldest first."""
        prefix = f"{self.root}/outcomes/"
        ended = {
            entry.key.removeprefix(prefix): msgspec.convert(entry.value, Outcome)
            for entry in self.reader.below(prefix).entries
        }
        written = self.reader.below(f"{self.root}/releases/").entries
        return [(msgspec.convert(each.value, Release), ended.get(each.key.rpartition("/")[2])) for each in written]

    def last_of(self, commit: str) -> tuple[Release, Outcome | None] | None:
        """The last release of a commit, and how its deploy ended."""
        return next((entry for entry in reversed(self.history()) if entry[0].commit == commit), None)

    def unfinished(self) -> list[Release]:
        """Releases whose end nothing tells of: while one holds the deploy lock, those whose deploy was killed."""
        return [release for release, outcome in self.history() if outcome is None]

    def _release_key(self, number: int) -> str:
        return f"{self.root}/releases/{number:08}"


class Ledger(Records):
    """One app's releases."""

    def __init__(self, etcd: "Etcd", places: EtcdSettings, app: str) -> None:
        super().__init__(etcd, places, app)
        self.etcd = etcd
        self._exits = places.exits_of(app)

    def set_first_config(self, number: int) -> None:
        self.etcd.put(f"{self.root}/config", number)

    def write_configuration(self, values: dict[str, str]) -> int:
        """Write a configuration down; its number, 0 for an empty one."""
        if not values:
            return 0
        encoded = {name: _encoded(value) for name, value in sorted(values.items())}
        number = len(self.etcd.below(f"{self.root}/configs/").entries)
        while True:
            number += 1
            if self.etcd.create(self.places.config_of(self.app, number), encoded):
                return number

    def configured(self, values: dict[str, str]) -> int:
        """The number of a configuration of these values: the one in force, if that is theirs, else a new one."""
        number = self.config_in_force()
        return number if self.configuration(number) == values else self.write_configuration(values)

    def next_number(self, units: Iterable[str]) -> int:
        """The number that the next release gets while the deploy lock is held.

        It is above that of every release in etcd and of every one of the `units`, which are what still runs should
        etcd ever lose its data: no name is used twice.
        """
        written = [entry.key.rpartition("/")[2] for entry in self.etcd.below(f"{self.root}/releases/").entries]
        running = [match[1] for match in map(re.compile(rf"{self.app}\.v(\d+)\.").match, units) if match]
        return max(map(int, [*written, *running]), default=0) + 1

    def write(self, draft: Release, number: int) -> Release:
        """Write a release down, as `number` or, where that was given out meanwhile, as the next that is free.

        What failed is written down too, so the numbers have no gaps.
        """
        while True:
            release = msgspec.structs.replace(draft, number=number, at=time.time())
            if self.etcd.create(self._release_key(number), release):
                return release
            number += 1

    def make_current(self, release: Release, lock: "Lock") -> bool:
        """Say that it is live and serves from now on, both at once; false where the lock was lost or its deploy
        cancelled, up to this very moment, and nothing was written."""
        outcome = f"{self.root}/outcomes/{release.number:08}"
        written = {outcome: Outcome("live"), f"{self.root}/current": release.number}
        return bool(self.etcd.write(written, unchanged={lock.key: lock.revision}))

    def mark_failed(self, release: Release, reason: str) -> None:
        """Keep why it failed, and forget how its instances ended: the one who waited for them was told."""
        for instance in release.instances:
            self.etcd.delete(f"{self._exits}{instance.key}")
        self.etcd.put(f"{self.root}/outcomes/{release.number:08}", Outcome("failed", reason))


def _encoded(value: str) -> str:
    encoded = base64.b64encode(bytes_of(value)).decode()
    return encoded if is_text(value) else _BYTES + encoded
