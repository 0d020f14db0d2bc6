"""What is read from the sockets of an instance, and what a pusher is told about them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import EtcdSettings, Settings
from nap_receiver.core.templates import TEMPLATES
from nap_receiver.engine.container import body_of_instance
from nap_receiver.model.release import Instance, Release
from nap_receiver.store.announcements import ListensElsewhere, Silent, Wait, await_announcements
from nap_receiver.store.etcdctl import Entry
from nap_receiver.store.listening import Listening, explained, listening
from tests.releases import RELEASE

GUESSED = msgspec.structs.replace(RELEASE, ports=["5000/tcp"], names_port=False)
ONE_EXPOSED = msgspec.structs.replace(RELEASE, ports=["8080/tcp"])


def told(value: object) -> Listening | None:
    return listening(Entry("/x", cast("Any", value), 5))


def in_proc(address: str, port: int) -> str:
    """An address as this machine's kernel shows it in /proc/net/tcp or tcp6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"


@pytest.mark.parametrize(
    ("sockets", "ports", "loopback"),
    [
        ([], (), ()),
        ([("0.0.0.0", 8000)], (8000,), ()),
        ([("::", 8000), ("0.0.0.0", 8000)], (8000,), ()),
        ([("172.18.0.127", 80)], (80,), ()),
        ([("127.0.0.1", 8000)], (), ("127.0.0.1:8000",)),
        ([("127.0.0.1", 9229), ("::", 3000)], (3000,), ("127.0.0.1:9229",)),
        ([("::1", 8000), ("127.0.0.53", 53)], (), ("127.0.0.53:53", "[::1]:8000")),
        ([("::ffff:127.0.0.1", 8000)], (), ("127.0.0.1:8000",)),
        ([("::ffff:172.18.0.2", 8000)], (8000,), ()),
        ([("127.0.0.11", 34567)], (), ()),
    ],
)
def test_only_sockets_that_others_reach_count_as_open(
    sockets: list[tuple[str, int]], ports: tuple[int, ...], loopback: tuple[str, ...]
) -> None:
    text = " ".join(in_proc(*each) for each in sockets)
    assert told({"sockets": text, "settled": True}) == Listening(ports, loopback, settled=True)


@pytest.mark.parametrize("value", [None, {}, "x", {"sockets": "x:y", "settled": True}, {"sockets": "00:1F90"}])
def test_what_somebody_else_wrote_tells_nothing(value: object) -> None:
    assert told(value) is None


@pytest.mark.parametrize(
    ("release", "found", "where", "advice"),
    [
        (
            GUESSED,
            Listening((8000,)),
            "it listens on 8000; nap expected 5000",
            "Add EXPOSE 8000 to the Dockerfile, or type: ports:set team-shop 8000",
        ),
        (
            GUESSED,
            Listening((8000, 9000), ("127.0.0.1:7",)),
            "it listens on 8000, 9000; nap expected 5000",
            "Choose the web port: EXPOSE 8000 in the Dockerfile, or type: ports:set team-shop 8000",
        ),
        (
            ONE_EXPOSED,
            Listening((3000,)),
            "it listens on 3000; nap expected 8080",
            "Have the Dockerfile EXPOSE 3000 instead, or type: ports:set team-shop 3000",
        ),
        (
            RELEASE,
            Listening((9090,)),
            "it listens on 9090; nap expected 8080",
            "Add ENV PORT=9090 to the Dockerfile, or type: ports:set team-shop 9090",
        ),
        (
            msgspec.structs.replace(RELEASE, set_port=7000),
            Listening((8080,)),
            "it listens on 8080; nap expected 7000",
            "Type: ports:set team-shop 8080",
        ),
        (
            ONE_EXPOSED,
            Listening((), ("127.0.0.1:8080",)),
            "it listens on 127.0.0.1:8080 only",
            "It must listen on 0.0.0.0 to be reachable.",
        ),
        (
            ONE_EXPOSED,
            Listening((9229,), ("127.0.0.1:8080",)),
            "it listens on 127.0.0.1:8080 only",
            "It must listen on 0.0.0.0 to be reachable.",
        ),
    ],
)
def test_the_sentence_says_where_it_listens_and_what_to_type(
    release: Release, found: Listening, where: str, advice: str
) -> None:
    assert explained(release, int(release.port), found) == (where, advice)


@pytest.mark.parametrize("found", [Listening((8080,)), Listening((8080, 9229)), Listening(())])
def test_nothing_is_explained_where_the_asked_port_is_open_or_none_is(found: Listening) -> None:
    assert explained(ONE_EXPOSED, 8080, found) is None


