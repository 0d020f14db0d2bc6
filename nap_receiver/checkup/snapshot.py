"""What etcd holds, listed once, and then read as etcd itself is.

By etcd's own command: its library takes no answer above 4 MB, which is what some 7,000 releases have.
"""

import bisect
import os
import subprocess
from collections.abc import Sequence

import msgspec

from nap_receiver.errors import NapError
from nap_receiver.etcd import Entry, Etcd, EtcdAway, Listing
from nap_receiver.programs import etcd_answers
from nap_receiver.settings import EtcdSettings

_LIST_SECONDS = 30


class _KeyValue(msgspec.Struct):
    key: bytes
    mod_revision: int
    value: bytes = b""
    lease: int = 0


class _Answer(msgspec.Struct):
    kvs: list[_KeyValue] = []


class Snapshot(Etcd):
    """What was below some prefixes when it was made; only `get` and `below` are for use."""

    def __init__(self, settings: EtcdSettings, prefixes: Sequence[str]) -> None:
        if not etcd_answers(settings):  # etcdctl takes its time over one that is away
            advice = "On a single machine `nap up` starts it."
            raise EtcdAway(f"etcd at {settings.address} does not answer", advice=advice)
        found = {each.key.decode("utf-8", "replace"): each for prefix in prefixes for each in _list(settings, prefix)}
        self._found = found
        self.keys = sorted(found)

    def get(self, key: str) -> Entry | None:
        return self._entry(key) if key in self._found else None

    def below(self, prefix: str) -> Listing:
        first = bisect.bisect_left(self.keys, prefix)
        last = bisect.bisect_left(self.keys, prefix + "\U0010ffff")
        return Listing([self._entry(key) for key in self.keys[first:last]], 0)

    def revision_of(self, key: str) -> int:
        """The revision that wrote this key."""
        return self._found[key].mod_revision

    def _entry(self, key: str) -> Entry:
        found = self._found[key]
        return Entry(key, msgspec.json.decode(found.value), found.mod_revision, found.lease)


def _list(settings: EtcdSettings, prefix: str) -> list[_KeyValue]:
    files = {"CACERT": settings.ca, "CERT": settings.certificate, "KEY": settings.key}
    environment = {"PATH": os.environ.get("PATH", ""), "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": settings.url}
    environment |= {f"ETCDCTL_{name}": path for name, path in files.items() if path}
    command = ["etcdctl", f"--command-timeout={_LIST_SECONDS}s", "get", "--prefix", "--write-out=json", prefix]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=_LIST_SECONDS + 5)
        if not done.returncode:
            return msgspec.json.decode(done.stdout, type=_Answer).kvs
        reason = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        reason = str(error)
    raise NapError(f"etcdctl does not list what is below {prefix}: {reason}")
