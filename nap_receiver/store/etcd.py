"""Client of etcd: JSON values, transactions for numbers and locks, watches with an exact deadline.

The only module that uses the etcd3 library, whose last release is of 2020. Its watcher uses all processor time when
etcd is down, and its locks raise under contention (docs/design/libraries.md, "etcd3"). So both are implemented here on
its gRPC stubs.
"""

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

# Or the threads of gRPC run on in whatever this process forks, and end it as soon as that closes what it inherited.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import etcd3
import grpc
from etcd3 import etcdrpc
from etcd3.utils import increment_last_byte

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdAddress, EtcdSettings
from nap_receiver.store.etcdctl import Entry as Entry
from nap_receiver.store.etcdctl import Listing as Listing

# Finds a server that is frozen, not closed, in 8 s.
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 2000),
]


LARGEST_BYTES = 1 << 20
"""Of the values of one write: etcd itself takes 1.5 MiB with all that is around them (its `--max-request-bytes`)."""

_PAGE_KEYS = 512
"""Of one answer of etcd's; fewer where their values are large, for gRPC takes no answer above 4 MiB."""

_MOST_OPERATIONS = 128
"""Of one transaction, etcd's `--max-txn-ops`."""

_IN_FRAGMENTS = b"\x40\x01"
"""`fragment: true` of a WatchCreateRequest (field 8 in etcd's rpc.proto), which etcd3's code does not know."""


class EtcdAway(NapError):
    """etcd did not answer, or not in time."""


