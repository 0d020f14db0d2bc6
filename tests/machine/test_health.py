"""Checks: an instance is announced when it passes them, and started anew when it fails them later."""

import json

from nap_receiver.model.app_url import url_of
from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, runs, throughout

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
        "http 9998 /": {"path": "/", "port": 9998},
        "tcp 9999": {"listening": True, "port": 9999},
        "command sh -c 'exit 3'": {"command": ["sh", "-c", "exit 3"]},
    }
    url = url_of(pusher.app, nap.settings)
    answers = {
        "http 8080 /health": f"       GET {url}/health: 404 Not Found: <HTML><HEAD><TITLE>404 Not Found</TITLE></HEAD>",
        "command sh -c 'exit 3'": "       command sh -c 'exit 3' ended with status 3",
        "http 9998 /": f"       GET {url}/: no answer (Failed to connect to ",
    }
    for number, (told, check) in enumerate(checks.items(), start=2):
        commit(pusher, runs(noisy), check | {"wait": 0, "attempts": 3, "timeout": 1})
        done = pusher.push()
        assert done.status == 1
        assert f" !     {pusher.app} v{number} web.1: its check ({told}) failed 3 times" in done.lines
        last = done.lines.index("       my last words")
        assert done.lines[last - 1].startswith(answers.get(told, "-----> Starting "))
        assert nap.leftovers(pusher.app, number) == []
    assert answer(live.url) == "one"


SHOWS = """\
FROM nap/busybox
COPY . /www
RUN chmod 755 /www/cgi-bin/show
EXPOSE 8080
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def test_what_dokkus_checks_and_scripts_say_is_done(nap: Nap, pusher: Pusher) -> None:
    url = url_of(pusher.app, nap.settings)
    odd = 'it\'s "quoted" \\ $HOME %s'
    asks = HEALTH | {"path": "/cgi-bin/show", "httpHeaders": [{"name": "Cookie", "value": odd}]}
    on_failure = {"command": "echo told > /tmp/told", "url": "http://127.0.0.1:9/etcd"}
    warns = HEALTH | {"path": "/nowhere", "warn": True, "onFailure": on_failure}
    scripts = {"predeploy": "echo before with $NAP_RELEASE", "postdeploy": "echo after with $NAP_RELEASE"}
    document = {
        "healthchecks": {"web": [asks | {"content": f"two\nlines: {odd}\nfor {url}\n"}, warns]},
        "scripts": {"dokku": scripts},
        "cron": [],
    }
    (pusher.repository / "cgi-bin").mkdir()
    show = '#!/bin/sh\nprintf "\\r\\ntwo\\nlines: %s\\n" "$HTTP_COOKIE"\n'
    show += 'echo "for $HTTP_X_FORWARDED_PROTO://$HTTP_HOST"\n'
    (pusher.repository / "cgi-bin" / "show").write_text(show)
    pusher.commit(Dockerfile=SHOWS, app_json=f"// as Dokku takes it\n{json.dumps(document)}")
    done = pushed(pusher)
    assert " !     app.json: nap ignores cron" in done.lines
    (warned,) = [line for line in done.lines if "/nowhere) failed" in line]
    assert (
        warned == f" !     {pusher.app} v1 web.1: its check (http 8080 /nowhere) failed 2 times; this check only warns"
    )
    assert done.lines[done.lines.index(warned) + 1].startswith(f"       GET {url}/nowhere: 404 Not Found")
    assert done.lines.index("       before with v1") < done.lines.index(warned)
    assert done.lines.index("       after with v1") > done.lines.index(f"       {done.url}")
    assert nap.docker("exec", container(nap, pusher), "cat", "/tmp/told") == "told"
    assert any("onFailure.url was not called: 127.0.0.1 is an address of the nap" in line for line in done.trouble)

    document["healthchecks"] = {"web": [asks | {"content": "two\nlines: others"}]}
    pusher.commit(app_json=json.dumps(document))
    failed = pusher.push()
    assert failed.status == 1
    assert any('(http 8080 /cgi-bin/show, "two lines: others" in the answer) failed' in line for line in failed.lines)
    assert f"       GET {url}/cgi-bin/show: 200 OK, without that content: two" in failed.lines
    assert nap.leftovers(pusher.app, 2) == []


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
    before = started(nap, name)
    nap.docker("exec", name, "rm", "/www/health")
    eventually(lambda: not pusher.announcements(), 5, "withdrawn")
    eventually(pusher.announcements, 15, "started anew, and announced")
    assert started(nap, name) != before


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


def test_readiness_withdraws_and_announces_again_without_a_restart(nap: Nap, pusher: Pusher) -> None:
    start = "mkdir /www; touch /www/ready; exec httpd -f -p 8080 -h /www"
    ready = {"type": "readiness", "path": "/ready", "wait": 1, "attempts": 2, "timeout": 1}
    commit(pusher, runs(start), ready)
    pushed(pusher)
    name = container(nap, pusher)
    before = started(nap, name)
    nap.docker("exec", name, "rm", "/www/ready")
    eventually(lambda: not pusher.announcements(), 20, "withdrawn")
    nap.docker("exec", name, "touch", "/www/ready")
    eventually(pusher.announcements, 20, "announced again")
    assert started(nap, name) == before


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
