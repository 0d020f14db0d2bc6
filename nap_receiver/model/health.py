"""Health checks: when an instance is good. They run on its machine: in the agent, or in `announce.sh` on a cluster."""

import shlex
from http import HTTPStatus
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

UPTIME_SECONDS = 5
"""How long an instance that answers nobody must run to be taken for good, unless a check says otherwise."""


LONGEST_CONTENT = 4096
"""Characters that a check may look for."""

MOST_HEADERS = 50
_LONGEST_HEADER = 4096
_LONGEST_URL = 2048
_SHOWN_CONTENT = 40


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header of the request of an HTTP check."""

    name: Annotated[str, msgspec.Meta(max_length=_LONGEST_HEADER)]
    value: Annotated[str, msgspec.Meta(max_length=_LONGEST_HEADER)] = ""


class OnFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What runs after a check has failed."""

    command: list[str] = []
    """Run in the container, before it is stopped."""
    url: Annotated[str, msgspec.Meta(max_length=_LONGEST_URL)] = ""
    """Called by the receiver, where the check failed in a deploy."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """One check, as app.json's `healthchecks` has it, with Dokku's names; times are in seconds.

    Exactly one of `path` (HTTP), `listening` (TCP), `command` (in the container) and `uptime` is set.
    """

    type: Literal["startup", "readiness", "liveness", ""] = ""
    """Asked until it passes once, or from then on, or both; one of no type asks as startup, then as liveness.

    An instance that fails readiness later is withdrawn until it passes again; one that fails liveness is restarted.
    """
    name: str = ""
    path: str = ""
    scheme: Literal["http", "https", ""] = ""
    """Of the request for `path`; empty for http. No certificate is verified: it could not name the container."""
    http_headers: Annotated[list[Header], msgspec.Meta(max_length=MOST_HEADERS)] = []
    content: Annotated[str, msgspec.Meta(max_length=LONGEST_CONTENT)] = ""
    """What must be in the first MiB of the answer."""
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
    warn: bool = False
    """Whether the deploy goes on, and the instance runs on, when it fails."""
    on_failure: OnFailure | None = None

    @property
    def at_start(self) -> bool:
        """Whether the instance is healthy only after it has passed this check."""
        return self.type != "liveness"

    def line(self, number: int, port: str) -> str:
        """Format the check for announce.sh: its number, and `port`, the value of PORT.

        What a tenant chose to ask is not in it (`container.asked_by`).
        """
        when = self.type or "both"
        times = f"{self.initial_delay} {self.wait} {self.timeout} {self.attempts}"
        flags = (" warn" if self.warn else "") + (" on-failure" if self.failure_command else "")
        if self.path:
            return f"{number} {when} {self.scheme or 'http'} {times} {self.port or port}{flags}"
        if self.listening:
            return f"{number} {when} tcp {times} {self.port or port}{flags}"
        if self.command:
            return f"{number} {when} command {times}{flags}"
        return f"{number} startup uptime {times} {self.uptime}{flags}"

    @property
    def asks_port(self) -> bool:
        """Whether it connects to a port of the container."""
        return bool(self.path) or self.listening

    @property
    def failure_command(self) -> list[str]:
        """The command that runs in the container after the check has failed."""
        return self.on_failure.command if self.on_failure else []

    def shown(self, port: str) -> str:
        """Format the check for people; `port` is the value of PORT: `http 8080 /health`."""
        if self.path:
            shown = f"{self.scheme or 'http'} {self.port or port} {self.path}"
            shown_content = " ".join(self.content.split())[:_SHOWN_CONTENT]
            return shown + (f', "{shown_content}" in the answer' if self.content else "")
        if self.listening:
            return f"tcp {self.port or port}"
        if self.command:
            return f"command {shlex.join(self.command)}"
        return f"uptime {self.uptime}"

    @property
    def tries(self) -> str:
        """How often it may fail, in words: `once`, `3 times`."""
        return "once" if self.attempts == 1 else f"{self.attempts} times"

    def header(self, name: str) -> str:
        """Return the value of this header in the request; empty if it is not set."""
        return next((each.value for each in self.http_headers if each.name.lower() == name.lower()), "")


class Answer(msgspec.Struct):
    """The result of a failed try, as the agent or announce.sh writes it; `error` and `said` are in base64."""

    asked: str
    """The address that was asked: `172.18.0.3:8080`; of a command, empty."""
    status: int
    """Of HTTP, or of a command's exit; 0 where there was none in time."""
    error: bytes = b""
    said: bytes = b""
    """The first line of an answer, or the last lines that a command printed."""


def visitors_headers(check: Check, url: str) -> list[Header]:
    """Return the headers that make the app treat an HTTP check as a visitor of `url`, except those that the check sets.

    The router sets them on a visitor's request: Host (RFC 9110, section 7.2) and X-Forwarded-Proto.
    """
    if not url:
        return []
    parts = urlsplit(url)
    usual = [Header("Host", parts.netloc), Header("X-Forwarded-Proto", parts.scheme)]
    named = {each.name.lower() for each in check.http_headers}
    return [each for each in usual if each.name.lower() not in named]


def ended(command: str, answer: Answer) -> list[str]:
    """Return how the last failed run of a command in the container ended, and its last output lines."""
    how = f"ended with status {answer.status}" if answer.status > 0 else "did not end in time"
    lines = answer.said.decode("utf-8", "replace").splitlines()
    return [f"{command} {how}{', and printed:' if lines else ''}", *lines]


def answered(check: Check, url: str, answer: Answer) -> str:
    """Return the request of a check and its answer: `GET http://hello.localhost/health: 404 Not Found`."""
    parts = urlsplit(url)
    scheme = check.header("X-Forwarded-Proto") or parts.scheme or check.scheme or "http"
    asked = f"GET {scheme}://{check.header('Host') or parts.netloc or answer.asked}{check.path}"
    error, said = (text.decode("utf-8", "replace").strip() for text in (answer.error, answer.said))
    if not answer.status:
        return f"{asked}: no answer" + (f" ({error})" if error else "")
    try:
        status = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:  # one of the app's own
        status = f"{answer.status}"
    if answer.status < HTTPStatus.BAD_REQUEST:
        status += f", then: {error}" if error else ", without that content"
    return f"{asked}: {status}" + (f": {said}" if said else "")
