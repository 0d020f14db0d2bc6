"""What a Dockerfile is read to refer to: images, and what it downloads."""

import platform
import random
import time

import pytest

from nap_receiver.build.dockerfile import (
    CLASSIC,
    DOCKERFILE_1_2,
    NEWEST,
    NotForBuilds,
    Unreadable,
    Value,
    escape_of,
    expand,
    images_and_downloads,
    instructions_of,
    may_be_remote,
    platform_variables,
)
from nap_receiver.build.dockerfile_lines import Unparsable, split, with_syntax
from nap_receiver.core.errors import NapError
from nap_receiver.model.base_image import Base


def read(text: str, bases: dict[str, Base] | None = None) -> tuple[list[str], list[list[str]]]:
    """The images and the sources of downloads that `text` refers to."""
    images: list[str] = []

    def use(name: str, line: int) -> Base:
        images.append(name)
        return (bases or {}).get(name, Base())

    instructions = instructions_of(text.encode(), "shop", 1 << 17)
    found = [list(each.sources) for each in images_and_downloads(instructions, escape_of(text.encode()), use)]
    return images, found


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("FROM a", ["a"]),
        ("from a", ["a"]),
        ("# FROM c\n\n   FROM a\n", ["a"]),
        ("FROM --platform=linux/amd64 a AS b\nFROM B\n", ["a"]),
        ("FROM scratch", []),
        ("FROM \\\n# a comment\n  a\n", ["a"]),
        ("# escape=`\nFROM `\n  a\n", ["a"]),
        ("ARG V=1\nFROM a:$V", ["a:1"]),
        ("ARG V=1\nARG W=${V}.2\nFROM a:${W}", ["a:1.2"]),
        ("FROM ${X:-a}", ["a"]),
        ("ARG X=b\nFROM ${X:+a}", ["a"]),
        ("FROM ${X:-${Y:-a}}", ["a"]),
        ('ARG X="a"\nFROM "$X"', ["a"]),
        ("FROM a\nARG X=c\nFROM b$X", ["a", "b"]),  # an ARG of a stage is not one of FROM's
        ("FROM a AS one\nFROM b\nCOPY --from=one x y\nCOPY --from=0 x y\nCOPY --from=1 x y", ["a", "b", "1"]),
        ("FROM a\nCOPY --from=c x y", ["a", "c"]),
        ("FROM a\nCOPY --from=later x y\nFROM b AS later", ["a", "later", "b"]),
        ("FROM a\nCOPY --fr\\om=c x y", ["a", "c"]),
        ("FROM a\nCOPY --chown=1 --from=c --from=d x y", ["a", "c", "d"]),
        ("FROM a\nCOPY --from=12345678901234567890 x y", ["a", "12345678901234567890"]),
        ("FROM a\nRUN --mount=type=bind,from=c,target=/x ls", ["a", "c"]),
        ("FROM a\nRUN --mount=\"type=bind,FROM=c\" --mount='from=d' ls", ["a", "c", "d"]),
        ("FROM a\nRUN echo COPY --from=c FROM d", ["a"]),
        ("FROM a\nONBUILD COPY --from=c x y", ["a", "c"]),
        ("\ufeffFROM a", ["a"]),
    ],
)
def test_every_image_that_a_build_refers_to_is_found(text: str, images: list[str]) -> None:
    assert read(text) == (images, [])


def test_triggers_of_a_base_image_are_read_too() -> None:
    assert read("FROM a", {"a": Base(triggers=("COPY --from=c x y", "RUN make"))}) == (["a", "c"], [])
    for trigger in ("ADD http://h/ /", "ADD $X /", 'ADD ["https://h/", "/"]', "ADD h\\ttp://h/ /", "ADD <<E x"):
        with pytest.raises(Unreadable):
            read("FROM a", {"a": Base(triggers=(trigger,))})
    with pytest.raises(Unreadable):
        read("FROM a AS b\nONBUILD ADD http://h/ /\nFROM b")


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("ADD https://h/a /x", ["https://h/a"]),
        ("ADD ./a b.tar /x/", None),
        ("ADD a https://h/b /x/", ["a", "https://h/b"]),
        ('ADD ["https://h/a b", "/x"]', ["https://h/a b"]),
        ("ADD https:/\\/h/a /x", ["https://h/a"]),
        ("ADD ht\\tp://h/a /x", ["http://h/a"]),
        ("ADD 'http'://h/a /x", ["http://h/a"]),
        ("ENV V=1 W=2\nADD https://h/$V-${W} /x", ["https://h/1-2"]),
        ("ENV V=h\nADD ${V}ttp://h/ /x", ["http://h/"]),
        ("ARG V=http:\nADD $V//h/ /x", ["http://h/"]),
        ("ENV V=/127.0.0.1\nADD http:/$V /x", ["http://127.0.0.1"]),
        ("ARG V=1\nENV V=2\nADD https://h/$V /x", ["https://h/2"]),
        ("ENV V=1\nADD app-$V.tar /x", None),
        ("ADD dir/$TARGETARCH /x", None),
        ("ADD git@h:a.git /x", ["git@h:a.git"]),
        ("ADD github.com/a /go/src/github.com/a", None),
        ("COPY http://h /x", None),
        ("ADD $HOME_OF_BASE/a /x", ["http://h/a"]),
    ],
)
def test_every_download_is_found(text: str, sources: list[str] | None) -> None:
    bases = {"a": Base({"HOME_OF_BASE": "http://h"})}
    assert read(f"FROM a\n{text}", bases) == (["a"], [sources] if sources else [])


