"""Entry points and files that an earlier version of nap wrote down are still there."""

import importlib.util
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from nap_receiver.core.installed import digest_of_code
from tests.nap import ROOT
from tests.upgrade.restore import VERSIONS, texts


def named(version: str, pattern: str) -> set[Any]:
    """What this pattern finds in a record: texts or, with more than one group, tuples of them."""
    return {name for _, text in texts(version) for name in re.findall(pattern, text)}


@pytest.mark.parametrize("version", VERSIONS)
def test_modules_named_in_an_old_state_can_still_be_run(version: str) -> None:
    modules = named(version, r'-m"?\s+"?(nap_receiver[\w.]*)')
    assert {"nap_receiver.gate", "nap_receiver.router", "nap_receiver.settle"} <= modules or version != "0.1.0"
    for name in modules:
        found = importlib.util.find_spec(name)
        assert found and found.origin, f"python -m {name}"
        assert 'if __name__ == "__main__":' in Path(found.origin).read_text(), f"python -m {name}"
        assert callable(importlib.import_module(name).main), f"python -m {name}"


@pytest.mark.parametrize("version", VERSIONS)
def test_command_that_was_installed_before_finds_its_code(version: str) -> None:
    ((module, function),) = named(version, r"(?m)^from (nap_receiver[\w.]*) import (\w+)$")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_the_checkout_named_in_an_old_state_are_still_there(version: str) -> None:
    files = named(version, r"\{checkout\}/([\w./-]+)")
    assert "unit_templates/announce.sh" in files
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_console_scripts_named_in_an_old_state_are_still_installed(version: str) -> None:
    named_ones = named(version, r"\{scripts\}/(nap[\w-]*)")
    installed = {each.name for each in distribution("nap").entry_points}
    assert named_ones - installed == set()


def test_code_is_told_from_other_code_by_its_digest(tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2"), ("notes", "3")):
        (tmp_path / name).write_text(text)
        digests.add(digest_of_code(tmp_path))
    assert len(digests) == 3, "only modules count"
