"""A release: what runs of an app, and how. It never changes after it is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.model.command import heeding_signals
from nap_receiver.model.health import UPTIME_SECONDS, Check

DISCOVERY = "-discovery"
"""What follows an instance's unit name in the name of the unit that announces it."""

EVERY = "*"
"""Stands for every process type that has no limits of its own."""


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

DEFAULT_PORT = 5000
"""Where an app is expected to listen whose image names no port (Heroku's and Dokku's custom)."""

RENAMED = "Rename from"
"""How the `why` of a release begins that an app has since it has its name."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resource limits of one instance, enforced by Docker; 0 for none."""

    memory: int = 0
    """Bytes."""
    cpus: float = 0
    """Of the machine's processors."""


Protocol = Literal["http", "h2c"]
"""What the router speaks with an app: HTTP/1.1, or HTTP/2 without TLS (RFC 9113, section 3.3)."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release. `at` is in seconds since the epoch; `formation` is the number of instances by process type.

    `ports` are those of the image, `8080/tcp`, …, the one first that must answer unless another is set or found.
    """

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
    names_port: bool = True
    """Whether the image names a TCP port; where it does not, the first of `ports` is `DEFAULT_PORT`."""
    set_port: int = 0
    """The port that must answer, as ports:set says; 0 for that of the image."""
    found_port: int = 0
    """The port that must answer because nap saw the app listen there, which names none; 0 where it did not look."""
    config: int = 0
    """The number of its configuration, 0 for none."""
    commands: dict[str, str] = msgspec.field(default_factory=lambda: {WEB: ""})
    """What each process type runs in a shell, as the Procfile says; empty for the image's own command."""
    release_command: str = ""
    """What runs once before a release of other code or configuration starts; empty for nothing."""
    predeploy: str = ""
    """What runs once before that, as app.json says; empty for nothing."""
    checks: dict[str, list[Check]] = {}
    """What instances must pass to be good, by process type, as app.json says."""
    limits: dict[str, Limits] = {}
    """By process type; what `EVERY` has counts for those that have none."""
    protocol: Protocol = "http"
    """What the router speaks with its web instances."""
    stopped: bool = False
    """Whether none of it runs until it is started again."""
    capabilities: list[str] = []
    """Of capabilities(7), those that the operator gives its containers beside the usual ones: `NET_RAW`."""
    rollback_to: int = 0
    """The number of the release that it is again, by a rollback; 0 where it is none."""

    @property
    def name(self) -> str:
        """`v3`"""
        return f"v{self.number}"

    @property
    def port(self) -> str:
        """The number of the web port: `8080`"""
        return str(self.set_port or self.found_port or self.ports[0].partition("/")[0])

    @property
    def port_from(self) -> Literal["ports:set", "found", "image", "default"]:
        """Where the web port comes from: the image, `ports:set`, …"""
        if self.set_port:
            return "ports:set"
        if self.found_port:
            return "found"
        return "image" if self.names_port else "default"

    @property
    def port_variable(self) -> str:
        """The value of PORT. An app that listens on another port keeps the value that it had when nap found that
        port."""
        return str(self.set_port or self.ports[0].partition("/")[0])

    @property
    def published(self) -> list[str]:
        """The ports that its web instances publish, the web port first."""
        first = f"{self.port}/tcp"
        others = self.ports if self.names_port else self.ports[1:]
        return [first, *(port for port in others if port != first)]

    @property
    def instances(self) -> "list[Instance]":
        """Its instances, ordered by process type."""
        if self.stopped:
            return []
        return [Instance(self, process, index) for process, n in self.formation.items() for index in range(1, n + 1)]

    def at_rest(self, process: str = "") -> tuple[str, str] | None:
        """Return why no instance of it, or of this process type, runs, and the command that starts one; else None."""
        if self.stopped:
            return "stopped", f"ps:start {self.app}"
        wanted = {process} if process else self.formation.keys()
        if not wanted <= self.formation.keys() or any(self.formation[each] for each in wanted):
            return None
        first = WEB if WEB in wanted else next(iter(wanted), WEB)
        return "scaled to 0", f"ps:scale {self.app} {first}=1"

    def is_same_as(self, other: "Release") -> bool:
        """Return whether both have the same code and configuration; counts and limits may differ."""
        return all(getattr(self, each) == getattr(other, each) for each in _CODE_AND_CONFIGURATION)

    def limits_of(self, process: str) -> Limits:
        """Return the limits of an instance of this process type."""
        return limits_among(self.limits, process)


def limits_among(limits: Mapping[str, Limits], process: str) -> Limits:
    """Return those of these limits, by process type, that apply to an instance of this process type."""
    return limits.get(process) or limits.get(EVERY) or Limits()


_CODE_AND_CONFIGURATION = (
    *("image", "commands", "release_command", "predeploy", "checks", "config", "set_port", "protocol"),
)


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
        """`v3.web.1`: unique within the app and never used again."""
        return f"{self.release.name}.{self.label}"

    @property
    def unit(self) -> str:
        """`hello.v3.web.1`; app names have no dot, so it is unique."""
        return f"{self.release.app}.{self.key}"

    @property
    def is_web(self) -> bool:
        """Whether it is announced, and answers on the ports of the release."""
        return self.process == WEB

    @property
    def words(self) -> list[str]:
        """The arguments of its container; none for the image's own command."""
        return heeding_signals(self.release.commands.get(self.process, ""))

    @property
    def checks(self) -> list[Check]:
        """Its health checks. An instance that is not web must at least keep running for some time."""
        given = self.release.checks.get(self.process, [])
        if self.is_web or any(check.at_start for check in given):
            return given
        return [Check(type="startup", uptime=UPTIME_SECONDS), *given]

    @property
    def limits(self) -> Limits:
        """Its resource limits."""
        return self.release.limits_of(self.process)


def never_deployed(app: str) -> NapError:
    """Return the error for a command that needs a current release when the app has none."""
    return NapError(f"{app} was never deployed", advice="Push it first: git push nap master")


class Outcome(msgspec.Struct, frozen=True):
    """How the deploy of a release ended, and why it failed."""

    state: Literal["live", "failed"]
    reason: str = ""
