"""Jobs that go on by themselves are known by what they work on, for as long as their process lives."""

import os
import signal
from pathlib import Path

import pytest

from nap_receiver.core.jobs import is_at_work, start_job
from nap_receiver.core.paths import State
from tests.nap import eventually

JOB = """
import pathlib, sys, time
state, *subjects = sys.argv[1:]
print("began", *subjects, flush=True)
pathlib.Path(state, "pid").write_text(str(__import__("os").getpid()))
while not pathlib.Path(state, "end").exists():
    time.sleep(0.01)
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    (tmp_path / "job_of_a_test.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return State(tmp_path / "state")


def test_a_job_is_at_work_from_its_start_to_its_end(state: State) -> None:
    assert not is_at_work(state, "prune", "shop")
    start_job(state, "prune", "job_of_a_test", ["shop", "blog"], "pruned.log")
    assert is_at_work(state, "prune", "shop"), "at once, before its program has begun"
    assert is_at_work(state, "prune", "blog")
    assert not is_at_work(state, "prune", "wiki")
    assert not is_at_work(state, "stop", "shop")
    start_job(state, "prune", "job_of_a_test", ["wiki"], "pruned.log")
    assert is_at_work(state, "prune", "wiki")
    (state.root / "end").touch()
    eventually(lambda: not is_at_work(state, "prune", "shop"), 10, "it has ended")
    eventually(lambda: not is_at_work(state, "prune", "wiki"), 10, "this one too")
    assert list((state.run / "jobs").iterdir()) == []
    assert "began shop blog" in (state.deploy_logs / "pruned.log").read_text()


def test_a_job_that_is_killed_is_no_longer_at_work(state: State) -> None:
    start_job(state, "prune", "job_of_a_test", ["shop"], "pruned.log")
    pid = state.root / "pid"
    eventually(lambda: pid.exists() and pid.read_text(), 10, "it has begun")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    eventually(lambda: not is_at_work(state, "prune", "shop"), 10, "its lock has ended with it")
