"""What the engine says about a build and a push, and what the pusher gets to see of it.

The engine's side is recorded items (Docker 20.10, classic builder); tests/machine/test_deploy.py has a real one.
"""

import os
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nap_receiver.build import progress
from nap_receiver.build.asked import Build
from nap_receiver.build.buildkit import BuildKit
from nap_receiver.build.classic import Classic
from nap_receiver.build.dockerfile import instructions_of
from nap_receiver.build.lines import Lines
from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import BuildSettings
from nap_receiver.engine.client import Engine, EngineFacts, Image, _count, _ports, _size, text_of
from nap_receiver.git.checkout import Checkout

Item = dict[str, Any]

CHECKOUT = Checkout("1" * 40, 0)  # of which the engine reads nothing
DIGEST = "sha256:" + "ab" * 32
ABOUT: Item = {"Size": 2_140_000, "Config": {"ExposedPorts": {"8080/tcp": {}}, "Env": ["PATH=/bin"]}}


class Recorded:
    """An engine's API that says what was recorded."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def build(self, **options: object) -> Iterator[Item]:
        return iter(self._items)

    def prune_builds(self, **options: object) -> Item:
        return {}

    def push(self, *arguments: object, **options: object) -> Iterator[Item]:
        return iter(self._items)

    def inspect_image(self, tag: str) -> Item:
        return ABOUT


def told(items: list[Item], story: Callable[[Engine, Channel], None]) -> list[str]:
    """What the pusher reads while an engine says `items`."""
    engine = Engine.__new__(Engine)
    engine.url = ""
    engine.api = Recorded(items)
    with tempfile.TemporaryFile() as file:
        with Channel(file.fileno()) as channel:
            try:
                story(engine, channel)
            except NapError as error:
                channel.failure(error)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return file.read().decode().splitlines()


def built(*items: Item) -> list[str]:
    asked = Build("hello", "r/hello:1", CHECKOUT, BuildSettings())
    return told(list(items), lambda engine, channel: Classic(engine).build(asked, channel))


def stream(*chunks: str) -> list[Item]:
    return [{"stream": chunk} for chunk in chunks]


def failure(message: str) -> Item:
    return {"error": message, "errorDetail": {"code": 1, "message": message}}


def test_chunks_become_lines() -> None:
    lines = Lines()
    assert list(lines.of("Step 1/2 : FR")) == []
    assert list(lines.of("OM busybox\n\nto")) == ["Step 1/2 : FROM busybox"]
    assert list(lines.of("o\nthree")) == ["too"]
    assert list(lines.rest()) == ["three"]
    assert list(lines.rest()) == []


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    lines = Lines()
    said = [line for _ in range(1000) for line in lines.of("x" * 1000)]
    assert said
    assert sum(map(len, [*said, *lines.rest()])) == 1_000_000
    assert max(map(len, said)) < 100_000


def test_progress_over_a_line_is_shown_once() -> None:
    lines = Lines()
    assert [line for chunk in ("1%\r", "50%\r", "100%", "\n") for line in lines.of(chunk)] == ["100%"]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"stream": "a\n"}, "a\n"),
        ({"aux": {"ID": "sha256:1"}}, ""),
        ({"status": "Pulling from library/busybox", "id": "latest"}, "Pulling from library/busybox\n"),
        ({"status": "Downloading", "progressDetail": {"current": 1}, "id": "1"}, ""),
        ({"status": "Pull complete", "progressDetail": {}, "id": "1"}, ""),
    ],
)
def test_what_of_an_item_is_shown(item: Item, text: str) -> None:
    assert text_of(item) == text


def test_a_build_shows_its_steps_and_output_without_housekeeping_and_colours() -> None:
    assert built(
        *stream(
            "Step 1/2 : FROM busybox",
            "\n",
            " ---> 1234abcd\n",
            "Step 2/2 : RUN make\n",
            " ---> Running in 5678\n",
            "compiling\n\x1b[91mwarning: ",
            "old\n\x1b[0m",
            "Removing intermediate container 5678\n",
            " ---> 9abc\n",
        ),
        {"aux": {"ID": "sha256:9abc"}},
        *stream("Successfully built 9abc\n", "Successfully tagged hello:1\n"),
    ) == [
        "       Step 1/2 : FROM busybox",
        "       Step 2/2 : RUN make",
        "       compiling",
        "       warning: old",
    ]


def test_a_failed_build_shows_the_last_words_the_step_and_the_status() -> None:
    lines = built(
        *stream("Step 1/2 : FROM busybox\n", "Step 2/2 : RUN make\n", "make: no rule, and no line's end"),
        failure("The command '/bin/sh -c make' returned a non-zero code: 2"),
    )
    assert lines[2] == "       make: no rule, and no line's end"
    assert lines[3] == " !     hello: the build failed at step 2/2 : RUN make: it exited with status 2"
    assert "push again" in lines[4]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([failure("dockerfile parse error line 1: unknown instruction: FORM")], ["in the Dockerfile", "FORM"]),
        (
            [*stream("Step 1/1 : COPY . .\n"), failure("write /x: no space left on device")],
            ["ran out of disk space at step 1/1", "Ask the operator"],
        ),
        (
            [*stream("Step 1/1 : COPY no/file .\n"), failure("COPY failed: no/file:\nfile does not exist")],
            ["the build failed at step 1/1 : COPY no/file .: COPY failed: no/file: file does not exist"],
        ),
        ([failure("bad \x1b[31mcolour")], ["bad colour"]),
        ([{"error": "no detail"}], ["no detail"]),
    ],
)
def test_a_failed_build_says_why_and_what_to_do(items: list[Item], words: list[str]) -> None:
    lines = [line for line in built(*items) if line.startswith(" !     ")]
    assert len(lines) >= 2
    for word in words:
        assert word in "\n".join(lines)


DOCKERFILE = """\
FROM busybox AS one
RUN make \\
  # all of it
  all
