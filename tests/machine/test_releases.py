"""Releases: numbered, kept, shown, and gone back to; on the host and over ssh."""

import json
import re

import pytest

from tests.fleet_apps import pushed
from tests.nap import Nap, Pushed, Pusher, answer, eventually, runs


def listed(pusher: Pusher, *words: str) -> list[dict[str, str]]:
    """What a listing over ssh says, as JSON."""
    done = pusher.ssh_command(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.fixture
def two(pusher: Pusher, live: Pushed) -> list[str]:
    """The commits of v1 and v2, which are live, and of v3, which failed."""
    commits = [pusher.git("rev-parse", "HEAD"), pusher.commit(index_html="two")]
    pushed(pusher)
    commits.append(pusher.commit(Dockerfile=runs("echo no database; exit 3")))
    assert pusher.push().status == 1
    return commits


def test_releases_are_listed_the_newest_first(nap: Nap, pusher: Pusher, two: list[str]) -> None:
    rows = listed(pusher, "releases", pusher.app)
    assert [(row["release"], row["state"], row["why"], row["by"]) for row in rows] == [
        ("v3", "failed", f"Deploy {two[2][:7]}", pusher.user),
        ("v2", "current", f"Deploy {two[1][:7]}", pusher.user),
        ("v1", "live", f"Deploy {two[0][:7]}", pusher.user),
    ]
    failure = "web.1 exited with status 3 before it answered on port 8080"
    assert [row["reason"] for row in rows] == [f"{pusher.app} v3 {failure}", "", ""]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["at"]) for row in rows)
    table = nap.run("releases", pusher.app).stdout.splitlines()
    assert table[0].split() == ["release", "state", "why", "by", "at", "reason"]
    assert table[2].endswith(f"Z  {failure}")
    assert [line.split()[0] for line in table[2:]] == ["v3", "v2", "v1"]


def test_a_release_tells_what_it_is_and_why_it_failed(pusher: Pusher, two: list[str]) -> None:
    facts = json.loads(pusher.ssh_command("releases:info", pusher.app, "v3", "--json").stdout)
    assert facts["commit"] == two[2]
    assert facts["reason"] == f"{pusher.app} v3 web.1 exited with status 3 before it answered on port 8080"
    assert f"commit     {two[1]}" in pusher.ssh_command("releases:info", pusher.app).stdout.splitlines()
    for wrong, status, why in (
        ("v9", 1, f"{pusher.app} has no release v9"),
        ("x", 2, "expected a release such as v3, got 'x'"),
    ):
        refused = pusher.ssh_command("releases:info", pusher.app, wrong)
        assert (refused.returncode, refused.stderr.splitlines()[0]) == (status, f" !     {why}")


def test_a_release_tells_its_limits_and_that_it_is_stopped(pusher: Pusher, live: Pushed) -> None:
    assert pusher.ssh_command("resource:limit", pusher.app, "--memory", "64m", "--cpu", "0.5").returncode == 0
    assert pusher.ssh_command("ps:stop", pusher.app).returncode == 0
    before, now = (
        json.loads(pusher.ssh_command("releases:info", pusher.app, release, "--json").stdout)
        for release in ("v2", "v3")
    )
    assert (before["stopped"], before["limits"]) == ("", "web memory=64m cpu=0.5")
    assert (now["stopped"], now["limits"]) == ("yes", "web memory=64m cpu=0.5")


def test_releases_are_refs_that_the_pusher_can_fetch(pusher: Pusher, two: list[str]) -> None:
    pusher.git("fetch", "--quiet", "nap", "refs/nap/*:refs/nap/*")
    names = pusher.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/nap").splitlines()
    assert names == [f"refs/nap/v{number} {commit}" for number, commit in enumerate(two, start=1)]


