"""Links between the pages of the documentation, and the pages that nap's messages name."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.examples import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_relative_link_has_a_page_and_a_heading() -> None:
    assert [
        f"{page.relative_to(ROOT)}: {link}" for page in PAGES for link in links(page) if not leads_somewhere(page, link)
    ] == []


def test_every_page_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page not in linked] == []


def test_every_page_that_the_code_names_exists() -> None:
    named = re.compile(r'(?<!git-lfs, )(docs/[\w/-]+\.md)(?:, "([^"]+)")?')
    for source in (ROOT / "nap_receiver").rglob("*.py"):
        for name, heading in named.findall(source.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), source
            assert not heading or slug(heading) in headings(ROOT / name), (source, heading)


def text(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[str]:
    """The targets of links, without those to other sites."""
    yield from (link for link in re.findall(r"\]\(([^)\s]+)\)", text(page)) if "://" not in link)


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not heading or heading in headings(target))


def headings(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)}


def slug(heading: str) -> str:
    """The anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
