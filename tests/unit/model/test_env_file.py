"""Variables as text: every value that an app can have comes back as it was."""

import json
import os
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nap_receiver.core.errors import NapError
from nap_receiver.model.env_file import LONGEST_BYTES, read_env_file, written_as

VALUES = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True).filter(
        lambda name: name not in {"PORT", "GIT_REV"} and not name.startswith("NAP_")
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    max_size=5,
)


@given(VALUES)
@example({"A": "ends in \\", "B": '"', "C": "'", "D": 'it\'s "both"', "E": "\\'\\\"\\n"})
@example({"A": " # no comment", "B": "#", "C": " ", "D": "one\r\ntwo\rthree\n", "E": "${HOME} $HOME `id`"})
@example({"export": "x", "A": "", "B": "\ufeff"})
def test_what_is_written_is_read_as_it_was(values: dict[str, str]) -> None:
    assert read_env_file(written_as(values, "dotenv").encode()).values == values
    assert json.loads(written_as(values, "json")) == values
    assert list(json.loads(written_as(values, "json"))) == sorted(values)


def test_a_shell_reads_what_is_written_for_it() -> None:
    values = {"A": 'it\'s "both" $HOME `id` \\', "B": "one\ntwo\n", "C": "", "D": "é 🎉 ! ~ * ;"}
    script = written_as(values, "shell") + '\nprintf "%s\\0" "$A" "$B" "$C" "$D"; env | grep -c "^[ABCD]="'
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert dict(zip("ABCD", done.decode().split("\0"), strict=False)) == values
    assert done.endswith(b"4\n"), "they are exported"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"B": "postgres://u:p@db/x?y=1", "A": "1"}, "A=1\nB='postgres://u:p@db/x?y=1'\n"),
        ({"A": "two words", "B": "$HOME"}, "A='two words'\nB='$HOME'\n"),
        ({"A": "it's", "B": "a\\b"}, "A=\"it's\"\nB='a\\\\b'\n"),
        ({}, ""),
    ],
)
def test_a_file_is_quoted_where_it_has_to_be(values: dict[str, str], text: str) -> None:
    assert written_as(values, "dotenv") == text


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("# a comment\n\nA=1\nexport B = 2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB=two words # a comment\r\n", {"A": "1", "B": "two words"}),
        ("\ufeffA=1", {"A": "1"}),
        ("A=\nB=''\n", {"A": "", "B": ""}),
        ("A='one\ntwo'\nB=\"a\\nb\"", {"A": "one\ntwo", "B": "a\nb"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("", {}),
    ],
)
def test_files_as_people_write_them(text: str, values: dict[str, str]) -> None:
    assert read_env_file(text.encode()).values == values


def test_nothing_is_filled_in_from_the_environment_of_nap() -> None:
    os.environ["A_SECRET_OF_NAP"] = "secret"
    found = read_env_file(b"HOST=example.org\n\nURL=http://${HOST}/${A_SECRET_OF_NAP}\nP=$A_SECRET_OF_NAP\n")
    del os.environ["A_SECRET_OF_NAP"]
    assert found.values == {
        "HOST": "example.org",
        "URL": "http://${HOST}/${A_SECRET_OF_NAP}",
        "P": "$A_SECRET_OF_NAP",
    }
    assert found.notices == ["line 3: URL keeps ${…} as written: nap does not expand it"]


def test_what_nap_sets_itself_is_skipped() -> None:
    found = read_env_file(b"PORT=3000\nA=1\n\nNAP_APP=x\n")
    assert found.values == {"A": "1"}
    assert found.notices == [
        "line 1: PORT is set by nap: skipped",
        "line 4: NAP_APP is set by nap: skipped",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"A=1\n\n\nsecret words\n", "line 4: expected NAME=VALUE, or a quote that ends"),
        (b"A='secret\nB=2\n", "line 1: expected NAME=VALUE, or a quote that ends"),
        (b"A=1\r\n\r\n1B=secret\r\n", "line 3: '1B' is not a valid variable name"),
        (b"A-B=secret", "line 1: 'A-B' is not a valid variable name"),
        (b"\nA\n", "line 2: A has no value"),
        (b"A=secret\xff\n", "line 1: A: expected UTF-8, got other bytes"),
        (b"A=secret\0\n", "line 1: A: a variable cannot hold a NUL character"),
        (b"A=" + b"x" * 65537, "line 1: A: the value has 65537 bytes; the limit is 65536"),
        (b"#" * (LONGEST_BYTES + 1), f"a file of variables has at most {LONGEST_BYTES} bytes"),
        (b"\x1b[31m=x", "line 1: '\\x1b[31m' is not a valid variable name"),
    ],
)
def test_what_is_no_variable_is_refused_with_its_line_and_without_its_value(content: bytes, why: str) -> None:
    with pytest.raises(NapError) as error:
        read_env_file(content)
    assert str(error.value) == f"{why}; nothing was changed"
    assert "secret" not in " ".join([str(error.value), *error.value.advice])
