"""Checks: an instance is announced when it passes them, and started anew when it fails them later."""

import json

import pytest

from tests.fleet_apps import pushed
from tests.machine import HTTPD, Nap, Pushed, Pusher, answer, eventually, runs, throughout

pytestmark = pytest.mark.machine

HEALTH = {"path": "/health", "wait": 1, "attempts": 2, "timeout": 1}


def commit(pusher: Pusher, dockerfile: str, *checks: dict[str, object], **files: str) -> None:
    document = json.dumps({"healthchecks": {"web": checks}})
    (pusher.repository / "app.json").write_text(document)
    pusher.commit(Dockerfile=dockerfile, **files)


def container(nap: Nap, pusher: Pusher, release: int = 1) -> str:
    (name,) = [name for name in nap.containers(pusher.app) if f".v{release}." in name]
    return name


def started(nap: Nap, name: str) -> str:
    return nap.docker("inspect", "--format", "{{.State.StartedAt}}", name)


def test_announced_when_its_path_answers(nap: Nap, pusher: Pusher) -> None:
    late = "(sleep 2; touch /www/health) & exec httpd -f -p 8080 -h /www"
    commit(pusher, runs(late).replace("EXPOSE", "RUN mkdir /www\nEXPOSE"), HEALTH | {"attempts": 9})
    process = pusher.start_push()
    eventually(lambda: nap.containers(pusher.app), 20, "the instance runs")
    assert not pusher.announcements(), "it answers 404 there"
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert pusher.announcements()


def test_a_check_that_fails_fails_the_deploy_with_the_reason(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    noisy = "echo my last words; exec httpd -f -p 8080 -h /etc"
    checks: dict[str, dict[str, object]] = {
        "http 8080 /health": {"path": "/health"},
        "tcp 9999": {"listening": True, "port": 9999},
        "command sh -c 'exit 3'": {"command": ["sh", "-c", "exit 3"]},
    }
    for number, (told, check) in enumerate(checks.items(), start=2):
        commit(pusher, runs(noisy), check | {"wait": 0, "attempts": 3, "timeout": 1})
        done = pusher.push()
        assert done.status == 1
        assert f" !     {pusher.app} v{number} web.1: its check ({told}) failed 3 times" in done.lines
        assert "       my last words" in done.lines
        assert nap.leftovers(pusher.app, number) == []
    assert answer(live.url) == "one"


def test_what_a_command_is_asked_reaches_the_container_unchanged(pusher: Pusher) -> None:
    odd = "a  b\n'\"$HOME%;#"
    script = 'test "$1" = "a  b\n\'\\"\\$HOME%;#"'
    commit(pusher, HTTPD, {"command": ["sh", "-c", script, "sh", odd], "wait": 0, "attempts": 1})
    pushed(pusher)


def test_the_first_try_waits_for_the_initial_delay(pusher: Pusher) -> None:
    late = "sleep 1; exec httpd -f -p 8080 -h /etc"
    commit(pusher, runs(late), {"listening": True, "attempts": 1, "wait": 0, "initialDelay": 2, "timeout": 1})
    pushed(pusher)


def test_unhealthy_later_is_withdrawn_and_started_anew(nap: Nap, pusher: Pusher) -> None:
    start = "mkdir /www; touch /www/health; exec httpd -f -p 8080 -h /www"
    commit(pusher, runs(start), HEALTH)
    pushed(pusher)
    name = container(nap, pusher)
    before = nap.docker("inspect", "--format", "{{.Id}}", name)
    nap.docker("exec", name, "rm", "/www/health")
    eventually(lambda: not pusher.announcements(), 5, "withdrawn")
    eventually(pusher.announcements, 15, "started anew, and announced")
    assert nap.docker("inspect", "--format", "{{.Id}}", name) != before


def test_asked_only_at_the_start_where_it_says_so(nap: Nap, pusher: Pusher) -> None:
    start = "mkdir /www; touch /www/health /www/alive; exec httpd -f -p 8080 -h /www"
    alive = {"type": "liveness", "path": "/alive", "wait": 1, "attempts": 1}
    commit(pusher, runs(start), HEALTH | {"type": "startup"}, alive)
    pushed(pusher)
    name = container(nap, pusher)
    before = started(nap, name)
    nap.docker("exec", name, "rm", "/www/health")
    # Were it asked again, it would be withdrawn after two tries a second apart, as in the test before this one.
    throughout(pusher.announcements, 3, "announced")
    nap.docker("exec", name, "rm", "/www/alive")
    eventually(lambda: not pusher.announcements(), 5, "withdrawn")
    eventually(pusher.announcements, 15, "started anew, and announced")
    assert started(nap, name) != before


def test_no_process_switches_when_one_is_not_good(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    (pusher.repository / "Procfile").write_text("web: exec httpd -f -p 8080 -h /www\nworker: exec sleep 1000\n")
    check = {"healthchecks": {"worker": [{"command": ["false"], "attempts": 2, "wait": 1}]}}
    (pusher.repository / "app.json").write_text(json.dumps(check))
    pusher.commit(index_html="two")
    done = pusher.push()
    assert done.status == 1
    assert f" !     {pusher.app} v2 worker.1: its check (command false) failed 2 times" in done.lines
    assert answer(live.url) == "one"
    assert nap.leftovers(pusher.app, 2) == []
