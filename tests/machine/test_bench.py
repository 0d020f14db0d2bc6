"""A benchmark that is told to end leaves nothing running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nap import ROOT, eventually, processes


@pytest.mark.parametrize("program", ["bench.py", "router_bench.py"])
def test_a_benchmark_that_is_terminated_takes_its_nap_down(program: str, short_folder: Path) -> None:
    folder = short_folder / program.removesuffix(".py")
    folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen([sys.executable, str(ROOT / "tests" / program)], cwd=ROOT, env=environment) as bench:
        eventually(lambda: list(folder.glob("nap-*/state/run/supervisor.sock")), 60, "its nap comes up")
        bench.terminate()
        assert bench.wait(timeout=60) == 128 + 15
    assert list(folder.iterdir()) == []
    assert [words for _, _, words in processes() if any(str(folder) in word for word in words)] == []
