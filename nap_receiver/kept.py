"""What etcd has, read by its own command: an eighth of the time that importing its library takes.

For who reads a little and is waited for: the gate, at each connection, and the commands that list something.
"""

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nap_receiver.errors import NapError
from nap_receiver.state import State

_READ_SECONDS = 5


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

    What else it is asked for it reads then. Raises `NapError` where etcd does not answer.
    """

    def __init__(self, state: State, wanted: Sequence[str]) -> None:
        self._state, self._wanted = state, list(wanted)
        self._entries, self._revision = read(state, wanted)

    def get(self, key: str) -> Entry | None:
        if key not in self._wanted and not any(key.startswith(each) for each in self._wanted if each.endswith("/")):
            return read(self._state, [key])[0].get(key)
        return self._entries.get(key)

    def below(self, prefix: str) -> Listing:
        if not any(prefix.startswith(each) for each in self._wanted if each.endswith("/")):
            entries, revision = read(self._state, [prefix])
            return Listing(list(entries.values()), revision)
        return Listing([entry for key, entry in self._entries.items() if key.startswith(prefix)], self._revision)


def read(state: State, wanted: Sequence[str]) -> tuple[dict[str, Entry], int]:
    """The entries at these keys, and of all below those that end with a slash, by key; and the revision of them all."""
    gets = "".join(f"get {'--prefix ' if key.endswith('/') else ''}{json.dumps(key)}\n" for key in wanted)
    environment = environment_of(state)
    try:
        done = subprocess.run(
            ["etcdctl", "txn", "--write-out=json"],
            env=environment,
            input=f"\n{gets}\n\n".encode(),
            capture_output=True,
            check=False,
            timeout=_READ_SECONDS * 2,
        )
    except subprocess.TimeoutExpired as error:
        raise _away(environment, "no answer in time") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _away(environment, lines[-1].removeprefix("Error: ") if lines else f"exit status {done.returncode}")
    answer = json.loads(done.stdout)
    ranges = [each["Response"]["ResponseRange"].get("kvs", []) for each in answer["responses"]]
    found = [_entry(each) for each in sorted((kv for kvs in ranges for kv in kvs), key=lambda kv: _text(kv["key"]))]
    return {entry.key: entry for entry in found}, answer["header"]["revision"]


def write_etcdctl(state: State, endpoint: str, files: Mapping[str, str], prefix: str) -> None:
    """Keep how etcdctl reaches etcd, with these files by its names, and below what there is who may do what."""
    environment = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": endpoint, "ETCDCTL_DIAL_TIMEOUT": f"{_READ_SECONDS}s"}
    environment |= {f"ETCDCTL_{name.upper()}": path for name, path in files.items() if path}
    draft = _file(state).with_suffix(".draft")
    draft.write_text(json.dumps({"environment": environment, "access": prefix}), encoding="utf-8")
    draft.rename(_file(state))


def environment_of(state: State) -> dict[str, str]:
    """The environment in which etcdctl reaches etcd. Raises `NapError` where no nap was ever up."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    environment: dict[str, str] = _told(state)["environment"]
    return {"PATH": f"{path}:/usr/local/bin:/usr/bin:/bin"} | environment


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
    return Entry(_text(kv["key"]), json.loads(_text(kv["value"])), kv["mod_revision"], kv.get("lease", 0))


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


def _away(environment: Mapping[str, str], reason: str) -> NapError:
    return NapError(
        f"etcd at {environment['ETCDCTL_ENDPOINTS']} does not answer ({reason}), and it knows who may do what; "
        "nothing was changed",
        advice="`nap status` tells what is down, and on a single machine `nap up` starts it; then try again.",
    )