def test_a_later_stage_inherits_the_variables_of_an_earlier_one_but_not_its_arguments() -> None:
    text = "FROM a AS one\nENV V=http:\nARG W=http:\nFROM one\nADD $V//h/ /x\nADD $W//h/ /x"
    assert read(text) == (["a"], [["http://h/"]])


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("${B}", ""),
        ("${B-x}", ""),
        ("${B:-x}", "x"),
        ("${C-x}", "x"),
        ("${C:+x}", ""),
        ("${B+x}", "x"),
        ("\\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A"', "1"),
        ('"\\a\\""', '\\a"'),
        ("a\\b", "ab"),
        ("${C:-'}'}", "}"),
        ("$", "$"),
        ("a$/b", "a$/b"),
        ("$1x", "x"),
    ],
)
def test_a_word_is_expanded_as_the_builder_does_it(word: str, expanded: str) -> None:
    assert expand(word, {"A": Value("1"), "B": Value("")}, "\\") == expanded


@pytest.mark.parametrize(
    "word", ["$TARGETARCH", "${A#x}", "${A/1/2}", "${A", "${", '"$A', "$Aé", "${A:-" * 50 + "}" * 50, "$D"]
)
def test_a_word_that_builders_expand_differently_is_unreadable(word: str) -> None:
    with pytest.raises(Unreadable):
        expand(word, {"A": Value("1"), "D": Value("", "TARGETARCH")}, "\\")


def test_a_variable_that_doubles_with_each_line_is_refused_before_it_is_large() -> None:
    for start in ("0123456789", "${TARGETARCH}0123456789"):
        lines = "\n".join(f"ENV A{n + 1}=$A{n}$A{n}" for n in range(500))
        with pytest.raises(Unreadable, match="1048576 characters"):
            read(f"FROM a\nENV A0={start}\n{lines}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no instructions"),
        ("# escape=x\nFROM a", "# escape=x is not allowed"),
        ("FROM a \\\r\r\n", "carriage return"),
        ("FROM\xa0a", "unknown instruction"),
        ("FROM a\xa0b", "unusual blank"),
        ("FROM a\nRUN --mount=fr\u0105om=b x", "non-ASCII letter or an unusual blank"),
        ("FROM a\nADD [1] /", "its list must have only strings"),
        ("FROM a\nENV b", "ENV has a name without a value"),
        ("FROM a\nFETCH b", "line 2: unknown instruction: FETCH"),
        ("FROM a\nONBUILD RUN <<E\nls\n", "line 2: a here-document in ONBUILD"),
        ("FROM a\nRUN <<E\nls\n", "line 2: its here-document is not closed: the line E is missing"),
        ("FROM a\nRUN <<E\n" + "x" * 65536 + "\nE", "line 3: it has more than 65535 bytes"),
        ("FROM a\nRUN cat << E\nls\nE", "line 2: a blank after << is not supported"),
        ("FROM a\nRUN x<< 1<<E\nls\nE", "line 2: a blank after << is not supported in a line with a here-document"),
        ('FROM a\nRUN << "2))"\nls\n2))', "line 2: a blank after << is not supported"),
        ("FROM a\nRUN echo ${X:-1} <<E\nls\nE", "line 2: in a line with <<, close all quotes and write variables"),
        ("FROM a\nRUN echo ' <<E\nls\nE\n' <<E", "line 3: unknown instruction"),
        ("FROM a\nRUN <<E echo '\nls\nE", "line 2: in a line with <<, close all quotes"),
        ("FROM a\nRUN <<$E\nls\n$E", "line 2: the end of a here-document must be named with letters and digits"),
        ("FROM a\nRUN [ <<E\nls\nE", "line 2: a list and a here-document in one instruction are not supported"),
        ("#!/usr/bin/env x\n# syntax=evil/frontend\nFROM a", "# syntax=evil/frontend is not allowed"),
        ("FROM a\nADD a /b \\\\\nENV http://h/ /d/", "line 2 ends in"),
        ("# syntax=evil/frontend\nFROM a", "# syntax=evil/frontend is not allowed"),
        ("FROM a\n# " + "x" * (1 << 17), "build.dockerfile_size allows 131072"),
    ],
)
def test_what_builders_read_differently_is_refused(text: str, words: str) -> None:
    with pytest.raises(NapError, match=f"shop: the build failed in the Dockerfile: .*{words}"):
        read(text)


