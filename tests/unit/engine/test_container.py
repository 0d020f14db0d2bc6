"""What the engine is asked to create, as the units' programs and one-off commands hand it on."""

import json
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import ContainerSettings, HostAddress, LocalSettings, Settings
from nap_receiver.engine.container import asked_by, asked_by_all, body_of_instance, body_of_one_off, digest_of, in_force
from nap_receiver.model.health import Answer, Check, Header, OnFailure, answered, ended
from nap_receiver.model.release import EVERY, Instance, Limits, Release
from nap_receiver.schedulers.chosen import scheduler_of
from tests.releases import RELEASE

WEB, WORKER = Instance(RELEASE, "web", 1), Instance(RELEASE, "worker", 2)
LOCAL = Settings()
FLEET = msgspec.structs.replace(LOCAL, scheduler="fleet")

HOSTILE = {
    "DOCKER_HOST": "tcp://evil:1",
    "HOME": "/evil",
    "LD_PRELOAD": "/evil.so",
    "OPTIND": "1",
    "PATH": "/evil:$PATH",
    "QUOTES": "\"'\\`$(id)\n; %h\t\U0001f600",
}


def body(instance: Instance = WEB, variables: Mapping[str, str] = {}, settings: Settings = LOCAL) -> Any:
    adapt = scheduler_of(State(Path("/nowhere")), settings).asked_of_engine
    return json.loads(msgspec.json.encode(adapt(instance, body_of_instance(instance, variables, settings))))


def test_variables_and_commands_are_in_the_body_unchanged() -> None:
    release = msgspec.structs.replace(RELEASE, commands={"web": "exec a 'b  c' \"$HOME\" %h"})
    asked = body(Instance(release, "web", 1), HOSTILE)
    assert asked["Cmd"] == ["/bin/sh", "-c", "exec a 'b  c' \"$HOME\" %h"]
    found = dict(each.split("=", 1) for each in asked["Env"])
    ours = {"PORT": "8080", "GIT_REV": RELEASE.commit, "NAP_APP": "team-shop", "NAP_RELEASE": "v3"}
    assert found == HOSTILE | ours | {"NAP_PROCESS": "web.1"}
    assert "Cmd" not in body(), "the image's own command"
    assert asked["Image"] == RELEASE.image


def test_the_ports_of_the_web_alone_are_published_on_the_machines_own_address() -> None:
    def addresses(asked: Any) -> dict[str, str]:
        return {port: each["HostIp"] for port, (each,) in asked["HostConfig"]["PortBindings"].items()}

    assert addresses(body()) == {"8080/tcp": "127.0.0.1", "9090/tcp": "127.0.0.1"}
    elsewhere = msgspec.structs.replace(LOCAL, local=LocalSettings(HostAddress("10.0.0.9")))
    assert addresses(body(settings=elsewhere)) == {"8080/tcp": "10.0.0.9", "9090/tcp": "10.0.0.9"}
    assert addresses(body(settings=FLEET)) == {"8080/tcp": "", "9090/tcp": ""}
    assert "PortBindings" not in body(WORKER)["HostConfig"]
    assert body(WORKER)["Healthcheck"] == {"Test": ["NONE"]}
    assert "Healthcheck" not in body()


def test_what_a_container_may_do_by_default() -> None:
    one_off = body_of_one_off(RELEASE, "run.1", ["id"], {}, LOCAL)
    for asked in (body(), body(WORKER), body(settings=FLEET), one_off):
        host = asked["HostConfig"]
        assert host["Memory"] == 1 << 30
        assert host["CpuQuota"] == host["CpuPeriod"]
        assert host["PidsLimit"] == 1024
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": str(10 << 20), "max-file": "2"}}
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["CapDrop"] == ["ALL"]
        assert not {"NET_RAW", "MKNOD", "SYS_ADMIN"} & set(host["CapAdd"])
        assert host["NetworkMode"] == "nap"
        assert host["Init"]
    assert one_off["HostConfig"]["AutoRemove"]


def test_a_capability_is_given_back_to_the_app_that_the_operator_names() -> None:
    given = msgspec.structs.replace(RELEASE, capabilities=["NET_RAW"])
    assert "NET_RAW" in body(Instance(given, "web", 1))["HostConfig"]["CapAdd"]


def test_limits_of_an_app_stand_in_for_the_operators() -> None:
    release = msgspec.structs.replace(RELEASE, limits={"web": Limits(memory=64 << 20), EVERY: Limits(cpus=0.5)})
    host = body(Instance(release, "web", 1))["HostConfig"]
    assert (host["Memory"], host["CpuQuota"]) == (64 << 20, 100_000)
    assert body(Instance(release, "worker", 1))["HostConfig"]["CpuQuota"] == 50_000
    none = msgspec.structs.replace(LOCAL, container=ContainerSettings(memory=0, cpus=0, pids=0, log_size=0))
    assert not {"Memory", "CpuQuota", "PidsLimit", "LogConfig"} & body(settings=none)["HostConfig"].keys()
    assert in_force(Limits(), ContainerSettings(memory=5, cpus=2)) == Limits(5, 2)


def test_bodies_that_differ_have_other_digests() -> None:
    asked = {digest_of(body(variables=variables)) for variables in ({}, {"A": "1"}, {"A": "2"}, {"B": "1"})}
    assert len(asked) == 4
    assert body(variables={"A": "1"}) == body(variables={"A": "1"})


