"""What nap relies on in etcd. The same tests run on the real one and on the one in memory that fast tests use."""

import threading
import time

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.store.etcd import LARGEST_BYTES, Etcd


class EtcdContract:
    """The tests; a subclass has a fixture `store`, an etcd that has nothing below /contract/."""

    def test_a_value_is_read_as_it_was_written(self, store: Etcd) -> None:
        assert store.get("/contract/a") is None
        revision = store.put("/contract/a", {"b": [1, "ü", None]})
        entry = store.get("/contract/a")
        assert entry
        assert (entry.key, entry.value, entry.revision, entry.lease) == (
            "/contract/a",
            {"b": [1, "ü", None]},
            revision,
            0,
        )
        store.delete("/contract/a")
        assert store.get("/contract/a") is None

    def test_a_listing_is_ordered_and_of_one_revision(self, store: Etcd) -> None:
        for key in ("b", "a/2", "a/1", "ab"):
            store.put(f"/contract/{key}", key)
        listing = store.below("/contract/a")
        assert [entry.value for entry in listing.entries] == ["a/1", "a/2", "ab"]
        assert listing.revision == store.revision()
        assert store.keys_below("/contract/a/") == ["/contract/a/1", "/contract/a/2"]
        store.delete_below("/contract/a", but=["/contract/ab"])
        assert store.keys_below("/contract/") == ["/contract/ab", "/contract/b"]

    def test_a_key_is_created_once(self, store: Etcd) -> None:
        assert store.create("/contract/a", 1)
        assert store.create("/contract/a", 2) == 0
        entry = store.get("/contract/a")
        assert entry and entry.value == 1

    def test_a_write_happens_as_a_whole_or_not_at_all(self, store: Etcd) -> None:
        first = store.put("/contract/a", 1)
        assert store.write({"/contract/a": 2, "/contract/b": 2}, unchanged={"/contract/a": first, "/contract/b": 0})
        assert store.write({"/contract/a": 3, "/contract/b": None}, unchanged={"/contract/a": first}) == 0
        assert [entry.value for entry in store.below("/contract/").entries] == [2, 2]
        with pytest.raises(NapError, match="cannot be written"):
            store.put("/contract/a", "x" * (LARGEST_BYTES + 1))

    def test_changes_are_seen_from_a_revision_on_in_their_order(self, store: Etcd) -> None:
        before = store.put("/contract/a", 0)
        store.put("/contract/a", 1)
        store.put("/elsewhere", 1)
        threading.Timer(0.1, store.delete, ["/contract/a"]).start()
        watch = store.changes(["/contract/", "/nothing/"], before, 10)
        assert [(entry.key, entry.value) for entry in (next(watch), next(watch))] == [
            ("/contract/a", 1),
            ("/contract/a", None),
        ]
        watch.close()  # type: ignore[attr-defined]

    def test_a_watch_ends_after_its_time(self, store: Etcd) -> None:
        began = time.monotonic()
        assert list(store.changes(["/contract/"], store.revision(), 0.3)) == []
        assert 0.2 < time.monotonic() - began < 10

    def test_what_is_leased_goes_with_the_lease(self, store: Etcd) -> None:
        with store.lease(5) as lease:
            store.put("/contract/a", 1, lease=lease)
            store.put("/contract/b", 1)
            entry = store.get("/contract/a")
            assert entry and entry.lease == lease.id
            store.put("/contract/c", 1, lease=entry.lease)
        assert store.keys_below("/contract/") == ["/contract/b"]
