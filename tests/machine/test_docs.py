"""What the documentation shows is so: each example works, and each listing has the shape that it says."""

import json
import re

from tests.examples import ROOT, examples
from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pusher

PAGES = ("releases", "config", "processes", "ports", "run", "builds", "router", "apps", "json")
"""In this order: each finds the app as the one before has left it."""


def shapes() -> dict[str, list[str]]:
    """The names of the objects that each listing has with `--json`, by the command."""
    rows = re.findall(r"^\| `([a-z:]+(?: APP)?)` \| (.*) \|$", (ROOT / "docs" / "json.md").read_text(), re.MULTILINE)
    return {command: [item.partition("`")[2].partition("`")[0] for item in cell.split("; ")] for command, cell in rows}


def test_every_example_works_and_every_listing_has_its_shape(nap: Nap, hello: Pusher) -> None:
    for page in ("one", "two", "three"):
        hello.commit(Dockerfile=HTTPD, index_html=page)
        pushed(hello)
    for command, names in shapes().items():
        said = json.loads(nap.run(*command.replace("APP", "hello").split(), "--json", ok=False).stdout)
        for each in said if isinstance(said, list) else [said]:
            assert list(each) == names, command
    tried = {page: examples(f"{page}.md") for page in PAGES}
    assert all(tried.values())
    said = {}
    for words in (words for page in PAGES for words in tried[page]):
        said[" ".join(words)] = nap.run(*words).stdout
    assert "hello v4 is live" in said["rollback hello"]
    assert said["config:get hello GREETING"] == "hello\n"
    assert "web.2" in said["ps:scale hello web=2"]
    assert "hello is now named greeter" in said["apps:rename hello greeter"]
    assert "greeter is destroyed" in said["apps:destroy greeter --confirm greeter"]


def test_every_listing_is_documented() -> None:
    listings = re.findall(
        r'^@command\("([a-z:]+)".*?\)\n(?:@.*\n)*?@json_option',
        "\n".join(path.read_text() for path in (ROOT / "nap_receiver" / "frontends" / "commands").glob("*.py")),
        re.MULTILINE,
    )
    assert {command.removesuffix(" APP") for command in shapes()} == set(listings)
