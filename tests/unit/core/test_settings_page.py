"""The settings' page is what the code makes."""

from nap_receiver.core.settings import fields
from nap_receiver.core.settings_page import page
from tests.nap import ROOT


def test_the_page_is_up_to_date() -> None:
    kept = ROOT / "docs" / "settings.md"
    assert kept.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_page_has_every_setting() -> None:
    for field in fields():
        assert f"`{field.key}` | `{field.variable}` |" in page()
