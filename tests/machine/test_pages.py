"""Whatever amount there is in etcd, it is read: in pages, all of one moment. On an etcd of its own."""

import json

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.store import etcdctl
from nap_receiver.store.etcd import LARGEST_BYTES, Etcd, connect
from nap_receiver.store.etcdctl import Kept, Reader, read
from tests.nap import fill

MANY = 3000
"""More keys than fit into one page."""


@pytest.fixture(scope="module", autouse=True)
def _filled(places: EtcdSettings) -> None:
    """12 MB below `/large/`, and many keys below `/many/`."""
    with connect(places) as etcd:
        fill(etcd, "/many", MANY, "x")
        fill(etcd, "/large", 4, "x" * 1_000_000)
        fill(etcd, "/large/inner", 80, "x" * 100_000)


def readers(places: EtcdSettings, etcd: Etcd) -> list[Reader]:
    return [etcd, Kept(places, ["/large/", "/many/"])]


def test_any_number_of_bytes_and_of_keys_is_read(places: EtcdSettings, etcd: Etcd) -> None:
    for reader in readers(places, etcd):
        large = reader.below("/large/").entries
        assert sum(len(entry.value) for entry in large) == 12_000_000
        assert [entry.key for entry in large] == sorted(entry.key for entry in large)
        assert [entry.key for entry in reader.below("/many/").entries] == [f"/many/{i:08}" for i in range(MANY)]
    assert etcd.keys_below("/many/") == etcdctl.keys_below(places, "/many/") == [f"/many/{i:08}" for i in range(MANY)]
    assert len(read(places, ["/large/"])[0]) == 84


def test_more_keys_are_asked_for_than_fit_into_a_transaction(places: EtcdSettings) -> None:
    wanted = [f"/many/{i:08}" for i in range(300)]
    found = Kept(places, [*wanted, "/many/", "/none/"])
    assert len(found.keys) == MANY
    assert found.get(wanted[-1]) is not None


def test_all_pages_are_of_one_moment(places: EtcdSettings, etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(etcd, "/moment", MANY, "before")
    pages = etcd._pages("/moment/")
    seen = [kv.value for kv in next(pages).kvs]
    fill(etcd, "/moment", MANY, "after")
    etcd.delete(f"/moment/{MANY - 1:08}")
    seen += [kv.value for page in pages for kv in page.kvs]
    assert seen == [b'"before"'] * MANY

    answer, changed = etcdctl._answer, iter([True])

    def changing(*told: object) -> object:
        answered = answer(*told)  # type: ignore[arg-type]
        if next(changed, False):
            etcd.delete_below("/moment/")
        return answered

    fill(etcd, "/moment", MANY, "before")
    monkeypatch.setattr(etcdctl, "_answer", changing)
    assert len(Kept(places, ["/moment/"]).keys) == MANY
    assert not etcd.below("/moment/").entries


def test_any_number_of_keys_is_deleted_but_those_that_are_spared(etcd: Etcd) -> None:
    fill(etcd, "/doomed", MANY, "x")
    fill(etcd, "/doomed/large", 8, "x" * 1_000_000)
    etcd.put("/doomed-not", 1)
    spared = "/doomed/00001234"
    etcd.delete_below("/doomed/", {spared})
    assert etcd.keys_below("/doomed") == ["/doomed-not", spared]


def test_any_amount_of_changes_is_followed(etcd: Etcd) -> None:
    since = etcd.revision()
    fill(etcd, "/watched", 12, "x" * 1_000_000)
    seen = []
    for change in etcd.changes(["/watched/"], since, 5):
        seen.append(change.key)
        if len(seen) == 12:
            break
    assert seen == [f"/watched/{i:08}" for i in range(12)]


def test_a_value_that_is_too_large_is_refused_when_it_is_written(etcd: Etcd) -> None:
    fits = "x" * (LARGEST_BYTES - 2)
    assert etcd.put("/value", fits)
    with pytest.raises(NapError) as refused:
        etcd.put("/value", fits + "x")
    assert str(refused.value) == (
        f"/value cannot be written: it has {LARGEST_BYTES + 1} bytes; the limit is {LARGEST_BYTES}"
    )
    with pytest.raises(NapError, match=r"^/b cannot be written"):
        etcd.write({"/a": "x", "/b": fits})
    entry = etcd.get("/value")
    assert entry is not None
    assert entry.value == fits


def test_keys_of_any_bytes_are_paged_through(places: EtcdSettings, etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcdctl, "_KEYS_AT_ONCE", 1)
    names = ['/odd/ "quoted"', "/odd/'", "/odd/\\x41", "/odd/a b", "/odd/ü\n"]
    for name in names:
        etcd.put(name, json.dumps(name))
    assert Kept(places, ["/odd/"]).keys == sorted(names)
