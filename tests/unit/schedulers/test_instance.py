"""`unit_templates/local/instance.sh`, with stand-ins for the programs that it calls."""

import os
import subprocess
from pathlib import Path

import pytest

from nap_receiver.core.templates import TEMPLATES

DOCKER = """\
echo "$*" >>"$CALLS"
case $1 in
    inspect) echo "$MISSING" >&2; exit 1 ;;
esac
"""


@pytest.mark.parametrize("missing", ["Error: No such object: hello", "error: no such object: hello"])
def test_container_that_is_missing_is_created(missing: str, tmp_path: Path) -> None:
    """Docker 29 begins its message with small letters."""
    programs = {
        "docker": DOCKER,
        "etcdctl": "echo '{}'",
        "curl": 'cat >/dev/null; echo \'{"Id":"ab12","Warnings":[]} 201\'',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "MISSING": missing,
        **{f"NAP_{name}": "hello" for name in ("BODY", "BODY_KEY", "CONTAINER", "IMAGE", "NETWORK", "BRIDGE")},
    }
    done = subprocess.run(["sh", str(TEMPLATES / "local/instance.sh")], env=environment, input=b"", timeout=20)
    assert "start --attach ab12" in calls.read_text().splitlines()
    assert done.returncode == 0
