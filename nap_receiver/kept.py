"""What etcd has, read by its own command: an eighth of the time that importing its library takes.

For who reads a little and is waited for: the gate, at each connection, and the commands that list something. And for
who reads all there is: the library takes no answer above 4 MB, which is what some 7,000 releases have.
"""

import base64
import bisect
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nap_receiver.errors import NapError
from nap_receiver.state import State

if TYPE_CHECKING:  # its libraries take longer to import than all this does
    from nap_receiver.settings import EtcdSettings

_READ_SECONDS = 10.0  # etcdctl itself waits for ever for the answer to a transaction
_DIAL_SECONDS = 5
_LAST = "\U0010ffff"  # no key of nap's has it, and each character comes before it


@dataclass(frozen=True)
class Entry:
    """A key, its decoded value, and the revision that wrote it; `value` is None for a key that was deleted.

    `lease` is the id of the lease that it ends with, or 0.
    """

    key: str
    value: Any
    revision: int
    lease: int = 0


@dataclass(frozen=True)
class Listing:
    """What was below a prefix at one revision, ordered by key."""

    entries: list[Entry]
    revision: int


class Reader(Protocol):
    """Something that keys and values are read from."""

    def get(self, key: str) -> Entry | None:
        """The entry at `key`, or None."""

    def below(self, prefix: str) -> Listing:
        """Everything below `prefix`, all of one moment."""


class Kept:
    """A `Reader` of what there was at one moment: the keys of `wanted`, and all below those that end with a slash.

    What else it is asked for it reads then. `where` is a state directory, for the etcd that `nap up` was told of last,
    or an etcd's settings. Raises `NapError` where etcd does not answer within `seconds`.
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
    """The entries at these keys, and of all below those that end with a slash, ordered by key; and their revision."""
    found, revision = _found(where, wanted, seconds)
    return {key: _entry(found[key]) for key in sorted(found)}, revision


def _found(
    where: "State | EtcdSettings", wanted: Sequence[str], seconds: float
) -> tuple[dict[str, Mapping[str, Any]], int]:
    """Likewise, as etcdctl tells it."""
    gets = "".join(f"get {'--prefix ' if key.endswith('/') else ''}{json.dumps(key)}\n" for key in wanted)
    environment = environment_of(where)
    try:
        done = subprocess.run(
            ["etcdctl", "txn", "--write-out=json"],
            env=environment,
            input=f"\n{gets}\n\n".encode(),
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
    answer = json.loads(done.stdout)
    ranges = [each["Response"]["ResponseRange"].get("kvs", []) for each in answer["responses"]]
    return {_key(kv): kv for kvs in ranges for kv in kvs}, answer["header"]["revision"]


def write_etcdctl(state: State, places: "EtcdSettings") -> None:
    """Keep how etcdctl reaches etcd, and below what there is who may do what."""
    draft = _file(state).with_suffix(".draft")
    draft.write_text(json.dumps({"environment": _environment(places), "access": places.access}), encoding="utf-8")
    draft.rename(_file(state))


def environment_of(where: "State | EtcdSettings") -> dict[str, str]:
    """The environment in which etcdctl reaches etcd. Raises `NapError` where no nap was ever up in that state."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    environment: dict[str, str] = _told(where)["environment"] if isinstance(where, State) else _environment(where)
    return {"PATH": f"{path}:/usr/local/bin:/usr/bin:/bin"} | environment


def _environment(places: "EtcdSettings") -> dict[str, str]:
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": places.url, "ETCDCTL_DIAL_TIMEOUT": f"{_DIAL_SECONDS}s"}
    files = {"CACERT": places.ca, "CERT": places.certificate, "KEY": places.key}
    return environment | {f"ETCDCTL_{name}": path for name, path in files.items() if path}


def access_prefix(state: State) -> str:
    """Below it, a slash and an app's name, there is who may do what with it."""
    prefix: str = _told(state)["access"]
    return prefix


def _told(state: State) -> dict[str, Any]:
    advice = "Ask the operator to run: nap up"
    try:
        told: dict[str, Any] = json.loads(_file(state).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NapError(f"no nap is up at {state.root}", advice=advice) from error
    if "access" not in told:  # as an older nap has left it
        raise NapError(f"nap was updated, and what it runs at {state.root} is of before", advice=advice)
    return told


def _file(state: State) -> Path:
    return state.run / "etcdctl.json"


def _entry(kv: Mapping[str, Any]) -> Entry:
    value = _decoded(base64.b64decode(kv.get("value", "")))  # none is told where it is empty
    return Entry(_key(kv), value, kv["mod_revision"], kv.get("lease", 0))


def _key(kv: Mapping[str, Any]) -> str:
    return base64.b64decode(kv["key"]).decode("utf-8", "replace")


def _decoded(value: bytes) -> Any:
    """The value; where it is no JSON, and so not nap's, its bytes."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _away(environment: Mapping[str, str], reason: str) -> NapError:
    return NapError(
        f"etcd at {environment['ETCDCTL_ENDPOINTS']} does not answer ({reason}); nothing was changed",
        advice="`nap status` tells what is down, and on a single machine `nap up` starts it; then try again.",
    )