FROM busybox
COPY --from=one /a /b
"""


def kit(*reports: Item) -> list[str]:
    """What the pusher reads while BuildKit says this."""
    instructions = instructions_of(DOCKERFILE.encode(), "hello", 1000)
    asked = Build("hello", "r/hello:1", CHECKOUT, BuildSettings(), {}, DOCKERFILE, instructions)
    about = EngineFacts((1, 41), "linux", "amd64")
    return told(list(reports), lambda engine, channel: BuildKit(engine, about).build(asked, channel))


def report(*vertexes: Item, **logs: str | bytes) -> Item:
    """A report of BuildKit's: steps by what they are at, and what steps print by the digest."""
    found = [{"digest": each["digest"].encode(), **each} for each in vertexes]
    fields = [{key: _bytes(value) for key, value in each.items()} for each in found]
    said = [{"vertex": digest.encode(), "msg": _bytes(text)} for digest, text in logs.items()]
    status = progress.Status(vertexes=fields, logs=said)
    return {"id": "moby.buildkit.trace", "aux": b64encode(status.SerializeToString()).decode()}


def _bytes(value: str | bytes | bool) -> bytes | bool:
    return value.encode() if isinstance(value, str) else value


def step(digest: str, name: str, **how: str | bool) -> Item:
    return {"digest": digest, "name": name, **how}


ONE = "[one 2/2] RUN make   all"
TWO = "[stage-1 2/2] COPY --from=one /a /b"


def test_buildkit_tells_each_step_once_and_whose_line_is_whose() -> None:
    assert kit(
        report(step("i", "[internal] load remote build context", started="1", completed="2")),
        report(step("f", "[one 1/2] FROM docker.io/library/busybox"), step("a", ONE), step("b", TWO)),
        report(step("f", "[one 1/2] FROM docker.io/library/busybox", started="1", completed="2", cached=True)),
        report(step("a", ONE, started="1")),
        report(step("a", ONE, started="1"), a="c\u00f6mpi".encode()[:2]),
        report(a="c\u00f6mpi".encode()[2:]),
        report(a="ling\n\x1b[31mred\x1b[0m\nno end"),
        report(step("a", ONE, started="1", completed="2")),
        report(step("b", TWO, started="1", completed="2")),
        report(step("e", "exporting to image", started="1", completed="2")),
        {"id": "moby.image.id", "aux": {"ID": "sha256:1"}},
        *stream("Successfully tagged hello:1\n"),
    ) == [
        "       [one 1/2] FROM docker.io/library/busybox (CACHED)",
        "       [one 2/2] RUN make   all",
        "       [one 2/2] c\u00f6mpiling",
        "       [one 2/2] red",
        "       [one 2/2] no end",
        "       [stage-1 2/2] COPY --from=one /a /b",
    ]


def test_buildkits_lines_of_the_only_stage_are_as_they_are() -> None:
    assert kit(report(step("a", "[2/2] RUN make", started="1"), a="made\n")) == [
        "       [2/2] RUN make",
        "       made",
    ]


@pytest.mark.parametrize(
    "reason",
    [
        "executor failed running [/bin/sh -c make all]: exit code: 3",
        'failed to solve: process "/bin/sh -c make all" did not complete successfully: exit code: 3',
    ],
)
def test_a_step_of_buildkits_that_fails_is_shown_with_its_lines(reason: str) -> None:
    lines = kit(
        report(step("a", ONE, started="1"), step("b", TWO, started="1"), a="make: no rule\n"),
        report(b="copying\n"),
        report(step("b", TWO, started="1", completed="2", error="context canceled")),
        report(step("a", ONE, started="1", completed="2", error=reason)),
        failure(reason),
    )
    assert lines[4:12] == [
        "       Dockerfile, lines 2 to 4:",
        "       RUN make \\",
        "         # all of it",
        "         all",
        "       Its last output:",
        "       make: no rule",
        " !     hello: the build failed at [one 2/2] RUN make   all: it exited with status 3",
        lines[11],
    ]
    assert "push again" in lines[11]


