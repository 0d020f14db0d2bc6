"""The map in docs/architecture.md, made from the code: `python -m tests.architecture` prints it."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "nap_receiver"

_TOP = """\
# Architecture

`nap_receiver/` has one folder for each of its parts. A folder imports only folders below it on this page;
`make lint` checks that. `make docs` makes this page from the code.
"""
_ENTRIES = """
Five modules are beside the folders: `cli`, `gate`, `hook`, `settle` and `router`. Files that nap 0.1 wrote outside the
project contain their names. Newer files contain the console scripts of `pyproject.toml` instead.
"""


def page() -> str:
    """The whole page."""
    return _TOP + "".join(_folder(name) for name in folders()) + _ENTRIES


def folders() -> Iterator[str]:
    """The folders from top to bottom, as the import contract orders them."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for layer in contract["layers"]:
        yield from layer.split(" | ")


def _folder(name: str) -> str:
    folder = PACKAGE / name
    rows = [f"| `{path.relative_to(folder).with_suffix('')}` | {_first_line(path)} |" for path in _modules(folder)]
    about = " ".join(_docstring(folder / "__init__.py").split())
    return "\n".join(["", f"## {name}", "", about, "", "| module | what it is |", "|---|---|", *rows, ""])


def _modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]


def _first_line(path: Path) -> str:
    return _docstring(path).splitlines()[0].replace("|", "\\|")


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    print(page(), end="")
