"""Root's calls of nap run as the account that owns the state directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534

_BECOME = """
import os, sys
from pathlib import Path
from nap_receiver.account import become_owner
from nap_receiver.errors import NapError
from nap_receiver.state import State
try:
    become_owner(State(Path(sys.argv[1])))
except NapError as error:
    print(error)
print(os.getresuid(), os.getresgid(), os.getgroups() if os.geteuid() else "root", os.environ.get("USER"))
"""


def become(state: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _BECOME, str(state)], text=True, capture_output=True, check=True, env={"USER": "caller"}
    )
    return done.stdout


def test_a_state_directory_of_ones_own_or_none_changes_nothing(tmp_path: Path) -> None:
    before = f"{os.getresuid()} {os.getresgid()} {'root' if os.geteuid() == 0 else os.getgroups()} caller\n"
    assert become(tmp_path) == before
    assert become(tmp_path / "not there") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_root_becomes_the_owner_of_the_state_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    said = become(tmp_path).splitlines()
    assert said[-1] == f"({NOBODY}, {NOBODY}, {NOBODY}) ({NOBODY}, {NOBODY}, {NOBODY}) [{NOBODY}] nobody"
    for refusal in said[:-1]:  # where it cannot run this Python
        assert refusal.startswith(f"nobody, to which {tmp_path} belongs, cannot read ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_state_directory_of_nobodys_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54321)
    assert become(tmp_path).startswith(f"{tmp_path} belongs to 54321, which is no account of this machine\n")
