"""The port that answers the web: who names it, and what nap does where an app listens on another one."""

import json

import pytest

from nap_receiver.model.app_url import url_of
from tests.fleet_apps import pushed
from tests.machine.test_config import environment_of
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, runs

UNNAMED = "FROM nap/busybox\nRUN mkdir /www && echo one >/www/index.html\n"
"""An image that names no port."""


def unnamed(command: str) -> str:
    """A Dockerfile without EXPOSE whose app is a shell command."""
    return f'{UNNAMED}CMD ["sh", "-c", {json.dumps(command)}]\n'


def serves(port: int, address: str = "") -> str:
    return f"httpd -f -p {address}{port} -h /www"


def give_time(pusher: Pusher, seconds: int) -> None:
    pusher.ssh_command("apps:create", pusher.app)
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", str(seconds))


def ports(pusher: Pusher) -> list[tuple[str, str, str]]:
    rows = json.loads(pusher.ssh_command("ports", pusher.app, "--json").stdout)
    return [(row["port"], row["web"], row["from"]) for row in rows]


def published(pusher: Pusher) -> set[str]:
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    return set(value["ports"])


def test_the_only_port_that_an_app_listens_on_is_taken_and_kept(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=unnamed(f"exec {serves(8000)}"))
    first = pushed(pusher)
    app = pusher.app
    notice = [
        f"{app} v1 web listens on 8000; nap expected 5000. The image names no port, so nap uses 8000.",
        "The image names no port: nap uses 8000, the port of v2.",
    ]
    how = f"       To keep it: Add EXPOSE 8000 to the Dockerfile, or type: ports:set {app} 8000"
    assert first.trouble == notice[:1]
    assert first.lines[first.lines.index(f" !     {notice[0]}") + 1] == how
    assert f"=====> {app} v2 is live" in first.text
    assert first.deploy_seconds < 30, "half the time that it has"
    assert answer(first.url) == "one\n"
    assert nap.leftovers(app, 1) == []
    assert published(pusher) == {"8000/tcp"}
    assert environment_of(nap, app)["PORT"] == "5000", "as when it was seen to listen on 8000"
    assert ports(pusher) == [("8000/tcp", "yes", "found")]
    assert "v3 is live" in pusher.ssh_command("ps:restart", app).stdout

    pusher.commit(Dockerfile=unnamed(f"exec {serves(8000)}"), another="file")
    second = pushed(pusher)
    assert second.trouble == notice[1:2] or second.trouble == [notice[1].replace("v2", "v3")]
    assert how in second.lines
    assert f"=====> {app} v4 is live" in second.text
    assert answer(second.url) == "one\n"

    assert "v5 is live" in pusher.ssh_command("ports:set", app, "8000").stdout
    assert environment_of(nap, app)["PORT"] == "8000"
    pusher.commit(another="file again")
    assert pushed(pusher).trouble == []
    assert ports(pusher) == [("8000/tcp", "yes", "ports:set")]


def test_a_debug_port_that_opens_first_is_not_taken(pusher: Pusher) -> None:
    idle = f"{serves(9229)} & sleep 4; exec {serves(5000)}"
    busy = f"{serves(9229)} & end=$(($(date +%s) + 9)); while [ $(date +%s) -lt $end ]; do :; done; exec {serves(5000)}"
    for number, command in enumerate((idle, busy), start=1):
        pusher.commit(Dockerfile=unnamed(command))
        done = pushed(pusher)
        assert done.trouble == []
        assert f"{pusher.app} v{number} is live" in done.text
        assert published(pusher) == {"5000/tcp"}


def test_healthcheck_that_passes_says_nothing_of_a_port_that_nobody_named(pusher: Pusher) -> None:
    check = "HEALTHCHECK --interval=5m CMD wget -q -O /dev/null http://127.0.0.1:8000/\nCMD"
    pusher.commit(Dockerfile=unnamed(f"exec {serves(8000)}").replace("CMD", check))
    done = pushed(pusher)
    assert "so nap uses 8000." in done.text
    assert answer(done.url) == "one\n"