@pytest.mark.parametrize(
    ("printed", "reason", "words"),
    [
        ("sh: write error: No space left on device\n", "exit code: 1", "ran out of disk space at [one 2/2] RUN make"),
        ("", "exit code: 137", "probably because it used more memory than build.memory allows (2147483648 bytes)"),
        ("", "failed to copy: write /x: no space left on device", "ran out of disk space"),
        ("", 'failed to compute cache key: "/a" not found: not found', '"/a" not found'),
    ],
)
def test_why_a_step_of_buildkits_failed(printed: str, reason: str, words: str) -> None:
    ended = step("a", ONE, started="1", completed="2", error=reason)
    said = "\n".join(kit(report(step("a", ONE, started="1"), a=printed), report(ended), failure(reason)))
    assert words in said


def test_what_buildkit_cannot_even_read_is_told_in_its_words() -> None:
    why = (
        "failed to solve with frontend dockerfile.v0: failed to create LLB definition: dockerfile parse error line 2: x"
    )
    assert (
        kit(failure(why))[0] == " !     hello: the build failed in the Dockerfile: "
        "failed to create LLB definition: dockerfile parse error line 2: x"
    )


def pushed(*items: Item) -> tuple[Image | None, list[str]]:
    images = []
    lines = told(list(items), lambda e, c: images.append(e.push("10.0.0.1:5000/team-shop:1a2b", "team-shop", c)))
    return (images[0] if images else None), lines


def test_a_push_tells_the_digest_and_how_much_was_new() -> None:
    image, lines = pushed(
        {"status": "The push refers to repository [10.0.0.1:5000/team-shop]"},
        {"status": "Preparing", "progressDetail": {}, "id": "a"},
        {"status": "Preparing", "progressDetail": {}, "id": "b"},
        {"status": "Layer already exists", "progressDetail": {}, "id": "a"},
        {"status": "Pushing", "progressDetail": {"current": 1}, "id": "b"},
        {"status": "Pushed", "progressDetail": {}, "id": "b"},
        {"status": "1a2b: digest: sha256:… size: 527"},
        {"progressDetail": {}, "aux": {"Tag": "1a2b", "Digest": DIGEST, "Size": 527}},
    )
    assert image is not None
    assert image.digest == f"10.0.0.1:5000/team-shop@{DIGEST}"
    assert image.ports == ["8080/tcp"]
    assert not image.has_healthcheck
    assert lines == [f"-----> Image 10.0.0.1:5000/team-shop@{DIGEST[:19]}… (2.1 MB, 1 of 2 layers new)"]


def test_digest_is_found_where_images_are_kept_in_containerds_store() -> None:
    image, _ = pushed(
        {"status": "Pushed", "progressDetail": {}, "id": "a"},
        {"status": f"1a2b: digest: {DIGEST} size: 696"},
    )
    assert image is not None
    assert image.digest == f"10.0.0.1:5000/team-shop@{DIGEST}"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([failure("dial tcp 10.0.0.1:5000: connect: connection refused")], "connection refused"),
        ([{"status": "Preparing", "id": "a"}], "the registry returned no digest"),
    ],
)
def test_a_refused_push_names_the_registry_and_the_reason(items: list[Item], reason: str) -> None:
    image, lines = pushed(*items)
    assert image is None
    assert "could not be pushed to the registry at 10.0.0.1:5000: " in lines[0]
    assert reason in lines[0]
    assert "push again" in lines[1]


@pytest.mark.parametrize(
    ("exposed", "environment", "ports"),
    [
        (None, None, []),
        ({}, ["PORT=8080"], ["8080/tcp"]),
        (None, ["PORT=70000"], []),
        (None, ["PORT=x", "A=PORT=1"], []),
        (["53/udp"], ["PORT=3000"], ["3000/tcp", "53/udp"]),
        (["8080/tcp"], [], ["8080/tcp"]),
        (["10000/tcp", "9090/tcp", "80/tcp"], [], ["80/tcp", "9090/tcp", "10000/tcp"]),
        (["9090/tcp", "80/tcp"], ["A=B", "PORT=9090"], ["9090/tcp", "80/tcp"]),
        (["9090/tcp", "80/tcp"], ["PORT=1"], ["80/tcp", "9090/tcp"]),
        (["53/udp", "8053/tcp"], [], ["8053/tcp", "53/udp"]),
        (["53/udp"], [], ["53/udp"]),
    ],
)
def test_the_port_that_must_answer_comes_first(
    exposed: list[str] | None, environment: list[str] | None, ports: list[str]
) -> None:
    assert _ports({"ExposedPorts": exposed and {port: {} for port in exposed}, "Env": environment}) == ports


def test_sizes_and_counts_are_words() -> None:
    assert (_size(2_140_000), _size(0), _size(1_500_000_000)) == ("2.1 MB", "0.0 MB", "1500.0 MB")
    assert (_count(1, "layer"), _count(0, "layer"), _count(3, "layer")) == ("1 layer", "0 layers", "3 layers")


def test_reports_and_etcd_are_read_in_one_process_whichever_comes_first() -> None:
    code = "import nap_receiver.build.progress, nap_receiver.store.etcd"
    subprocess.run([sys.executable, "-P", "-c", code], env={}, check=True)
