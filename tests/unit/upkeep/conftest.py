"""A nap in memory for the doctor."""

from pathlib import Path

import pytest

from tests.unit.upkeep.patient import Patient, make_patient


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """A single machine, with which nothing is wrong."""
    return make_patient(tmp_path, monkeypatch)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """A cluster, with which nothing is wrong."""
    return make_patient(tmp_path, monkeypatch, "a cluster")