class Etcd:
    """A connection to etcd. Every call ends within the settings' `timeout`, or raises `EtcdAway`."""

    def __init__(self, settings: EtcdSettings) -> None:
        address = settings.address
        self._address = address
        tls = {"ca_cert": settings.ca, "cert_cert": settings.certificate, "cert_key": settings.key}
        try:
            self._client = etcd3.client(
                **_target(address),
                timeout=settings.timeout,
                grpc_options=_KEEPALIVE,
                **{name: str(path) for name, path in tls.items() if path},
            )
        except ValueError as error:
            raise NapError("etcd.certificate needs etcd.key and etcd.ca", advice="To see them: nap settings") from error
        except OSError as error:
            raise NapError(
                f"{error.filename}: {error.strerror}", advice="Correct etcd.… in settings.toml: nap settings"
            ) from error

    def close(self) -> None:
        self._client.close()

    def get(self, key: str) -> Entry | None:
        """Return the entry at `key`, or None."""
        with self._answering():
            value, metadata = self._client.get(key)
        if metadata is None:
            return None
        return Entry(key, _decoded(value), metadata.mod_revision, metadata.lease_id)

    def below(self, prefix: str) -> Listing:
        """Return all entries below `prefix` at one revision. They are read in pages, so there is no limit on their
        number."""
        entries, revision = [], 0
        for page in self._pages(prefix):
            entries += [Entry(kv.key.decode(), _decoded(kv.value), kv.mod_revision) for kv in page.kvs]
            revision = revision or page.header.revision
        return Listing(entries, revision)

    def keys_below(self, prefix: str) -> list[str]:
        """Return all keys below `prefix` at one revision, without their values."""
        return [kv.key.decode() for page in self._pages(prefix, keys_only=True) for kv in page.kvs]

    def delete_below(self, prefix: str, but: Collection[str] = ()) -> None:
        """Delete the current keys below `prefix` except `but`, in several transactions."""
        for page in self._pages(prefix, keys_only=True):
            keys = [key for kv in page.kvs if (key := kv.key.decode()) not in but]
            for start in range(0, len(keys), _MOST_OPERATIONS):
                self.write(dict.fromkeys(keys[start : start + _MOST_OPERATIONS]))

    def _pages(self, prefix: str, *, keys_only: bool = False) -> Iterator[Any]:
        """Yield the answers that list `prefix`; later pages use the revision of the first."""
        start, end = prefix.encode(), increment_last_byte(prefix.encode())
        most, revision = _PAGE_KEYS, 0
        while True:
            # No sort order, which is that of the keys: asked for one, etcd reads everything, then cuts off the page.
            asked = etcdrpc.RangeRequest(key=start, range_end=end, limit=most, revision=revision, keys_only=keys_only)
            try:
                page = self._client.kvstub.Range(
                    asked,
                    self._client.timeout,
                    credentials=self._client.call_credentials,
                    metadata=self._client.metadata,
                )
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and most > 1:  # an answer that is too large
                    most = max(1, most // 8)
                    continue
                raise self._away(_reason(error)) from error
            yield page
            if not page.more:
                return
            revision = revision or page.header.revision
            start = page.kvs[-1].key + b"\0"

    def revision(self) -> int:
        """Return the current revision. A watch that starts there misses no change."""
        with self._answering():
            return int(self._client.get_response("/").header.revision)

    def put(self, key: str, value: object, *, lease: Any = None) -> int:
        """Write `key`; return the new revision."""
        return self.write({key: value}, lease=lease)

    def delete(self, key: str) -> None:
        self.write({key: None})

    def create(self, key: str, value: object, *, lease: Any = None) -> int:
        """Write `key` only if it does not exist; return the new revision, or 0 if it exists."""
        return self.write({key: value}, unchanged={key: 0}, lease=lease)

    def write(
        self, values: Mapping[str, object], *, unchanged: Mapping[str, int] | None = None, lease: Any = None
    ) -> int:
        """Write these keys in one transaction, or delete those with the value None; return the new revision.

        Only if each key of `unchanged` still has that revision, 0 for a key that does not exist; else nothing is
        written, and 0 is returned. `lease` is a lease or its id. Raises `NapError` for more than `LARGEST_BYTES`.
        """
        make = self._client.transactions
        encoded = {key: None if value is None else msgspec.json.encode(value) for key, value in values.items()}
        size = sum(len(value) for value in encoded.values() if value)
        if size > LARGEST_BYTES:
            largest = max(encoded, key=lambda key: len(encoded[key] or b""))
            raise NapError(f"{largest} cannot be written: it has {size} bytes; the limit is {LARGEST_BYTES}")
        operations = [
            make.delete(key) if value is None else make.put(key, value, lease) for key, value in encoded.items()
        ]
        comparisons = [make.mod(key) == revision for key, revision in (unchanged or {}).items()]
        with self._answering():
            response = self._client.kvstub.Txn(
                etcdrpc.TxnRequest(
                    compare=[comparison.build_message() for comparison in comparisons],
                    success=self._client._ops_to_requests(operations),
                ),
                self._client.timeout,
                credentials=self._client.call_credentials,
                metadata=self._client.metadata,
            )
        return int(response.header.revision) if response.succeeded else 0

    def changes(self, prefixes: list[str], since: int, timeout: float) -> Iterator[Entry]:
        """Yield each change below any of `prefixes` after revision `since`; end after `timeout` seconds.

        Raises `EtcdAway` if etcd goes away, or has compacted the revisions after `since`.
        """
        done = threading.Event()

        def requests() -> Iterator[Any]:
            for prefix in prefixes:
                start = prefix.encode()
                create = etcdrpc.WatchCreateRequest(
                    key=start, range_end=increment_last_byte(start), start_revision=since + 1
                )
                create.MergeFromString(_IN_FRAGMENTS)  # or much at once would be one answer, too large for gRPC
                yield etcdrpc.WatchRequest(create_request=create)
            done.wait()

        with self._answering():
            stream = self._client.watcher._watch_stub.Watch(requests(), timeout=timeout)
        try:
            for response in stream:
                if response.canceled:  # that one watch alone, and the stream would go on without it
                    raise self._away("what it is asked to begin from is compacted")
                for event in response.events:
                    deleted = event.type == 1  # mvccpb.Event.DELETE
                    yield Entry(
                        event.kv.key.decode(), None if deleted else _decoded(event.kv.value), event.kv.mod_revision
                    )
        except grpc.RpcError as error:
            # etcd, where its own clock is first, ends the stream as UNKNOWN with these words.
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED and "context deadline exceeded" not in error.details():
                raise self._away(_reason(error)) from error
        finally:
            done.set()
            stream.cancel()

    def grant(self, seconds: int) -> int:
        """The id of a new lease that ends after so many seconds, unless it is kept alive."""
        with self._answering():
            return int(self._client.lease(seconds).id)

    def keep_alive(self, lease: int) -> bool:
        """Have a lease begin its time anew; false where etcd does not know it any more."""
        with self._answering():
            return any(answer.TTL > 0 for answer in self._client.refresh_lease(lease))

    def revoke(self, lease: int) -> None:
        """End a lease, and with it the keys that are under it; nothing where etcd does not know it."""
        try:
            with self._answering():
                self._client.revoke_lease(lease)
        except EtcdAway:
            if self.keep_alive(lease):
                raise

    def under(self, lease: int) -> set[str]:
        """The keys that end with a lease."""
        with self._answering():
            return {key.decode() for key in self._client.get_lease_info(lease).keys}

    @contextmanager
    def lease(self, seconds: int) -> Iterator[Any]:
        """A lease that is kept alive during the block and revoked after it; it expires if this process is killed."""
        with self._answering():
            lease = self._client.lease(seconds)
        done = threading.Event()

        def refresh() -> None:
            while not done.wait(seconds / 3):
                # Away now, etcd may be back before the lease ends; a lease that it forgot stays forgotten.
                with suppress(grpc.RpcError, etcd3.exceptions.Etcd3Exception):
                    lease.refresh()

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            done.set()
            # It ends by itself within `seconds`, and the block's own failure matters more.
            with suppress(EtcdAway), self._answering():
                lease.revoke()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except etcd3.exceptions.ConnectionTimeoutError as error:
            raise self._away("no answer in time") from error
        except grpc.RpcError as error:
            if "database space exceeded" in (error.details() or ""):
                raise EtcdAway(
                    f"etcd at {self._address} cannot write: its database is full",
                    advice='Ask the operator to free space: docs/disk.md, "etcd is full".',
                ) from error
            raise self._away(_reason(error)) from error
        except etcd3.exceptions.Etcd3Exception as error:
            raise self._away(str(error) or type(error).__name__) from error
        except ValueError as error:
            if "Cannot invoke RPC" not in str(error):  # as gRPC says of a channel that another thread has closed
                raise
            raise self._away("the connection is closed") from error

    def _away(self, reason: str) -> EtcdAway:
        return EtcdAway(
            f"etcd at {self._address} does not answer ({reason})",
            advice="`nap status` shows what is down; on a single machine `nap up` starts it. Then push again.",
        )


@contextmanager
def connect(settings: EtcdSettings) -> Iterator[Etcd]:
    """An `Etcd` for the block."""
    etcd = Etcd(settings)
    try:
        yield etcd
    finally:
        etcd.close()


def _target(address: EtcdAddress) -> dict[str, Any]:
    """Return the address for the library, which joins `host:port`; gRPC's name of a unix socket is `unix:/path`."""
    if address.socket:
        return {"host": "unix", "port": address.removeprefix("unix://")}
    return {"host": address.host, "port": address.port}


def _reason(error: grpc.RpcError) -> str:
    code = error.code()
    return "no answer in time" if code == grpc.StatusCode.DEADLINE_EXCEEDED else str(code.name).lower()


def _decoded(value: bytes) -> Any:
    """Decode a value from JSON; return the bytes if it is not JSON, and so not nap's."""
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return value
