"""What the ssh gate understands, and that no path leads out of the repositories."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_receiver.errors import NapError
from nap_receiver.gate import _repository, _understood
from nap_receiver.state import State

STATE = State(Path("/state"))


@pytest.mark.parametrize(
    ("asked", "understood"),
    [
        ("git-receive-pack 'hello.git'", ("git-receive-pack", "hello.git")),
        ("git-upload-pack '/team/shop'", ("git-upload-pack", "/team/shop")),
        ("git-upload-archive hello", ("git-upload-archive", "hello")),
        ("git receive-pack 'hello'", ("git-receive-pack", "hello")),
        ("git-receive-pack 'it'\\''s'", ("git-receive-pack", "it's")),
        ("git-receive-pack ''", ("git-receive-pack", "")),
    ],
)
def test_what_git_asks_for_is_understood(asked: str, understood: tuple[str, str]) -> None:
    assert _understood(asked, "ann") == understood


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "sh",
        "scp -t /etc",
        "git",
        "git-receive-pack",
        "git-receive-pack 'a' 'b'",
        "git-receive-pack 'a'; sh",
        "git-receive-pack --help 'a'",
        "git-shell -c 'git-receive-pack a'",
        "git push",
        "/usr/bin/git-receive-pack 'a'",
        "git-receive-pack 'unclosed",
        "git git-receive-pack 'a'",
        "GIT-RECEIVE-PACK 'a'",
    ],
)
def test_all_else_is_refused_by_name(asked: str) -> None:
    with pytest.raises(NapError, match=r"^Hello ann\. This is nap: it takes git pushes, and has no shell$") as error:
        _understood(asked, "ann")
    assert error.value.advice


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
    assert _repository(path, STATE) == Path("/state/repositories", place)


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
    with pytest.raises(NapError, match="is no name of an app") as error:
        _repository(path, STATE)
    assert error.value.advice
    assert str(error.value).isprintable()


@given(
    st.lists(st.sampled_from(["/", ".", "..", "~", ".git", "a", "-", "\n", "\\"]) | st.text(max_size=3)).map("".join)
)
def test_no_path_leads_out_of_the_repositories(path: str) -> None:
    try:
        place = _repository(path, STATE)
    except NapError:
        return
    assert place.is_relative_to(STATE.repositories)
    assert place != STATE.repositories
    assert ".." not in place.parts
    assert place.name.endswith(".git")
