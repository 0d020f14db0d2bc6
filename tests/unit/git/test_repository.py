"""No path leads out of the repositories. What else the ssh gate understands, and what not, is in `test_hostile`."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.git.repository import repository_at

STATE = State(Path("/state"))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("hello", "hello.git"),
        ("hello.git", "hello.git"),
        ("/hello.git", "hello.git"),
        ("~/hello", "hello.git"),
        ("/~/hello", "hello.git"),
        ("~ann/hello", "~ann/hello.git"),
        ("hello/", "hello.git"),
        ("team/shop", "team/shop.git"),
        ("/team/./shop.git/", "team/shop.git"),
    ],
)
def test_a_path_has_its_place_below_the_repositories(path: str, place: str) -> None:
    assert repository_at(path, STATE) == Path("/state/repositories", place)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        ".",
        "..",
        "/..",
        "../hello",
        "hello/..",
        "team/../../hello",
        "//hello",
        "///hello",
        "//srv/secret.git",
        "~//etc/hello",
        "/~//etc/hello",
        ".git",
        "hello/.git",
        ".hidden",
        "team/.creating-x/y",
        "-hello",
        "team/--upload-pack=x",
        "a\nb",
        "a\x1b[31mb",
        "a\u202eb",
    ],
)
def test_a_path_without_a_place_is_refused(path: str) -> None:
    with pytest.raises(NapError, match="is not a name of an app") as error:
        repository_at(path, STATE)
    assert error.value.advice
    assert str(error.value).isprintable()


@given(
    st.lists(st.sampled_from(["/", ".", "..", "~", ".git", "a", "-", "\n", "\\"]) | st.text(max_size=3)).map("".join)
)
def test_no_path_leads_out_of_the_repositories(path: str) -> None:
    try:
        place = repository_at(path, STATE)
    except NapError:
        return
    assert place.is_relative_to(STATE.repositories)
    assert place != STATE.repositories
    assert ".." not in place.parts
    assert place.name.endswith(".git")


def test_a_link_among_the_repositories_is_not_followed(tmp_path: Path) -> None:
    state = State(tmp_path)
    (tmp_path / "elsewhere" / "hello.git").mkdir(parents=True)
    state.repositories.symlink_to(tmp_path / "elsewhere")  # the operator's own, of all of them
    assert repository_at("hello", state) == state.repositories / "hello.git"
    (tmp_path / "elsewhere" / "link.git").symlink_to(tmp_path / "elsewhere" / "hello.git")
    (tmp_path / "elsewhere" / "team").symlink_to(tmp_path)
    for path in ("link", "team/hello", "team/elsewhere/hello"):
        with pytest.raises(NapError, match="is a symbolic link on this host"):
            repository_at(path, state)