def test_harmless_dockerfiles_are_taken() -> None:
    text = '# syntax=docker/dockerfile:1.4\nFROM a\nRUN echo é \\\n\n  && true\nCMD ["a"]\nHEALTHCHECK NONE\n'
    assert read(text) == (["a"], [])
    instructions = instructions_of("# caf\xe9\nFROM a".encode("latin-1"), "shop", 100)
    assert [each.name for each in instructions] == ["FROM"]


def test_what_stands_in_a_here_document_is_no_instruction() -> None:
    text = "FROM a\nRUN <<EOF cat - <<-'X'\nFROM b\nEOF\n\tFROM c\n\tX\n"
    text += 'COPY --from=d <<"Y" x /\nADD http://h/ /\nY\nUSER e'
    instructions = instructions_of(text.encode(), "shop", 1000)
    assert [(each.name, each.lines, each.heredocs) for each in instructions] == [
        ("FROM", (1, 1), ()),
        ("RUN", (2, 6), ("EOF", "X")),
        ("COPY", (7, 9), ("Y",)),
        ("USER", (10, 10), ()),
    ]
    assert read(text) == (["a", "d"], [])


def test_what_a_shell_shifts_is_no_here_document() -> None:
    for text in (
        "RUN echo $((1<<2)) $((1 << 2))",
        "RUN cat <<<x",
        "RUN echo '<<E' \"<<E\"",
        'RUN ["cat", "<<E"]',
        "USER <<E",
    ):
        assert [each.heredocs for each in instructions_of(f"FROM a\n{text}\n".encode(), "shop", 100)] == [(), ()]


AMD64 = platform_variables("linux", "amd64")


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("FROM a-$TARGETARCH$TARGETVARIANT", "a-amd64"),
        ("FROM --platform=$BUILDPLATFORM a:${TARGETOS}", "a:linux"),
        ("FROM --platform=linux/x86_64 a", "a"),
        ("FROM --platform=amd64 a", "a"),
        ("FROM --platform=Linux a", "a"),
        ("ARG NAP_APP=x\nFROM a:$NAP_APP", "a:shop"),
        ("FROM ${NAP_APP:-a}", "a"),
    ],
)
def test_a_builder_that_has_them_gives_variables_of_its_platform_and_its_arguments(text: str, image: str) -> None:
    assert seen(text) == [image]


def seen(text: str) -> list[str]:
    """The images that BuildKit on amd64 is led to."""
    found: list[str] = []

    def use(name: str, line: int) -> Base:
        found.append(name)
        return Base()

    instructions = instructions_of(text.encode(), "shop", 1 << 17)
    list(images_and_downloads(instructions, "\\", use, {"NAP_APP": "shop"}, AMD64))
    return found