def test_a_value_that_json_cannot_say_is_refused_with_a_hint() -> None:
    with pytest.raises(NapError, match=r"^LOGO: expected UTF-8, got other bytes$") as refused:
        body(variables={"LOGO": "\udcff"})
    assert "base64" in refused.value.advice[0]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/health?a=b&c=%20", "/health?a=b&c=%20"),
        ('/"\n-o /etc/x', "/%22%0A-o%20/etc/x"),
        ("/\\", "/%5C"),
        ("/é", "/%C3%A9"),
    ],
)
def test_a_path_cannot_end_the_line_that_curl_reads_it_from(path: str, asked: str) -> None:
    assert asked_by(Check(path=path), "") == asked


def test_a_release_of_before_has_the_usual_capabilities() -> None:
    assert msgspec.convert(msgspec.to_builtins(RELEASE), Release).capabilities == []


def test_headers_and_content_of_a_check_reach_curl_as_data() -> None:
    headers = [Header("Host", 'a"\\\tb'), Header("X-Empty"), Header("Accept", "é")]
    asked = asked_by(Check(path="/", http_headers=headers, content='"two\nlines"'), "")
    assert isinstance(asked, str)
    path, lines, content = asked.split(" ")
    assert path == "/"
    assert b64decode(lines).decode() == ('header = "Host: a\\"\\\\\\tb"\nheader = "X-Empty;"\nheader = "Accept: é"\n')
    assert b64decode(content) == b'"two\nlines"'
    assert asked_by(Check(path="/", content="x"), "") == "/ - eA=="
    assert asked_by(Check(path="/", http_headers=[Header("A", "b")]), "") == "/ aGVhZGVyID0gIkE6IGIiCg== -"


def test_what_runs_when_a_check_has_failed_is_asked_beside_it() -> None:
    failing = OnFailure(["./tell"])
    checks = [Check(listening=True, on_failure=failing), Check(path="/", warn=True), Check(uptime=3)]
    assert asked_by_all(checks, "") == {
        "1-failure": {"Cmd": ["./tell"], "AttachStdout": True, "AttachStderr": True},
        "2": "/",
    }
    assert [check.line(number, "80") for number, check in enumerate(checks, 1)] == [
        "1 both tcp 0 5 5 3 80 on-failure",
        "2 both http 0 5 5 3 80 warn",
        "3 startup uptime 0 5 5 3 3",
    ]
    assert Check(type="readiness", path="/", scheme="https").line(1, "443") == "1 readiness https 0 5 5 3 443"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], {"Host": "shop.localhost:8080", "X-Forwarded-Proto": "https"}),
        ([Header("host", "example.org")], {"X-Forwarded-Proto": "https", "host": "example.org"}),
        ([Header("x-forwarded-proto", "http")], {"Host": "shop.localhost:8080", "x-forwarded-proto": "http"}),
    ],
)
def test_a_check_asks_as_a_visitor_unless_it_names_the_header(given: list[Header], asked: dict[str, str]) -> None:
    text = asked_by(Check(path="/", http_headers=given), "https://shop.localhost:8080")
    assert isinstance(text, str)
    lines = b64decode(text.split(" ")[1]).decode().splitlines()
    assert lines == [f'header = "{name}: {value}"' for name, value in asked.items()]


AT = "172.18.0.3:80"


@pytest.mark.parametrize(
    ("check", "url", "answer", "said"),
    [
        (
            Check(path="/up"),
            "http://shop.io",
            Answer(AT, 400, said=b"Bad"),
            "GET http://shop.io/up: 400 Bad Request: Bad",
        ),
        (Check(path="/up"), "", Answer(AT, 404), "GET http://172.18.0.3:80/up: 404 Not Found"),
        (Check(path="/", scheme="https"), "", Answer(AT, 799), "GET https://172.18.0.3:80/: 799"),
        (
            Check(path="/", http_headers=[Header("HOST", "a.org"), Header("X-Forwarded-Proto", "https")]),
            "http://shop.io",
            Answer(AT, 0, error=b"Connection refused"),
            "GET https://a.org/: no answer (Connection refused)",
        ),
        (
            Check(path="/", content="x"),
            "http://shop.io",
            Answer(AT, 200, said=b"y"),
            "GET http://shop.io/: 200 OK, without that content: y",
        ),
        (
            Check(path="/"),
            "http://shop.io",
            Answer(AT, 200, error=b"Operation timed out"),
            "GET http://shop.io/: 200 OK, then: Operation timed out",
        ),
    ],
)
def test_what_a_failed_check_was_answered(check: Check, url: str, answer: Answer, said: str) -> None:
    assert answered(check, url, answer) == said


def test_one_failed_try_is_said_in_words() -> None:
    assert [Check(attempts=number).tries for number in (1, 3)] == ["once", "3 times"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer("", 3, said=b"no\nway\n"), ["its HEALTHCHECK ended with status 3, and printed:", "no", "way"]),
        (Answer("", 1), ["its HEALTHCHECK ended with status 1"]),
        (Answer("", 0), ["its HEALTHCHECK did not end in time"]),
        (Answer("", -1, said=b"exceeded"), ["its HEALTHCHECK did not end in time, and printed:", "exceeded"]),
    ],
)
def test_how_a_failed_command_ended(answer: Answer, said: list[str]) -> None:
    assert ended("its HEALTHCHECK", answer) == said
