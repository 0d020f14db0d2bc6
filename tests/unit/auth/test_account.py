"""Root's calls of nap run as the account that owns the state directory."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nap_receiver.auth.privileges import become_owner
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from tests.nap import ROOT

NOBODY = 65534

_BECOME = """
import os, sys
from pathlib import Path
from nap_receiver.auth.privileges import become_owner
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from tests.nap import ROOT
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
        assert refusal.startswith(f"account nobody, the owner of {tmp_path}, cannot read ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_state_directory_of_nobodys_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54321)
    assert become(tmp_path).startswith(f"{tmp_path} belongs to user id 54321, which has no account on this machine\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_a_third_account_is_refused_in_a_sentence() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        state = Path(folder, "state")
        state.mkdir()
        os.chown(state, 54321, 54321)
        with as_nobody(), pytest.raises(NapError) as refusal:
            become_owner(State(state))
        Path(folder).chmod(0o700)
        with as_nobody(), pytest.raises(NapError, match=f"^{state}: Permission denied$"):
            become_owner(State(state))
    assert str(refusal.value) == f"{state} belongs to 54321; nobody cannot use it"
    assert refusal.value.advice == ["Run the command as that account, or as root: sudo nap …"]


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_hook_under_another_account_deploys_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 54321, 54321)
    bare = tmp_path / "shop.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    done = subprocess.run(
        [str(ROOT / "hooks/post-receive")],
        cwd=bare,
        env=os.environ | {"GIT_DIR": ".", "NAP_STATE": str(state)},
        input=f"{'0' * 40} {'1' * 40} refs/heads/master\n",
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f" !     {state} belongs to 54321; root cannot use it",
        " !     Nothing was deployed. That account must receive the push; or push to nap's own gate.",
    ]
    assert list(state.iterdir()) == []
