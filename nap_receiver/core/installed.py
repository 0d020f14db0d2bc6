"""Where the installed programs are that nap runs."""

import os
import shutil
import sysconfig


def found_program(program: str) -> str | None:
    installed_with_nap = [sysconfig.get_path("scripts")] if program == "caddy" else []
    return shutil.which(program, path=":".join([*installed_with_nap, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def path_of(program: str) -> str:
    """The path of an installed program."""
    return found_program(program) or program
