"""From `git push` to an answering address, as the person who pushes sees it."""

import json
import re
from pathlib import Path

from tests.nap import HTTPD, Nap, Pusher, answer, eventually
from tests.visitors import visitors


def test_first_push_prints_an_address_that_answers(nap: Nap, pusher: Pusher) -> None:
    commit = pusher.commit(Dockerfile=HTTPD, index_html="one")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "one"
    assert pushed.lines[0] == f"-----> {pusher.app}: building {commit[:7]} from master"
    live = next(i for i, line in enumerate(pushed.lines) if line.startswith("=====> "))
    assert re.fullmatch(rf"=====> {pusher.app} v1 is live \(\d+\.\d s\)", pushed.lines[live])
    assert [line.strip() for line in pushed.lines[live + 1 : live + 3]] == [
        f"http://{pusher.app}.localhost:{nap.settings.router.http.port}",
        pushed.url,
    ]
    assert not [line for line in pushed.lines if "\x1b" in line]


def test_what_a_push_leaves_on_the_machine(nap: Nap, pusher: Pusher) -> None:
    commit = pusher.commit(Dockerfile=HTTPD, index_html="one")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text

    (container,) = nap.containers(pusher.app)
    about = json.loads(nap.docker("inspect", container))[0]
    image = f"{nap.settings.registry.address}/{pusher.app}"
    assert about["Config"]["Image"].startswith(f"{image}@sha256:")
    assert about["HostConfig"]["Init"] is True
    bindings = [b["HostIp"] for at in about["NetworkSettings"]["Ports"].values() for b in at]
    assert bindings == ["127.0.0.1"], "published on loopback only"
    environment = dict(line.split("=", 1) for line in about["Config"]["Env"])
    assert (environment["PORT"], environment["GIT_REV"], environment["NAP_APP"]) == ("8080", commit, pusher.app)
    labels = json.loads(nap.docker("inspect", "--format", "{{json .Config.Labels}}", f"{image}:{commit}"))
    assert labels == {"nap.app": pusher.app}

    ((key, value),) = pusher.announcements().items()
    assert key == f"/services/{pusher.app}/v1.web.1"
    assert isinstance(value, dict)
    assert value["ports"] == {"8080/tcp": value["port"]}
    assert pushed.url == f"http://{value['host']}:{value['port']}"
    assert (value["release"], value["process"]) == (1, "web")

    release = nap.keys(f"/nap/apps/{pusher.app}/releases/")
    assert isinstance(record := release[f"/nap/apps/{pusher.app}/releases/00000001"], dict)
    assert (record["commit"], record["image"]) == (commit, about["Config"]["Image"])
    assert not nap.keys(f"/nap/apps/{pusher.app}/lock"), "the lock is given back"
    (log,) = (nap.state.deploy_logs / pusher.app).iterdir()
    *lines, last = [line.rstrip() for line in log.read_text().splitlines()]
    assert lines == pushed.lines[: len(lines)]
    assert last.startswith("-- succeeded ")


def test_announcement_is_leased(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    etcd = nap.etcd()
    _, about = etcd._client.get(f"/services/{pusher.app}/v1.web.1")
    lease = etcd._client.get_lease_info(about.lease_id)
    etcd.close()
    assert 0 < lease.grantedTTL <= 60


def test_changes_leave_no_moment_without_an_answer(pusher: Pusher, nap: Nap) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="0")
    assert pusher.push().status == 0
    with visitors(nap, pusher.app) as visits:
        pusher.commit(index_html="1")
        assert pusher.push().status == 0
        for words in (("config:set", "A=1"), ("ps:scale", "web=2"), ("rollback",), ("ps:scale", "web=1")):
            done = pusher.ssh_command(words[0], pusher.app, *words[1:])
            assert done.returncode == 0, done.stdout
    assert visits.failed == []
    assert visits.asked > 50
    eventually(lambda: len(nap.containers(pusher.app)) == 1, 10, "only the new instance is left")
    for old in range(1, 5):
        eventually(lambda old=old: nap.runs(pusher.app, old) == [], 10, f"v{old} is gone")  # type: ignore[misc]


def test_pushing_what_runs_prints_its_address(pusher: Pusher) -> None:
    commit = pusher.commit(Dockerfile=HTTPD)
    first = pusher.push()
    again = pusher.push()
    assert again.status == 0
    assert f"=====> {pusher.app} v1 already runs {commit[:7]}" in again.lines
    assert again.url == first.url


