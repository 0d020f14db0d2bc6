"""Paths of the installed programs that nap runs, and which code of nap is installed."""

import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

from nap_receiver.core.errors import NapError

PACKAGE = Path(__file__).resolve().parent.parent


def found_program(program: str) -> str | None:
    installed_with_nap = [sysconfig.get_path("scripts")] if program == "caddy" else []
    return shutil.which(program, path=":".join([*installed_with_nap, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def path_of(program: str) -> str:
    """Return the path of an installed program."""
    return found_program(program) or program


def script(name: str) -> str:
    """Find one of nap's own console scripts, such as `nap-gate`, for a file that names its path.

    pyproject.toml lists them in `[project.scripts]`. Python puts a script's folder in front of its module path, and
    never the current directory (`sys.path` in Python's documentation). The account that installed nap owns that folder.
    Raises `NapError` where the script is missing.
    """
    folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))]
    for folder in folders:
        if os.access(path := Path(folder, name), os.X_OK):
            return str(path)
    raise NapError(
        f"{name} is not in {folders[0]}: the installation of nap is incomplete, or older than its code",
        advice="Install nap again: make install (in a checkout), or pip install --force-reinstall WHEEL",
    )


def digest_of_code(package: Path = PACKAGE) -> str:
    """Return sixteen hexadecimal digits that differ where nap's own modules differ, by path or by text."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:16]
