"""Every git that people push with is served alike: what each shows of a push, and how it ends."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.core.deploy_log import is_over, log_of, logs
from tests.clients import CLIENTS, NICKNAME, Client, Git, url
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, runs

MASTER = "refs/heads/master:refs/heads/master"
KEPT = ["nap.deploy=no"]
"""The push options of those tests that need a repository and no app."""


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Each of them."""
    yield request.param


def there(pusher: Pusher, ref: str = "refs/heads/master") -> str:
    """The commit that nap's side has, or nothing."""
    words = ["git", f"--git-dir={pusher.bare}", "for-each-ref", "--format=%(objectname)", ref]
    return subprocess.run(words, text=True, capture_output=True, check=True).stdout.strip()


def test_pushes_deploy_and_what_runs_already_is_only_said(nap: Nap, pusher: Pusher, client: Client) -> None:
    commit = pusher.commit(Dockerfile=HTTPD, index_html="one")
    first = client.push(pusher, MASTER)
    assert first.status == 0, first.text
    told = [line for line in first.lines if line.startswith(("----->", "=====>"))]
    assert told[0] == f"-----> {pusher.app}: building {commit[:7]} from master"
    assert told[1].startswith(f"-----> Image {nap.settings.registry.address}/{pusher.app}@sha256:")
    assert told[2] == "-----> Starting v1: web.1"
    assert re.fullmatch(rf"=====> {pusher.app} v1 is live \(\d+\.\d s\)", told[3])
    assert any(re.fullmatch(r"       \[2/\d\] COPY \. /www( \(CACHED\))?", line) for line in first.lines)
    assert answer(first.url) == "one"

    commit = pusher.commit(index_html="two")
    changed = client.push(pusher, MASTER)
    assert changed.status == 0, changed.text
    assert f"=====> {pusher.app} v2 is live" in changed.text
    assert answer(changed.url) == "two"

    again = client.push(pusher, MASTER)
    assert again.status == 0, again.text
    if client.hears_of_what_is_there:
        assert f"=====> {pusher.app} v2 already runs {commit[:7]}" in again.lines
        assert again.url == changed.url
    assert len(logs(nap.state, pusher.app)) == 2


def test_failed_deploy_fails_the_push_and_is_tried_again(
    nap: Nap, pusher: Pusher, live: Pushed, client: Client
) -> None:
    commit = pusher.commit(Dockerfile=runs("echo there is no database >&2; exit 3"))
    failed = client.push(pusher, MASTER)
    assert failed.status != 0, failed.text
    assert there(pusher) == commit
    assert answer(live.url) == "one"
    own_words, *why = last_lines(pusher.app, "v2")
    for line in why:
        assert line.lstrip(" !") in failed.text
    said = failed.lines if client.shows_why else log_of(nap.state, pusher.app, None).read_text().splitlines()
    assert own_words in said

    again = client.push(pusher, MASTER)
    eventually(lambda: len(logs(nap.state, pusher.app)) == 3, 20, "another try is made")
    log = log_of(nap.state, pusher.app, None)
    eventually(lambda: is_over(log), 20, "it has ended, with or without somebody to hear it")
    told = again.text if client.hears_of_what_is_there else log.read_text()
    for line in last_lines(pusher.app, "v3"):
        assert line.lstrip(" !") in told
    if client.hears_of_what_is_there:
        assert again.status != 0
    assert answer(live.url) == "one"


def last_lines(app: str, release: str) -> list[str]:
    """How the story of that deploy ends."""
    return [
        "       there is no database",
        f" !     {app} {release} web.1 exited with status 3 before it answered on port 8080",
        " !     Fix it, commit, and push again; running instances were not changed.",
    ]


def test_push_options_arrive_and_a_forced_update_deploys(nap: Nap, pusher: Pusher, client: Client) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="first")
    kept = client.push(pusher, MASTER, options=[*KEPT, "colour=red"])
    assert kept.status == 0, kept.text
    (warning,) = kept.trouble
    assert warning.startswith('push option "colour=red" is unknown and ignored')
    assert any(line.startswith("       branch master kept, not deployed, as nap.deploy=no asks") for line in kept.lines)
    assert logs(nap.state, pusher.app) == []

    pusher.git("commit", "--quiet", "--amend", "--message", "The same by another name")
    forced = client.push(pusher, f"+{MASTER}")
    assert forced.status == 0, forced.text
    assert there(pusher) == pusher.git("rev-parse", "HEAD")
    assert answer(forced.url) == "first"


def test_other_refs_are_kept_and_can_go(nap: Nap, pusher: Pusher, client: Client) -> None:
    commit = pusher.commit(Dockerfile=HTTPD)
    assert client.push(pusher, MASTER, options=KEPT).status == 0
    pusher.git("tag", "v1.0")
    others = client.push(pusher, "refs/heads/master:refs/heads/feature", "refs/tags/v1.0:refs/tags/v1.0")
    assert others.status == 0, others.text
    deploys = f"branch feature kept; {pusher.app} deploys master. To deploy it: git push nap feature:master"
    assert f"       {deploys}" in others.lines
    assert "       tag v1.0 kept, not deployed" in others.lines
    assert there(pusher, "refs/tags/v1.0") == there(pusher, "refs/heads/feature") == commit

    gone = client.push(pusher, ":refs/heads/feature")
    assert gone.status == 0, gone.text
    assert "       branch feature deleted: nothing to deploy" in gone.lines
    assert there(pusher, "refs/heads/feature") == ""
    assert logs(nap.state, pusher.app) == []


def test_an_app_has_several_names_and_a_way_back(pusher: Pusher, client: Client, tmp_path: Path) -> None:
    names = [url(pusher), f"{url(pusher)}.git"]
    if client.reads_ssh_configuration:
        names.append(f"{NICKNAME}:{pusher.app}")
    for name in names:
        commit = pusher.commit(Dockerfile=HTTPD, index_html=name)
        pushed = client.push(pusher, MASTER, to=name, options=KEPT)
        assert pushed.status == 0, pushed.text
        assert there(pusher) == commit
    copy = tmp_path / "copy"
    cloned = client.clone(pusher, name, copy)
    assert cloned.status == 0, cloned.text
    assert pusher.git("-C", str(copy), "rev-parse", "HEAD") == commit
    assert (copy / "index.html").read_text() == name


def test_an_app_of_somebody_else_is_refused(nap: Nap, pusher: Pusher, client: Client, tmp_path: Path) -> None:
    commit = pusher.commit(Dockerfile=HTTPD)
    assert client.push(pusher, MASTER, options=KEPT).status == 0
    (tmp_path / "stranger").mkdir()
    stranger = Pusher(nap, f"stranger-with-{client.name}", tmp_path / "stranger")
    stranger.commit(Dockerfile=HTTPD, index_html="not yours")
    refused = client.push(stranger, f"+{MASTER}", to=url(pusher))
    assert refused.status != 0
    if client.shows_why:
        assert f" !     {stranger.app} may not push to {pusher.app}" in refused.text
        assert f"for: access:add {pusher.app} {stranger.app} push" in refused.text
    assert there(pusher) == commit


@pytest.mark.parametrize("version", [0, 1, 2])
def test_git_speaks_the_version_that_it_is_told_to(pusher: Pusher, version: int) -> None:
    git = Git(f"git-v{version}", version=version)
    commit = pusher.commit(Dockerfile=HTTPD)
    pushed = git.push(pusher, MASTER, options=KEPT)
    assert pushed.status == 0, pushed.text
    assert there(pusher) == commit
    assert git.version_spoken(pusher) == version
