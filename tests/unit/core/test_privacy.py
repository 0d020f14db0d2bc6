"""The state directory is private, and so is each file that a program of nap's writes."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from nap_receiver.core.paths import State
from nap_receiver.core.privacy import close, is_private, umask_of
from tests.open_paths import open_paths


def test_an_open_state_directory_is_closed_with_all_in_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    elsewhere.chmod(0o666)
    state = State(tmp_path / "state")
    for folder in ("repositories/shop.git/objects", "logs/shop", "engine/overlay2", "run/engine"):
        (state.root / folder).mkdir(parents=True)
    for file, mode in {"logs/shop/1.log": 0o666, "repositories/shop.git/HEAD": 0o644, "units/shop.conf": 0o777}.items():
        path = state.root / file
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(mode)
    (state.root / "repositories/link").symlink_to(elsewhere)
    for path in (state.root, *state.root.rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    close(state)
    engines = state.root / "engine", state.run / "engine"
    assert list(open_paths(state.root, engines)) == []
    assert (state.root / "units/shop.conf").stat().st_mode & 0o777 == 0o700
    assert (engines[0] / "overlay2").stat().st_mode & 0o777 == 0o777, "a container sees that mode"
    assert elsewhere.stat().st_mode & 0o777 == 0o666, "a link is not followed"


def test_a_new_state_directory_is_private(tmp_path: Path) -> None:
    state = State(tmp_path / "a" / "b")
    before = os.umask(0)
    try:
        close(state)
    finally:
        os.umask(before)
    assert is_private(state.root)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o775, 0o777])
def test_files_in_somebodys_repository_are_for_whom_it_is(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert 0o777 & ~umask_of(tmp_path) == mode


@pytest.mark.parametrize(
    "program",
    [
        "nap_receiver.frontends.cli",
        "nap_receiver.frontends.gate_session",
        "nap_receiver.frontends.hook",
        "nap_receiver.frontends.gitolite_trigger",
        "nap_receiver.routing.router",
        "nap_receiver.deploy.push_handler",
        "nap_receiver.deploy.image_pruning",
        "nap_receiver.schedulers.fleet",
    ],
)
def test_each_program_first_sees_to_its_umask(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(BaseException):
        pass

    def keep_private() -> None:
        raise Seen

    module = importlib.import_module(program)
    monkeypatch.setattr(module, "keep_private", keep_private)
    monkeypatch.setattr(sys, "argv", [])  # what it would go on with
    with pytest.raises(Seen):
        module.main()
