"""The map of the code says what the code says."""

from tests.architecture import PACKAGE, PAGE, folders, page


def test_the_map_is_made_from_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs writes it"


def test_every_folder_has_its_layer() -> None:
    assert sorted(folders()) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