def test_the_sockets_of_a_process_are_read_from_outside() -> None:
    """Only where its addresses tell that it is the container's process, and not one of another machine."""
    functions = (TEMPLATES / "announce.sh").read_text().partition("# Runs beside a start")[0]
    words = ["sh", "-c", f"{functions}\npid=$1 address=$2\nsockets\n", "sh", str(os.getpid())]
    with socket.create_server(("127.0.0.1", 0)) as loopback, socket.create_server(("0.0.0.0", 0)) as others:
        here = subprocess.run([*words, "127.0.0.1"], text=True, capture_output=True, check=True).stdout
        elsewhere = subprocess.run([*words, "192.0.2.1"], text=True, capture_output=True, check=False)
        wanted = others.getsockname()[1], f"127.0.0.1:{loopback.getsockname()[1]}"
    found = told({"sockets": here, "settled": False})
    assert found
    assert wanted[0] in found.ports
    assert wanted[1] in found.loopback
    assert elsewhere.returncode != 0
    assert elsewhere.stdout == ""


class Told:
    """An etcd in which instances tell, one after the other, on which port they listen, and whether that settled."""

    def __init__(self, *told: tuple[str, int, bool]) -> None:
        self.told = list(told)

    def changes(self, prefixes: Sequence[str], _since: int, _seconds: float) -> Iterator[Entry]:
        while self.told:
            instance, port, settled = self.told.pop(0)
            value = {"sockets": in_proc("0.0.0.0", port), "settled": settled}
            yield Entry(f"{prefixes[-1]}{instance}/listens", cast("Any", value), 7)

    def get(self, _key: str) -> None:
        return None


TWO = msgspec.structs.replace(GUESSED, formation={"web": 2})


@pytest.mark.parametrize(
    ("release", "told", "taken", "left"),
    [
        (GUESSED, [("web.1", 8000, True), ("web.1", 9000, True)], 8000, 1),
        (GUESSED, [("web.1", 9229, False), ("web.1", 8000, True)], 8000, 0),
        (GUESSED, [("web.1", 8000, False)], 8000, 0),
        (msgspec.structs.replace(GUESSED, found_port=7000), [("web.1", 8000, True)], 8000, 0),
        (TWO, [("web.1", 8000, True), ("web.2", 8000, False), ("web.2", 8000, True), ("web.1", 1, True)], 8000, 1),
        (TWO, [("web.1", 8000, True), ("web.2", 9000, True)], 0, 0),
        (TWO, [("web.1", 8000, True)], 0, 0),
        (GUESSED, [("web.1", 5000, True)], 0, 0),
        (ONE_EXPOSED, [("web.1", 8000, True)], 0, 0),
        (msgspec.structs.replace(GUESSED, set_port=7000), [("web.1", 8000, True)], 0, 0),
    ],
    ids=range(10),
)
def test_the_only_port_is_taken_once_it_has_settled_or_the_time_is_over(
    release: Release, told: list[tuple[str, int, bool]], taken: int, left: int
) -> None:
    etcd = Told(*told)
    wait = Wait(1, 60, lambda: None, lambda _check, _what: None, "")
    with (
        Path(os.devnull).open("w") as nobody,
        Channel(nobody.fileno()) as channel,
        pytest.raises(ListensElsewhere if taken else Silent) as failed,
    ):
        await_announcements(cast("Any", etcd), EtcdSettings(), release, wait, channel)
    if isinstance(failed.value, ListensElsewhere):
        assert failed.value.port == taken
    assert len(etcd.told) == left


@pytest.mark.parametrize(
    ("changed", "port", "variable", "published"),
    [
        ({}, "8080", "8080", ["8080/tcp", "9090/tcp", "53/udp"]),
        ({"set_port": 9090}, "9090", "9090", ["9090/tcp", "8080/tcp", "53/udp"]),
        ({"set_port": 7000}, "7000", "7000", ["7000/tcp", "8080/tcp", "9090/tcp", "53/udp"]),
        ({"ports": ["5000/tcp", "53/udp"], "names_port": False}, "5000", "5000", ["5000/tcp", "53/udp"]),
        (
            {"ports": ["5000/tcp", "53/udp"], "names_port": False, "found_port": 8000},
            "8000",
            "5000",
            ["8000/tcp", "53/udp"],
        ),
        ({"ports": ["5000/tcp"], "names_port": False, "set_port": 8000}, "8000", "8000", ["8000/tcp"]),
    ],
    ids=range(6),
)
def test_the_port_that_answers_is_published_first(
    changed: dict[str, Any], port: str, variable: str, published: list[str]
) -> None:
    release = msgspec.structs.replace(RELEASE, **({"ports": ["8080/tcp", "9090/tcp", "53/udp"]} | changed))
    assert (release.port, release.port_variable, release.published) == (port, variable, published)
    asked = body_of_instance(Instance(release, "web", 1), {}, Settings())
    assert list(asked["ExposedPorts"]) == published
    assert f"PORT={variable}" in asked["Env"]