def test_pushing_again_after_a_failure_deploys_again(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FROM nap/busybox\nRUN exit 7\n")
    assert pusher.push().status == 1
    again = pusher.push()
    assert again.status == 1
    assert "it exited with status 7" in again.text


def test_second_push_waits_and_is_told_for_whom(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE", "RUN echo slow; sleep 4\nEXPOSE"), index_html="one")
    first = pusher.start_push()
    eventually(lambda: nap.keys(f"/nap/apps/{pusher.app}/lock"), 10, "the first push holds the lock")
    commit = pusher.git("rev-parse", "--short=7", "HEAD")
    pusher.commit(index_html="two")
    second = pusher.push()
    said, _ = first.communicate(timeout=30)
    assert first.returncode == 0, said
    assert second.status == 0, second.text
    assert f"has been deploying {commit} since" in second.lines[0]
    assert answer(second.url) == "two"
    assert sorted(nap.keys(f"/nap/apps/{pusher.app}/releases/")) == [
        f"/nap/apps/{pusher.app}/releases/0000000{number}" for number in (1, 2)
    ]


def test_different_apps_deploy_side_by_side(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    others = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        others.append(Pusher(nap, f"side-by-side-{number}", tmp_path / str(number)))
    everyone = [pusher, *others]
    for each in everyone:
        each.commit(Dockerfile=HTTPD, index_html=each.app)
    pushes = [each.start_push() for each in everyone]
    for each, process in zip(everyone, pushes, strict=True):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "waiting" not in said
        (value,) = each.announcements().values()
        assert isinstance(value, dict)
        assert answer(f"http://{value['host']}:{value['port']}") == each.app


def test_other_refs_are_kept_and_said(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    pusher.git("tag", "v1.0")
    pushed = pusher.push("nap", "HEAD:refs/heads/feature", "v1.0")
    assert pushed.status == 0
    assert "git push nap feature:master" in pushed.text
    assert "tag v1.0 kept" in pushed.text
    assert "building" not in pushed.text
    gone = pusher.push("nap", ":master")
    assert gone.status == 0
    assert "keeps running" in gone.text
    assert len(nap.containers(pusher.app)) == 1


def test_hook_in_any_bare_repository(nap: Nap, pusher: Pusher) -> None:
    bare = pusher.folder / f"{pusher.app}.git"
    pusher.git("init", "--quiet", "--bare", str(bare))
    (bare / "hooks" / "post-receive").symlink_to(nap_hook())
    pusher.git(f"--git-dir={bare}", "config", "nap.state", str(nap.folder))
    pusher.commit(Dockerfile=HTTPD, index_html="by the hook")
    pushed = pusher.push(str(bare), "HEAD:refs/heads/main")
    assert pushed.status == 0
    assert answer(pushed.url) == "by the hook"


def test_ports_are_a_map_and_port_names_the_first(nap: Nap, pusher: Pusher) -> None:
    dockerfile = "FROM nap/busybox\nEXPOSE 9090 7070/udp 8081\nCMD exec httpd -f -p $PORT -h /etc\n"
    pusher.commit(Dockerfile=dockerfile)
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    assert set(value["ports"]) == {"9090/tcp", "7070/udp", "8081/tcp"}
    assert value["port"] == value["ports"]["8081/tcp"]


def test_without_expose_port_5000_is_the_one(pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FROM nap/busybox\nCMD exec httpd -f -p $PORT -h /etc\n")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    assert set(value["ports"]) == {"5000/tcp"}


def test_odd_names_modes_and_links_arrive(pusher: Pusher) -> None:
    files = pusher.repository / "www"
    files.mkdir()
    for raw in (b"a:b", b"a\\b", b"caf\xe9", b"caf\xc3\xa9", b"x" * 150):
        (files / raw.decode("utf-8", "surrogateescape")).write_text("here")
    (files / "run").write_text("#!/bin/sh\n")
    (files / "run").chmod(0o755)
    (files / "link").symlink_to("run")
    (pusher.repository / "ignored").write_text("secret")
    listing = "find /www | sort | od -v -c; ls -l /www/run /www/link; test ! -e /app/ignored"
    dockerfile = f"FROM nap/busybox\nCOPY www /www\nCOPY . /app\nRUN {listing}\n"
    pusher.commit(Dockerfile=dockerfile + HTTPD.split("\n", 2)[2], _dockerignore="ignored\n")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    octal = re.sub(r"\s+", "", "".join(line.strip()[7:] for line in pushed.lines if re.match(r" +\d{7} ", line)))
    for name in ("/www/a:b\\n", "/www/a\\b\\n", "/www/caf351\\n", "/www/caf303251\\n", "x" * 150):
        assert name in octal
    assert re.search(r"-rwxr-xr-x .* /www/run", pushed.text)
    assert re.search(r"/www/link -> run", pushed.text)


def nap_hook() -> str:
    from tests.nap import ROOT

    return str(ROOT / "hooks" / "post-receive")


def test_scaled_up_and_down_without_a_build(nap: Nap, pusher: Pusher) -> None:
    unknown = nap.run("ps:scale", pusher.app, "web=2", ok=False)
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (1, f" !     app {pusher.app} does not exist")
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    said = nap.run("ps:scale", pusher.app, "web=2").stdout
    assert "building" not in said
    assert f"=====> {pusher.app} v2 is live" in said
    assert sorted(pusher.announcements()) == [f"/services/{pusher.app}/v2.web.{index}" for index in (1, 2)]
    pusher.commit(index_html="two")
    pushed = pusher.push()
    assert "Starting v3: web.1, web.2" in pushed.text, "counts survive deploys"
    nap.run("ps:scale", pusher.app, "web=1")
    assert list(pusher.announcements()) == [f"/services/{pusher.app}/v4.web.1"]
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    assert answer(f"http://{value['host']}:{value['port']}") == "two"
    for counts, why, status in (
        ("web=101", 'expected PROCESS=COUNT with a count from 0 to 100, got "web=101"', 2),
        ("web", 'expected PROCESS=COUNT with a count from 0 to 100, got "web"', 2),
        ("clock=2", f"{pusher.app} has no process type clock; there are: web", 1),
    ):
        refused = nap.run("ps:scale", pusher.app, counts, ok=False)
        assert refused.returncode == status
        assert why in refused.stdout + refused.stderr


def test_no_more_ports_are_published_than_the_settings_let(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE 8080", "EXPOSE 8080 9001-9200"), index_html="one")
    done = pusher.push()
    assert done.status == 0, done.text
    (told,) = pusher.announcements().values()
    assert isinstance(told, dict)
    assert list(told["ports"]) == ["8080/tcp", *(f"{port}/tcp" for port in range(9001, 9008))]
    (container,) = nap.containers(pusher.app)
    assert len(nap.docker("port", container).splitlines()) == 8
    left_out = ", ".join(f"{port}/tcp" for port in range(9008, 9013))
    assert done.trouble == [f"only 8 ports are published (container.ports), without {left_out} and 188 more"]
