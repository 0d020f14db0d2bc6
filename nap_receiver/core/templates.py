"""The templates in `unit_templates/`, and the filters that escape their values."""

from functools import cache
from pathlib import Path

import jinja2

from nap_receiver.core import escape


def _data_folder() -> Path:
    """The folder of `unit_templates/` and `hooks/`: the package where a wheel was installed, else the checkout."""
    package = Path(__file__).resolve().parent.parent
    return package if (package / "unit_templates").is_dir() else package.parent


TEMPLATES = _data_folder() / "unit_templates"

HOOKS = _data_folder() / "hooks"
"""The folder of nap's `post-receive`, which git takes as a `core.hooksPath`."""


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Return the template environment of `folder`, with the filters of `escape`. An unknown name in a template is an
    error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # units are not HTML; each value goes through a filter of its place
    )
    made.filters.update(
        systemd_word=escape.systemd_word,
        systemd_script=escape.systemd_script,
        systemd_environment=escape.systemd_environment,
        systemd_text=escape.systemd_text,
        supervisor_word=escape.supervisor_word,
        supervisor_value=escape.supervisor_value,
        sshd_word=escape.sshd_word,
        git_value=escape.git_value,
        perl_word=escape.perl_word,
        sh_word=escape.sh_word,
    )
    made.globals["program"] = _program
    return made


def _program(name: str) -> str:
    """The text of a shell program that lies beside the templates, without its comments."""
    lines = (TEMPLATES / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"
