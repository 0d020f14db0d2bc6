"""The router's log of requests, as lines of an app's log."""

import json
import math
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.deploy.logs import _LOOK_AGAIN_SECONDS, Requests, merged, requests_since
from nap_receiver.model.manifest import manifest_of
from nap_receiver.model.release import Release
from nap_receiver.schedulers.log_source import Line, Wanted
from tests.nap import eventually, throughout


def entry(app: str, at: float, uri: str = "/", **more: object) -> str:
    """A line of Caddy's log."""
    request = {"remote_ip": "10.0.0.9", "proto": "HTTP/1.1", "method": "GET", "host": f"{app}.localhost:80", "uri": uri}
    told: dict[str, object] = {
        "level": "info",
        "ts": at,
        "logger": f"http.log.access.{app}",
        "msg": "handled request",
        "request": request | {"headers": {"Authorization": ["SECRET"]}},
        "duration": 0.0031,
        "size": 12,
        "status": 200,
        "resp_headers": {"X-Request-Id": ["the-id"], "X-Secret": ["SECRET"]},
    }
    return json.dumps(told | more, separators=(",", ":")) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a line of the app `hello`."""
    path = tmp_path / "requests.log"
    path.write_text(entry("hello", 1764032523.000042, "/a?b=c"))
    return path


def requests(log: Path, since: float = 0.0) -> Requests:
    return Requests("hello", log, ["hello.localhost", "www.example.org"], since)


def paths(lines: list[Line]) -> list[str]:
    """The paths that were asked for."""
    return [line.text.split()[2] for line in lines]


def test_a_request_is_a_line(log: Path) -> None:
    assert list(map(str, requests(log).past([], 5))) == [
        '2025-11-25T01:02:03.000042Z router: 10.0.0.9 "GET /a?b=c HTTP/1.1" 200 12 0.003s the-id'
    ]


def test_only_the_apps_requests_are_lines(log: Path) -> None:
    upper = {"remote_ip": "10.0.0.9", "proto": "HTTP/2.0", "method": "GET", "host": "WWW.example.org", "uri": "/upper"}
    with log.open("a") as more:
        more.write(entry("hello-2", 1, "/http.log.access.hello"))
        more.write(entry("hell", 1, '/"http.log.access.hello"'))
        more.write(entry("other", 1, "/nobody", logger="http.log.access"))
        more.write(entry("other", 2, request=upper, logger="http.log.access", resp_headers={}))
        more.write('{"logger":"http.log.access.hello"}\n[]\n"http.log.access.hello"\n\n\x00\n')
        more.write(entry("hello", 3, '/"\x1b[31m\n', status=503))
        more.write(entry("hello", 4, "/half")[:-1])
    lines = requests(log).past([], 9)
    assert paths(lines) == ["/a?b=c", "/upper", "/%22"]
    assert lines[1].text == '10.0.0.9 "GET /upper HTTP/2.0" 200 12 0.003s'
    assert not any("SECRET" in line.text or "\x1b" in line.text for line in lines)
    assert paths(requests(log, since=2.5).past([], 9)) == ["/a?b=c", "/%22"]
    assert paths(merged(lines, 1)) == ["/a?b=c"], "by time"


def test_the_log_before_the_log(log: Path) -> None:
    older, oldest = (log.with_name(f"requests-2025-11-2{day}T00-00-00.000.log") for day in (3, 1))
    older.write_text(entry("hello", 1764032400, "/older") * 2)
    oldest.write_text(entry("hello", 1764032300, "/oldest"))
    assert paths(requests(log).past([], 9)) == ["/oldest", "/older", "/older", "/a?b=c"]
    assert paths(merged(requests(log).past([], 2), 2)) == ["/older", "/a?b=c"]
    log.unlink()
    assert paths(requests(log).past([], 1)) == ["/older", "/older"]


def test_following_goes_on_in_the_next_file(log: Path) -> None:
    told: list[Line] = []
    followed = requests(log)
    followed.past([], 0)
    followed.follow(Wanted("hello"), told.append)

    def heard(*wanted: str) -> None:
        eventually(lambda: paths(told) == list(wanted), 5, f"{wanted}")

    with log.open("a") as more:
        line = entry("hello", 5, "/one")
        more.write(line[:50])
        more.flush()
        throughout(lambda: not told, 3 * _LOOK_AGAIN_SECONDS, "half a line is none, though it has been looked at")
        more.write(line[50:] + entry("else", 6, "/else"))
        more.flush()
        heard("/one")
        log.rename(log.with_name("requests-2026-11-25T01-02-03.000.log"))
        more.write(entry("hello", 7, "/last"))
    log.write_text(entry("hello", 8, "/first"))
    heard("/one", "/last", "/first")
    with log.open("a") as more:
        more.write(entry("hello", 9, "/next"))
    heard("/one", "/last", "/first", "/next")


def test_what_came_for_an_earlier_app_of_the_name_is_not_shown() -> None:
    def history(*releases: tuple[float, str]) -> list[tuple[Release, None]]:
        plain = {
            "app": "a",
            "commit": "",
            "image": "",
            "ports": [],
            "has_healthcheck": False,
            "formation": {},
            "by": "",
        }
        return [(Release(**plain, at=at, why=why), None) for at, why in releases]  # type: ignore[arg-type]

    assert requests_since(history((5, "Deploy 123"), (9, "Restart"))) == 5
    assert requests_since(history((5, "Deploy 123"), (9, "Rename from other"), (11, "Restart"))) == 9
    assert requests_since([]) == math.inf


def test_a_process_type_cannot_be_called_as_the_router_is() -> None:
    with pytest.raises(NapError) as refused:
        manifest_of("shop", {"Procfile": b"web: a\nrouter: b\n"})
    assert str(refused.value) == "shop: Procfile: line 2: nap uses the name router itself"
    assert refused.value.advice[0] == "Give the process type another name."
