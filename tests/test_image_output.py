"""What the engine says about a build and a push, and what the pusher gets to see of it.

The engine's side is recorded items (Docker 20.10, classic builder); tests/test_deploy.py has a real one.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nap_receiver.channel import Channel
from nap_receiver.checkout import Checkout
from nap_receiver.errors import NapError
from nap_receiver.image import Engine, Image, _count, _Lines, _ports, _size, _text

Item = dict[str, Any]

CHECKOUT = Checkout(Path("/nowhere"), "1" * 40, 0, [], [])
DIGEST = "sha256:" + "ab" * 32
ABOUT: Item = {"Size": 2_140_000, "Config": {"ExposedPorts": {"8080/tcp": {}}, "Env": ["PATH=/bin"]}}


class Recorded:
    """An engine's API that says what was recorded."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def build(self, **options: object) -> Iterator[Item]:
        return iter(self._items)

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
    return told(list(items), lambda engine, channel: engine.build(CHECKOUT, "hello", "r/hello:1", {}, channel))


def stream(*chunks: str) -> list[Item]:
    return [{"stream": chunk} for chunk in chunks]


def failure(message: str) -> Item:
    return {"error": message, "errorDetail": {"code": 1, "message": message}}


def test_chunks_become_lines() -> None:
    lines = _Lines()
    assert list(lines.of("Step 1/2 : FR")) == []
    assert list(lines.of("OM busybox\n\nto")) == ["Step 1/2 : FROM busybox"]
    assert list(lines.of("o\nthree")) == ["too"]
    assert list(lines.rest()) == ["three"]
    assert list(lines.rest()) == []


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    lines = _Lines()
    said = [line for _ in range(1000) for line in lines.of("x" * 1000)]
    assert said
    assert sum(map(len, [*said, *lines.rest()])) == 1_000_000
    assert max(map(len, said)) < 100_000


def test_progress_over_a_line_is_shown_once() -> None:
    lines = _Lines()
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
    assert _text(item) == text


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
            [*stream("Step 1/1 : RUN --mount=type=cache true\n"), failure("the --mount option requires BuildKit.")],
            ["it needs BuildKit", "without RUN --mount"],
        ),
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


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([failure("dial tcp 10.0.0.1:5000: connect: connection refused")], "connection refused"),
        ([{"status": "Preparing", "id": "a"}], "the registry named no digest"),
    ],
)
def test_a_refused_push_names_the_registry_and_the_reason(items: list[Item], reason: str) -> None:
    image, lines = pushed(*items)
    assert image is None
    assert "the registry at 10.0.0.1:5000 did not take it" in lines[0]
    assert reason in lines[0]
    assert "push again" in lines[1]


@pytest.mark.parametrize(
    ("exposed", "environment", "ports"),
    [
        (None, None, ["5000/tcp"]),
        ({}, ["PORT=8080"], ["5000/tcp"]),
        (["8080/tcp"], [], ["8080/tcp"]),
        (["10000/tcp", "9090/tcp", "80/tcp"], [], ["80/tcp", "9090/tcp", "10000/tcp"]),
        (["9090/tcp", "80/tcp"], ["A=B", "PORT=9090"], ["9090/tcp", "80/tcp"]),
        (["9090/tcp", "80/tcp"], ["PORT=1"], ["80/tcp", "9090/tcp"]),
        (["53/udp", "8053/tcp"], [], ["8053/tcp", "53/udp"]),
        (["53/udp"], [], ["5000/tcp", "53/udp"]),
    ],
)
def test_the_port_that_must_answer_comes_first(
    exposed: list[str] | None, environment: list[str] | None, ports: list[str]
) -> None:
    assert _ports({"ExposedPorts": exposed and {port: {} for port in exposed}, "Env": environment}) == ports


def test_sizes_and_counts_are_words() -> None:
    assert (_size(2_140_000), _size(0), _size(1_500_000_000)) == ("2.1 MB", "0.0 MB", "1500.0 MB")
    assert (_count(1, "layer"), _count(0, "layer"), _count(3, "layer")) == ("1 layer", "0 layers", "3 layers")