@pytest.mark.parametrize("text", ["ARG TARGETARCH=x\nFROM a:$TARGETARCH", "FROM a:$TARGETOSVERSION"])
def test_a_platform_that_builders_tell_differently_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable, match="TARGET"):
        seen(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM --platform=linux/arm64 a", "line 1: FROM --platform=linux/arm64: this nap builds only for linux/amd64"),
        ("FROM --platform=windows a", "this nap builds only for linux/amd64"),
        ("FROM a\nRUN --network=host x", "line 2: RUN --network=host is not allowed"),
        ("FROM a\nRUN --security=insecure x", "line 2: RUN --security=insecure"),
        ("FROM a\nRUN --device=all x", "line 2: RUN --device=all"),
        ("FROM a\nONBUILD RUN --network=none x\nONBUILD RUN --network=host x", "line 3: RUN --network=host"),
        ("FROM a\nRUN --mount=type=secret,id=x cat /run/secrets/x", "line 2: RUN --mount=type=secret"),
        ("FROM a\nRUN --mount=type=ssh git clone x", "line 2: RUN --mount=type=ssh"),
    ],
)
def test_a_build_gets_nothing_of_the_machines_and_no_other_platform(text: str, why: str) -> None:
    with pytest.raises(NotForBuilds, match=why):
        seen(text)


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("RUN <<E\nls\nE", ["a here-document", "a here-document", ""]),
        ("COPY --link a b", ["COPY --link", "COPY --link", ""]),
        ("COPY --chmod=1 a b", ["COPY --chmod", "", ""]),
        ("COPY --from=x --chown=1 a b", ["", "", ""]),
        ("ADD --checksum=sha256:1 a b", ["", "", ""]),
        ("RUN --mount=type=cache,target=/x ls", ["RUN --mount", "", ""]),
        ("FROM --platform=$BUILDPLATFORM a", ["FROM --platform with a variable", "", ""]),
        ("ARG TARGETARCH", ["ARG TARGETARCH", "", ""]),
        ("ARG TARGETARCH=amd64", ["", "", ""]),
        ("COPY --nobody-knows=1 a b", ["", "", ""]),
    ],
)
def test_what_a_builder_lacks_is_named(text: str, lacks: list[str]) -> None:
    (_, instruction) = instructions_of(f"FROM a\n{text}".encode(), "shop", 1000)
    assert [each.lacks(instruction) for each in (CLASSIC, DOCKERFILE_1_2, NEWEST)] == lacks


def test_a_syntax_is_put_in_the_place_of_another() -> None:
    text = "#!/x\n# check=skip=all\n# syntax=a\n# escape=`\nFROM a\n"
    assert with_syntax(text, "") == "# check=skip=all\n# escape=`\nFROM a\n"
    assert with_syntax(text, "b") == "# syntax=b\n# check=skip=all\n# escape=`\nFROM a\n"
    assert with_syntax("FROM a\n", "b") == "# syntax=b\nFROM a\n"


def test_the_largest_dockerfile_is_read_in_time_that_grows_with_its_size() -> None:
    for text in (
        "FROM a\nRUN " + "a\\\n" * 43_000,
        "FROM a\n" * 18_000,
        "FROM a\nADD " + "$A" * 30_000,
        "FROM a\nADD " + "a " * 30_000,
        "FROM a\n" + "ENV A=$A$A\n" * 11_000,
    ):
        started = time.thread_time()
        read(text)
        assert time.thread_time() - started < 30, "0.2 s; minutes where it grew with the square of the size"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="BuildKit's parser comes as a wheel for x86_64 alone")
def test_instructions_are_those_that_buildkits_own_parser_reads() -> None:
    import dockerfile

    chance = random.Random(7)
    starts = ["ADD ", "COPY ", "ENV ", "ARG ", "RUN ", "FROM ", "LABEL ", "ONBUILD COPY ", "", " "]
    parts = ["a", "b", "AS", "--", "--from=", "--mount=", "$A", "${A", "}", "'", '"', "\\", "`", "[", '["a","b"]', "[]"]
    parts += ['["a"]x', ",", "=", "http://h/", "#", "é", "\x85", "\xa0", "-", ":", "@"]
    parts += ["<<", "<<E", "1<<-'E'", "\nE\n", "<"]
    parts += ["\n", "\t", "\v", " ", " ", " ", "\\\n", "`\n", "\n# x\n", "\r\n", "\x1c", "\x01"]
    compared = 0
    for _ in range(12000):
        lines = ["".join(chance.choices(parts, k=chance.randint(1, 12))) for _ in range(3)]
        text = chance.choice(["", "# escape=`\n"]) + "FROM a\n" + "\n".join(chance.choice(starts) + x for x in lines)
        try:
            mine = list(split(text, escape_of(text.encode())))
            theirs = dockerfile.parse_string(text)
        except (Unparsable, dockerfile.GoParseError, UnicodeError):
            continue
        compared += 1
        named = {"ADD", "ARG", "COPY", "ENV", "FROM"}
        assert [(each.name, each.lines[0], each.flags, each.words) for each in mine] == [
            (
                each.cmd.upper(),
                each.start_line,
                () if each.cmd.upper() == "ONBUILD" else each.flags,
                () if each.cmd.upper() not in named or each.value == ("",) else each.value,
            )
            for each in theirs
        ], text
    assert compared > 500


def test_only_a_word_that_may_become_a_url_may_be_remote() -> None:
    remote = ["http://h", "$A", "h$A", "http:/$A", "'h'", "git@h:x", "ssh://h", "x:$A"]
    assert [word for word in remote if not may_be_remote(word, "\\")] == []
    local = [".", "a", "a/$A", "./$A", "/$A", "a.b", "C:\\x/"]
    assert [word for word in local if may_be_remote(word, "`")] == []
