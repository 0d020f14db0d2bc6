"""A connection to etcd that one thread closes while another asks, as the watch over a deploy's lock does at its end."""

import pytest

from nap_receiver.core.settings import EtcdSettings
from nap_receiver.store.etcd import Etcd, EtcdAway


def test_a_closed_connection_is_an_etcd_that_does_not_answer() -> None:
    etcd = Etcd(EtcdSettings())
    etcd.close()
    for ask in (lambda: etcd.get("/x"), etcd.revision, lambda: next(etcd.changes(["/x"], 1, 1))):
        with pytest.raises(EtcdAway, match="the connection is closed"):
            ask()
