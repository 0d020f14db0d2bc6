"""Every example of docs/day-two.md, one after another, on an app that has the releases they speak of."""

from pathlib import Path

import pytest

from tests.examples import examples
from tests.fleet_apps import pushed
from tests.machine import HTTPD, Nap, Pusher

pytestmark = pytest.mark.machine


def test_every_example_works(nap: Nap, tmp_path: Path) -> None:
    pusher = Pusher(nap, "hello", tmp_path)
    for page in ("one", "two", "three"):
        pusher.commit(Dockerfile=HTTPD, index_html=page)
        pushed(pusher)
    tried = examples("day-two.md")
    said = {" ".join(words): nap.run(*words).stdout for words in tried}
    assert len(said) == 16
    assert "hello v4 is live" in said["rollback hello"]
    assert said["config:get hello GREETING"] == "hello\n"
    assert "web.2" in said["ps:scale hello web=2"]
    assert "hello is gone" in said["apps:destroy hello --confirm hello"]
