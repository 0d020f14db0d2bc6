"""When an instance is good: the checks that it must pass, asked on its own machine by `unit_templates/announce.sh`."""

import shlex
from typing import Literal

import msgspec

UPTIME_SECONDS = 5
"""How long an instance that answers nobody must run to be taken for good, unless a check says otherwise."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """One check, as app.json's `healthchecks` has it, with Dokku's names; times are in seconds.

    Exactly one of `path` (HTTP), `listening` (TCP), `command` (in the container) and `uptime` says what is asked.
    """

    type: Literal["startup", "liveness", ""] = ""
    """Asked until it passes once, again and again from then on, or, when empty, both."""
    name: str = ""
    path: str = ""
    port: int = 0
    """Of the container; 0 for that of PORT."""
    listening: bool = False
    command: list[str] = []
    uptime: int = 0
    initial_delay: int = 0
    """Before the first try."""
    timeout: int = 5
    """Of one try."""
    attempts: int = 3
    """So many tries in a row that fail are one too many."""
    wait: int = 5
    """Between two tries."""

    @property
    def at_start(self) -> bool:
        """Whether an instance is not good before it passed."""
        return self.type != "liveness"

    def line(self, port: str) -> str:
        """The check as announce.sh reads it; `port` is that of PORT."""
        moment = self.type or "both"
        times = f"{self.initial_delay} {self.wait} {self.timeout} {self.attempts}"
        if self.path:
            return f"{moment} http {times} {self.port or port} {self.path}"
        if self.listening:
            return f"{moment} tcp {times} {self.port or port}"
        if self.command:
            return f"{moment} command {times} {shlex.join(self.command)}"
        return f"startup uptime {times} {self.uptime}"
