"""Read etcd with `etcdctl`, in an eighth of the time that importing the Python library takes.

For callers that read little and must answer fast: the gate, at each connection, and commands that list something.
Values are read in pages of one revision, so there is no limit on their number.
"""

import base64
import bisect
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nap_receiver.core.drafts import put
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State

if TYPE_CHECKING:  # its libraries take longer to import than all this does
    from nap_receiver.core.settings import EtcdSettings

_READ_SECONDS = 10.0  # etcdctl itself waits for ever for the answer to a transaction
_DIAL_SECONDS = 5
_KEYS_AT_ONCE = 1000  # of one answer of etcd's
_GETS_AT_ONCE = 100  # of one transaction; etcd takes 128 (`--max-txn-ops`)
_LAST = "\U0010ffff"  # no key of nap's has it, and each character comes before it


@dataclass(frozen=True)
class Entry:
    """A key, its decoded value, and the revision that wrote it; `value` is None for a deleted key.

    `lease` is the id of the lease that it ends with, or 0.
    """

    key: str
    value: Any
    revision: int
    lease: int = 0


@dataclass(frozen=True)
class Listing:
    """The entries below a prefix at one revision, ordered by key."""

    entries: list[Entry]
    revision: int


class Reader(Protocol):
    """Anything that reads keys and values of etcd."""

    def get(self, key: str) -> Entry | None:
        """The entry at `key`, or None."""

    def below(self, prefix: str) -> Listing:
        """Everything below `prefix`, all of one moment."""


class Kept:
    """A `Reader` of one moment: reads the keys `wanted`, and all keys below those that end with a slash, in advance.

    Other keys are read when they are requested. `where` is a state directory, for the etcd of the last `nap up`, or
    settings of an etcd. Raises `NapError` if etcd does not answer within `seconds`.
    """

    def __init__(self, where: "State | EtcdSettings", wanted: Sequence[str], seconds: float = _READ_SECONDS) -> None:
        self._where, self._wanted, self._seconds = where, list(wanted), seconds
        self._found, self._revision = _found(where, wanted, seconds)
        self.keys = sorted(self._found)
        """Of all that was wanted, in order."""

    def get(self, key: str) -> Entry | None:
        if key not in self._wanted and not any(key.startswith(each) for each in self._wanted if each.endswith("/")):
            return read(self._where, [key], self._seconds)[0].get(key)
        found = self._found.get(key)  # decoded when it is asked for: of much, most never is
        return _entry(found) if found else None

    def below(self, prefix: str) -> Listing:
        if not any(prefix.startswith(each) for each in self._wanted if each.endswith("/")):
            entries, revision = read(self._where, [prefix], self._seconds)
            return Listing(list(entries.values()), revision)
        first, last = bisect.bisect_left(self.keys, prefix), bisect.bisect_left(self.keys, prefix + _LAST)
        return Listing([_entry(self._found[key]) for key in self.keys[first:last]], self._revision)


def read(
    where: "State | EtcdSettings", wanted: Sequence[str], seconds: float = _READ_SECONDS
) -> tuple[dict[str, Entry], int]:
    """Return the entries of these keys, and of all below those that end with a slash, ordered by key; and the
    revision."""
    found, revision = _found(where, wanted, seconds)
    return {key: _entry(found[key]) for key in sorted(found)}, revision


def keys_below(where: "State | EtcdSettings", prefix: str, seconds: float = _READ_SECONDS) -> list[str]:
    """Return the keys below a prefix that ends with a slash, ordered, without their values."""
    return sorted(_found(where, [prefix], seconds, keys_only=True)[0])


