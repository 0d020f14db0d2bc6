"""The control group that bounds a build's processes, of both versions; real ones are in test_neighbours.py."""

from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import BuildSettings
from nap_receiver.engine import control_group
from nap_receiver.engine.control_group import bound_buildkit, bounded_group, forget_groups


@pytest.fixture
def version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy as version 2 has it, whose root gives its children no controller yet."""
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    return tmp_path


def test_version_2_has_one_folder_and_its_parent_gives_it_the_controller(version_2: Path) -> None:
    with bounded_group("hello", "1a2b", "cgroupfs", 50) as group:
        assert group.startswith("/nap1a2bbuild")
        assert (version_2 / group[1:] / "pids.max").read_text() == "50"
        assert (version_2 / "cgroup.subtree_control").read_text() == "+pids"
        (version_2 / group[1:] / "pids.max").unlink()  # the kernel's files go with their folder
    assert not (version_2 / group[1:]).exists()


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    for controller in ("pids", "memory"):
        (tmp_path / controller).mkdir()
    with bounded_group("hello", "1a2b", "cgroupfs", 50) as group:
        assert (tmp_path / "pids" / group[1:] / "pids.max").read_text() == "50"
        (tmp_path / "pids" / group[1:] / "pids.max").unlink()
        (tmp_path / "memory" / group[1:]).mkdir()  # as the engine does
    assert not list(tmp_path.glob(f"*/{group[1:]}"))


def test_each_app_of_each_nap_has_its_own(version_2: Path) -> None:
    names = set()
    for machine in ("1a2b", "3c4d"):
        for app in ("hello", "shop"):
            with bounded_group(app, machine, "cgroupfs", 50) as group:
                names.add(group)
                (version_2 / group[1:] / "pids.max").unlink()
    assert len(names) == 4
    assert not any("shop" in name for name in names)


def test_where_none_can_be_made_the_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    with (
        pytest.raises(NapError, match="hello: the number of processes of its build cannot be limited"),
        bounded_group("hello", "1a2b", "cgroupfs", 50),
    ):
        raise AssertionError("it is not built")


def buildkit_files(top: Path, *names: str) -> None:
    """The files that the kernel has in BuildKit's folder."""
    for name in names:
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


def test_buildkits_builds_are_bounded_together_with_version_2(version_2: Path) -> None:
    folder = version_2 / "nap1a2b" / "buildkit"
    buildkit_files(folder, "pids.max", "memory.max", "memory.swap.max", "cpu.max")
    buildkit_files(version_2 / "nap1a2b", "cgroup.subtree_control")
    bound_buildkit("hello", "1a2b", BuildSettings(memory=1000, cpus=0.5, pids=50))
    kept = {each.name: each.read_text() for each in folder.iterdir()}
    assert kept == {"pids.max": "50", "memory.max": "1000", "memory.swap.max": "0", "cpu.max": "50000 100000"}
    assert (version_2 / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (version_2 / "nap1a2b" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    bound_buildkit("hello", "1a2b", BuildSettings(memory=0, cpus=0, pids=0))
    kept = {each.name: each.read_text() for each in folder.iterdir()}
    assert kept == {"pids.max": "max", "memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000"}


def test_buildkits_builds_are_bounded_together_with_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_group, "_ROOT", tmp_path)
    name = "nap1a2b/buildkit"
    buildkit_files(tmp_path / "cpu" / name, "cpu.cfs_period_us", "cpu.cfs_quota_us")
    buildkit_files(tmp_path / "memory" / name, "memory.limit_in_bytes")  # a kernel that does not count swap
    bound_buildkit("hello", "1a2b", BuildSettings(memory=1000, cpus=0.5, pids=50))  # and none that counts processes
    assert (tmp_path / "cpu" / name / "cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "memory" / name / "memory.limit_in_bytes").read_text() == "1000"
    forget_groups("9f9f")
    assert (tmp_path / "cpu" / name).exists(), "another nap's"


def test_what_cannot_be_bounded_is_not_built(version_2: Path) -> None:
    (version_2 / "nap1a2b").write_text("no folder")
    with pytest.raises(NapError, match="hello: memory, CPU and processes of its build cannot be limited: "):
        bound_buildkit("hello", "1a2b", BuildSettings())