def test_rollback_is_a_new_release_without_a_build(nap: Nap, pusher: Pusher, two: list[str]) -> None:
    back = pusher.ssh_command("rollback", pusher.app)
    assert back.returncode == 0, back.stdout + back.stderr
    assert back.stdout.splitlines()[0] == "-----> Starting v4: web.1"
    assert f"=====> {pusher.app} v4 is live" in back.stdout
    assert answer(back.stdout.split()[-1]) == "one"
    images = [json.loads(nap.run("releases:info", pusher.app, v, "--json").stdout)["image"] for v in ("v1", "v4")]
    assert images[0] == images[1]
    assert listed(pusher, "releases", pusher.app)[0]["why"] == "Rollback to v1"

    forth = pusher.ssh_command("rollback", pusher.app, "v2")
    assert answer(forth.stdout.split()[-1]) == "two"
    for wrong, why in {
        "v3": f"{pusher.app} has no release v3 that was live",
        "v17": f"{pusher.app} has no release v17 that was live",
    }.items():
        refused = pusher.ssh_command("rollback", pusher.app, wrong)
        assert refused.returncode == 1
        assert f" !     {why}" in refused.stdout.splitlines()
    assert [row["release"] for row in listed(pusher, "releases", pusher.app)] == ["v5", "v4", "v3", "v2", "v1"]


def test_rollback_undoes_a_change_of_variables_and_then_goes_further_back(pusher: Pusher, live: Pushed) -> None:
    pusher.commit(index_html="two")
    pushed(pusher)
    assert pusher.ssh_command("config:set", pusher.app, "BAD=1").returncode == 0
    assert pusher.ssh_command("resource:limit", pusher.app, "--memory=64m").returncode == 0
    for text in ("two", "one"):
        back = pusher.ssh_command("rollback", pusher.app)
        assert back.returncode == 0, back.stdout + back.stderr
        assert answer(back.stdout.split()[-1]) == text
        assert "BAD" not in pusher.ssh_command("config", pusher.app).stdout
        assert pusher.ssh_command("ps:restart", pusher.app).returncode == 0
    whys = [row["why"] for row in listed(pusher, "releases", pusher.app)]
    assert whys[:4] == ["Restart", "Rollback to v1", "Restart", "Rollback to v2"]
    refused = pusher.ssh_command("rollback", pusher.app)
    assert "no release before v8, which is v1 again, was live with other" in refused.stdout


def test_rollback_with_nothing_to_go_back_to(pusher: Pusher, live: Pushed) -> None:
    refused = pusher.ssh_command("rollback", pusher.app)
    assert refused.returncode == 1
    why = "no release before v1 was live with other code, commands, checks, variables, port or protocol"
    assert f" !     {pusher.app} has nothing to go back to: {why}" in refused.stdout.splitlines()
    assert answer(live.url) == "one"


def test_pushing_again_does_not_undo_a_rollback(pusher: Pusher, live: Pushed) -> None:
    commit = pusher.commit(index_html="two")
    pushed(pusher)
    assert pusher.ssh_command("rollback", pusher.app).returncode == 0
    again = pusher.push()
    assert (again.status, answer(again.url)) == (0, "one")
    assert f"       {commit[:7]} was v2. To run it again: rollback {pusher.app} v2" in again.lines
    assert len(listed(pusher, "releases", pusher.app)) == 3
    pusher.commit(index_html="three")
    assert answer(pushed(pusher).url) == "three"


def test_processes_are_listed_with_their_addresses(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    (row,) = listed(pusher, "ps", pusher.app)
    assert row == {"process": "web.1", "release": "v1", "state": "running", "address": live.url}
    (container,) = nap.containers(pusher.app)
    nap.docker("pause", container)
    eventually(lambda: not pusher.announcements(), 5, "withdrawn")
    (row,) = listed(pusher, "ps", pusher.app)
    assert row == {"process": "web.1", "release": "v1", "state": "unhealthy", "address": ""}
    nap.docker("unpause", container)
    eventually(pusher.announcements, 5, "announced again")