def _found(
    where: "State | EtcdSettings", wanted: Sequence[str], seconds: float, *, keys_only: bool = False
) -> tuple[dict[str, Mapping[str, Any]], int]:
    """Yield the same as etcdctl prints it, page by page, each at the revision of the first."""
    environment, give_up = environment_of(where), time.monotonic() + seconds
    left = [(key.encode(), _end_below(key) if key.endswith("/") else b"") for key in wanted]
    found: dict[str, Mapping[str, Any]] = {}
    revision = 0
    while left or not revision:
        asked, left = left[:_GETS_AT_ONCE], left[_GETS_AT_ONCE:]
        options = f"--limit={_KEYS_AT_ONCE // max(1, len(asked))} --rev={revision}"
        options += " --keys-only" if keys_only else ""
        gets = [f"get {options} {' '.join(_quoted(each) for each in (start, end) if each)}" for start, end in asked]
        answer = _answer(environment, gets, max(0.0, give_up - time.monotonic()))
        revision = revision or answer["header"]["revision"]
        for (_, end), response in zip(asked, answer.get("responses", ()), strict=True):
            (page,) = response["Response"].values()  # etcd 3.4 calls it ResponseRange, 3.5 response_range
            found |= {_key(kv): kv for kv in page.get("kvs", ())}
            if end and page.get("more"):
                left.append((base64.b64decode(page["kvs"][-1]["key"]) + b"\0", end))
    return found, revision


def _answer(environment: Mapping[str, str], gets: Sequence[str], seconds: float) -> Any:
    """Return etcdctl's answer to these gets, in one transaction."""
    try:
        done = subprocess.run(
            ["etcdctl", "txn", "--write-out=json"],
            env=environment,
            input=("\n" + "".join(f"{get}\n" for get in gets) + "\n\n").encode(),
            capture_output=True,
            check=False,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise NapError("etcdctl is not installed here", advice="apt-get install etcd-client") from error
    except subprocess.TimeoutExpired as error:
        raise _away(environment, "no answer in time") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _away(environment, lines[-1].removeprefix("Error: ") if lines else f"exit status {done.returncode}")
    return json.loads(done.stdout)


def _end_below(prefix: str) -> bytes:
    """Return the first key after all keys below a prefix that ends with a slash."""
    return prefix[:-1].encode() + b"0"


def _quoted(key: bytes) -> str:
    """Quote a key for a transaction of etcdctl: a Go string."""
    return '"' + "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in key) + '"'


def write_etcdctl(state: State, places: "EtcdSettings") -> None:
    """Store how etcdctl reaches etcd, and the prefix of the rights."""
    put(_file(state), json.dumps({"environment": _environment(places), "access": places.access}), 0o600)


def environment_of(where: "State | EtcdSettings") -> dict[str, str]:
    """Return the environment variables for etcdctl. Raises `NapError` if nap was never up in that state directory."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    environment: dict[str, str] = _told(where)["environment"] if isinstance(where, State) else _environment(where)
    return {"PATH": f"{path}:/usr/local/bin:/usr/bin:/bin"} | environment


def _environment(places: "EtcdSettings") -> dict[str, str]:
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": places.url, "ETCDCTL_DIAL_TIMEOUT": f"{_DIAL_SECONDS}s"}
    files = {"CACERT": places.ca, "CERT": places.certificate, "KEY": places.key}
    return environment | {f"ETCDCTL_{name}": path for name, path in files.items() if path}


def access_prefix(state: State) -> str:
    """Return the prefix of the rights: a slash and the app's name follow."""
    prefix: str = _told(state)["access"]
    return prefix


def _told(state: State) -> dict[str, Any]:
    advice = "Ask the operator to run: nap up"
    try:
        stored: dict[str, Any] = json.loads(_file(state).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NapError(f"nap is not running at {state.root}", advice=advice) from error
    if "access" not in stored:  # as an older nap has left it
        raise NapError(f"nap was updated, but the programs of {state.root} were not restarted", advice=advice)
    return stored


def _file(state: State) -> Path:
    return state.run / "etcdctl.json"


def _entry(kv: Mapping[str, Any]) -> Entry:
    value = _decoded(base64.b64decode(kv.get("value", "")))  # none is told where it is empty
    return Entry(_key(kv), value, kv["mod_revision"], kv.get("lease", 0))


def _key(kv: Mapping[str, Any]) -> str:
    return base64.b64decode(kv["key"]).decode("utf-8", "replace")


def _decoded(value: bytes) -> Any:
    """Decode a value from JSON; return the bytes if it is not JSON, and so not nap's."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _away(environment: Mapping[str, str], reason: str) -> NapError:
    return NapError(
        f"etcd at {environment['ETCDCTL_ENDPOINTS']} does not answer ({reason}); nothing was changed",
        advice="`nap status` shows what is down; on a single machine `nap up` starts it. Then try again.",
    )
