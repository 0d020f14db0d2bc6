"""locks/ pins all that is installed, each version with the hashes of its files, on every machine that nap runs on."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.nap import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = [*PROJECT["build-system"]["requires"], *PROJECT["dependency-groups"]["build"]]
NAP = PROJECT["project"]["dependencies"]
TEST = [*NAP, *PROJECT["project"]["optional-dependencies"]["test"]]
LOCK = PROJECT["dependency-groups"]["lock"]
LOCKS = {"build": BUILD, "nap": NAP, "test": TEST, "lock": LOCK}

MACHINES = list(itertools.product(("x86_64", "aarch64"), ("3.11", "3.12", "3.13")))


def environment(machine: str, python: str) -> dict[str, str]:
    """What markers see there (PEP 508)."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": "",
    }


def entries(name: str) -> Iterator[tuple[Requirement, str]]:
    """Each requirement of a lock, with its hashes."""
    lines = (ROOT / "locks" / f"{name}.txt").read_text().replace("\\\n", "").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            asked, _, hashes = line.partition(" --hash=")
            yield Requirement(asked.strip()), f"--hash={hashes}"


def missing(name: str, asked: list[str], where: dict[str, str]) -> list[str]:
    """What these requirements lead to there, and the lock does not pin."""
    pins = {
        canonicalize_name(pin.name): pin for pin, _ in entries(name) if not pin.marker or pin.marker.evaluate(where)
    }
    found, seen, left = [], set(), [(Requirement(each), "") for each in asked]
    while left:
        wanted, extra = left.pop()
        if (str(wanted), extra) in seen or (wanted.marker and not wanted.marker.evaluate({**where, "extra": extra})):
            continue
        seen.add((str(wanted), extra))
        pin = pins.get(canonicalize_name(wanted.name))
        version = str(pin.specifier).removeprefix("==") if pin else ""
        if not pin or not wanted.specifier.contains(version, prereleases=True):
            found.append(str(wanted))
            continue
        try:
            there = distribution(wanted.name)
        except PackageNotFoundError:  # only `make lock` installs it
            continue
        if there.version == version:
            left += [(Requirement(n), each) for n in there.requires or [] for each in ("", *sorted(wanted.extras))]
    return sorted(found)


@pytest.mark.parametrize("machine, python", MACHINES)
@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_is_whole(name: str, machine: str, python: str) -> None:
    lack = missing(name, LOCKS[name], environment(machine, python))
    assert not lack, f"locks/{name}.txt does not pin {', '.join(lack)}: run make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_each_version_has_the_hashes_of_its_files(name: str) -> None:
    for pin, hashes in entries(name):
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert not pin.url, pin
        assert re.fullmatch(r"(--hash=sha256:[0-9a-f]{64}( +|$))+", hashes), pin


def test_a_lock_that_lacks_something_is_told() -> None:
    where = environment("x86_64", "3.11")
    assert missing(
        "nap", ["click>=8.1", "click>=1000", "nowhere", "nowhere-either ; sys_platform == 'win32'"], where
    ) == [
        "click>=1000",
        "nowhere",
    ]


def test_all_locks_pin_the_same() -> None:
    versions: dict[str, set[str]] = {}
    for pin in (pin for name in LOCKS for pin, _ in entries(name)):
        versions.setdefault(pin.name, set()).add(str(pin.specifier))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
