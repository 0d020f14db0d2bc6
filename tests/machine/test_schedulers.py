"""The scheduler null builds and records releases, and runs nothing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh_nap
from tests.nap import Nap, Pusher

WORKER = "FROM nap/busybox\nCOPY . /app\n"


@pytest.fixture
def nothing_runs(nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap whose scheduler is null, with the engine of the shared one."""
    own = fresh_nap(short_folder / "null", NAP_ENGINE_URL=nap.engine_url, NAP_SCHEDULER="null")
    own.run("up")
    yield own
    own.run("down")
    shutil.rmtree(own.folder)


def test_null_builds_pushes_and_records_a_release_and_runs_nothing(nothing_runs: Nap, tmp_path: Path) -> None:
    nap, pusher = nothing_runs, Pusher(nothing_runs, "paper", tmp_path)
    pusher.commit(Dockerfile=WORKER, Procfile="web: sh -c 'echo it runs'\nrelease: exit 1\n")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert re.search(r"=====> paper v1 is released \(\d+\.\d s\)", pushed.text)
    (image,) = re.findall(r"Image: (\S+@sha256:[0-9a-f]{64})", pushed.text)
    assert nap.docker("pull", "--quiet", image).strip() == image
    assert nap.containers("paper") == []
    assert "scheduler" not in nap.run("status").stdout
    assert nap.run("ps", "paper").stdout.splitlines()[-1] == (
        "paper is released, and nap runs nothing here. Its image: releases:info paper"
    )
    assert image in nap.run("releases:info", "paper").stdout
    assert nap.run("logs", "paper", ok=False).stderr.startswith(" !     nap runs no instance of paper")

    pusher.commit(index_html="two")
    assert "v2 is released" in pusher.push().text
    assert nap.run("rollback", "paper").returncode == 0
    assert "v3" in nap.run("releases", "paper").stdout
    doctor = nap.run("doctor", ok=False)
    assert doctor.returncode == 0, doctor.stdout
    assert nap.run("apps:destroy", "paper", "--confirm", "paper").returncode == 0
