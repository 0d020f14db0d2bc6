"""The etcd in memory keeps the contract."""

import pytest

from tests.etcd_contract import EtcdContract
from tests.fakes import FakeEtcd


class TestFakeEtcd(EtcdContract):
    @pytest.fixture
    def store(self) -> FakeEtcd:
        return FakeEtcd()