def test_an_app_without_a_port_that_passes_its_checks_is_live(pusher: Pusher) -> None:
    checks = {"healthchecks": {"web": [{"type": "startup", "uptime": 3}]}}
    pusher.commit(Dockerfile=unnamed("exec sleep 1000"), app_json=json.dumps(checks))
    assert f"{pusher.app} v1 is live" in pushed(pusher).text


def test_a_check_that_finds_its_port_closed_says_which_one_is_open(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    checks = {"healthchecks": {"web": [{"path": "/", "attempts": 3, "wait": 1, "timeout": 1, "initialDelay": 2}]}}
    exposed = runs(f"mkdir /www; echo two >/www/index.html; exec {serves(3000)}")
    pusher.commit(Dockerfile=exposed, app_json=json.dumps(checks))
    done = pusher.push()
    assert done.status == 1
    assert done.trouble[:3] == [
        f"{pusher.app} v2 web.1: its check (http 8080 /) failed 3 times",
        "It listens on 3000; nap expected 8080.",
        f"Have the Dockerfile EXPOSE 3000 instead, or type: ports:set {pusher.app} 3000",
    ]
    assert any(line.startswith(f"       GET {url_of(pusher.app, nap.settings)}/: no answer") for line in done.lines)
    assert answer(live.url) == "one"
    pusher.commit(Dockerfile=exposed.replace("EXPOSE 8080\n", ""))
    done = pushed(pusher)
    assert f"{pusher.app} v3 web listens on 3000; nap expected 5000. The image names no port" in done.text
    assert answer(done.url) == "two\n"


@pytest.mark.parametrize(
    ("dockerfile", "where", "advice"),
    [
        (
            unnamed(f"{serves(8000)} & exec {serves(9000)}"),
            "did not answer on port 5000 within 6 s: it listens on 8000, 9000; nap expected 5000",
            "Choose the web port: EXPOSE 8000 in the Dockerfile, or type: ports:set {app} 8000",
        ),
        (
            runs("exec httpd -f -p 8000 -h /etc"),
            "did not answer on port 8080 within 6 s: it listens on 8000; nap expected 8080",
            "Have the Dockerfile EXPOSE 8000 instead, or type: ports:set {app} 8000",
        ),
        (
            unnamed(f"exec {serves(8000, '127.0.0.1:')}"),
            "did not answer on port 5000 within 6 s: it listens on 127.0.0.1:8000 only",
            "It must listen on 0.0.0.0 to be reachable.",
        ),
        (
            HTTPD.replace("EXPOSE", "EXPOSE 9090").replace('"8080", "-h"', '"9090", "-h"'),
            "did not answer on port 8080 within 6 s: it listens on 9090; nap expected 8080",
            "Add ENV PORT=9090 to the Dockerfile, or type: ports:set {app} 9090",
        ),
    ],
    ids=range(4),
)
def test_a_silent_app_is_told_where_it_listens(
    nap: Nap, pusher: Pusher, dockerfile: str, where: str, advice: str
) -> None:
    give_time(pusher, 6)
    pusher.commit(Dockerfile=dockerfile)
    done = pusher.push()
    assert done.status == 1
    assert done.trouble[0] == f"{pusher.app} v1 web.1 runs, but {where}"
    assert done.trouble[1] == advice.format(app=pusher.app)
    assert nap.leftovers(pusher.app, 1) == []


def test_all_instances_must_listen_on_that_port(nap: Nap, pusher: Pusher) -> None:
    give_time(pusher, 25)
    pusher.ssh_command("ps:scale", pusher.app, "web=2")
    pusher.commit(Dockerfile=unnamed(f"exec {serves(8000)}"))
    done = pushed(pusher)
    assert f"{pusher.app} v2 is live" in done.text
    assert len(pusher.announcements()) == 2
    odd = "case $NAP_PROCESS in web.1) exec httpd -f -p 8000 ;; esac; exec httpd -f -p 9000"
    pusher.commit(Dockerfile=unnamed(odd))
    done = pusher.push()
    assert done.status == 1
    assert "web.2 runs, but did not answer on port 8000 within 25 s: it listens on 9000; nap expected 8000" in done.text


def test_ports_set_holds_from_the_first_release_until_it_is_unset(nap: Nap, pusher: Pusher) -> None:
    app = pusher.app
    assert pusher.ssh_command("apps:create", app).returncode == 0
    none = pusher.ssh_command("ports", app)
    assert none.stdout == f"{app} was never deployed: its image may name a port. To choose one: ports:set {app} 8000\n"
    assert ports(pusher) == []
    for words, said in {
        ("ports:set", app, "8000"): f"=====> {app}: web port 8000, for its first release\n",
        ("ports:unset", app): f"=====> {app}: web port of the image, for its first release\n",
        ("ports:set", app, "08000"): f"=====> {app}: web port 8000, for its first release\n",
    }.items():
        done = pusher.ssh_command(*words)
        assert (done.returncode, done.stdout) == (0, said), words
    assert pusher.ssh_command("ports:set", app, "8000").stdout == f"=====> {app}: nothing changed\n"
    assert ports(pusher) == [("8000/tcp", "yes", "ports:set")]

    pusher.commit(Dockerfile=HTTPD.replace('"8080", "-h"', '"8000", "-h"'), index_html="one")
    first = pushed(pusher)
    assert first.trouble == []
    assert answer(first.url) == "one"
    assert published(pusher) == {"8000/tcp", "8080/tcp"}
    assert environment_of(nap, app)["PORT"] == "8000"
    assert ports(pusher) == [("8000/tcp", "yes", "ports:set"), ("8080/tcp", "no", "image")]

    nap.run("apps:rename", app, f"{app}-2")
    renamed = json.loads(nap.run("ports", f"{app}-2", "--json").stdout)
    assert renamed[0] == {"port": "8000/tcp", "web": "yes", "from": "ports:set"}
    nap.run("apps:rename", f"{app}-2", app)

    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "10")
    failed = pusher.ssh_command("ports:unset", app)
    assert failed.returncode == 1
    assert "did not answer on port 8080 within 10 s: it listens on 8000; nap expected 8080" in failed.stdout
    assert ports(pusher)[0] == ("8000/tcp", "yes", "ports:set"), "what did not come up changes nothing"
    pusher.commit(Dockerfile=HTTPD.replace('"8080", "-h"', '"8000", "-h"').replace("EXPOSE 8080", "EXPOSE 8000"))
    pushed(pusher)
    assert "is live" in pusher.ssh_command("ports:unset", app).stdout
    assert ports(pusher) == [("8000/tcp", "yes", "image")]
    assert "is live" in pusher.ssh_command("rollback", app).stdout, "to the last that was live with other ports"
    assert ports(pusher) == [("8000/tcp", "yes", "ports:set")]


