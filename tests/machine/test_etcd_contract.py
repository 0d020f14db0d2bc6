"""The real etcd keeps the contract."""

import pytest

from nap_receiver.store.etcd import Etcd
from tests.etcd_contract import EtcdContract


class TestEtcd(EtcdContract):
    @pytest.fixture
    def store(self, etcd: Etcd) -> Etcd:
        etcd.delete_below("/contract/")
        return etcd
