"""The examples of a page of the documentation."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def examples(page: str) -> list[list[str]]:
    """The words of each `$ nap …` line in the page's console blocks, in their order, without `nap`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [
        line.removeprefix("$ nap ") for block in blocks for line in block.splitlines() if line.startswith("$ nap ")
    ]
    return [shlex.split(line) for line in lines]