@pytest.mark.parametrize("port", ["0", "65536", "http:80:8000", "8000/tcp", "-1", "8000 9000"])
def test_what_is_no_port_is_refused(nap: Nap, pusher: Pusher, port: str) -> None:
    pusher.ssh_command("apps:create", pusher.app)
    refused = nap.run("ports:set", pusher.app, "--", port, ok=False)
    assert refused.returncode == 2
    assert f"expected the port that the app listens on, from 1 to 65535, such as 8000, got '{port}'" in refused.stderr


def test_who_may_only_read_sees_the_ports(nap: Nap, pusher: Pusher) -> None:
    nap.run("apps:create", pusher.app)
    nap.run("access:add", pusher.app, pusher.user, "read")
    assert pusher.ssh_command("ports", pusher.app).returncode == 0
    for words in (("ports:set", pusher.app, "8000"), ("ports:unset", pusher.app)):
        assert pusher.ssh_command(*words).returncode == 1, words


def test_setting_the_variable_names_the_command(pusher: Pusher) -> None:
    pusher.ssh_command("apps:create", pusher.app)
    refused = pusher.ssh_command("config:set", pusher.app, "PORT=8000")
    assert refused.stderr.splitlines() == [
        " !     PORT is set by nap",
        " !     To choose the port: ports:set APP 8000, or EXPOSE 8000 in the Dockerfile.",
    ]
