"""One deploy at a time per app: who waits, who gives way, who is stopped, and what becomes of one nobody waits for."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from nap_receiver.core.channel import Channel
from nap_receiver.store.etcd import Etcd
from nap_receiver.store.ledger import Ledger
from nap_receiver.store.lock import Lock, Turn, _wait, turn, why_over
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, read_until, rest

SOMEONE = {
    "who": "someone",
    "what": "0000000",
    "doing": "deploying 0000000",
    "since": 0.0,
    "host": "elsewhere",
    "log": "",
}
"""Another's turn."""

SLOW = HTTPD.replace("EXPOSE", "RUN echo begin {app}; sleep {seconds}; echo end\nEXPOSE")


def slow_push(pusher: Pusher, page: str, seconds: float, *words: str) -> "subprocess.Popen[str]":
    """A push whose build has just begun to take its time."""
    pusher.commit(Dockerfile=SLOW.format(seconds=seconds, app=pusher.app), index_html=page)
    process = pusher.start_push(*words)
    read_until(process, "       begin")
    return process


def queued(nap: Nap, pusher: Pusher, what: str) -> None:
    """A push of `what` waits."""

    def waits() -> bool:
        return any(what == turn["what"] for turn in nap.keys(f"/nap/apps/{pusher.app}/next").values())  # type: ignore[index]

    eventually(waits, 15, f"{what} waits")


def test_a_second_push_waits_and_a_third_takes_its_place(nap: Nap, pusher: Pusher) -> None:
    first = slow_push(pusher, "one", 10)
    one, two, three = pusher.git("rev-parse", "HEAD")[:7], "", ""
    two = pusher.commit(Dockerfile=HTTPD, index_html="two")[:7]
    second = pusher.start_push()
    queued(nap, pusher, two)
    three = pusher.commit(index_html="three")[:7]
    third = pusher.start_push()
    queued(nap, pusher, three)

    said = rest(second)
    assert second.returncode == 1, said
    lines = said.splitlines()
    assert re.fullmatch(rf"-----> waiting: {pusher.user} has been deploying {one} since \d\d:\d\d:\d\d", lines[0]), said
    assert f"       | -----> {pusher.app}: building {one} from master" in lines, "the log of the one it waits for"
    assert f" !     {two} was not deployed: superseded by {pusher.user}'s push of {three}" in lines

    assert "v1 is live" in rest(first)
    said = rest(third)
    assert (first.returncode, third.returncode) == (0, 0), said
    assert f"       | =====> {pusher.app} v1 is live" in said, "to its end"
    assert said.index("v1 is live") < said.index(f"building {three}") < said.index("v2 is live")
    assert answer(re.findall(r"http://\S+", said)[-1]) == "three"
    rows = json.loads(pusher.ssh_command("builds", pusher.app, "--json").stdout)
    assert [row["result"] for row in rows] == ["succeeded", "superseded", "succeeded"]
    assert not nap.keys(f"/nap/apps/{pusher.app}/lock") | nap.keys(f"/nap/apps/{pusher.app}/next")


def test_other_apps_do_not_wait(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    busy = slow_push(pusher, "one", 60)
    (tmp_path / "other").mkdir()
    other = Pusher(nap, "another-app-meanwhile", tmp_path / "other")
    other.commit(Dockerfile=HTTPD, index_html="other")
    pushed = other.push()
    assert pushed.status == 0, pushed.text
    assert "waiting" not in pushed.text
    assert busy.poll() is None
    assert other.ssh_command("builds:cancel", pusher.app).returncode == 1, "may not"
    assert pusher.ssh_command("builds:cancel", pusher.app).returncode == 0


def test_scaling_waits_for_a_deploy_and_is_not_superseded(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    deploy = slow_push(pusher, "two", 10)
    scaling = subprocess.Popen(
        pusher.ssh_words("ps:scale", pusher.app, "web=2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    read_until(scaling, "-----> waiting: ")
    last = pusher.commit(index_html="three")[:7]
    third = pusher.start_push()
    queued(nap, pusher, last)
    assert "v2 is live" in rest(deploy)
    assert "is live" in rest(scaling)
    assert "is live" in rest(third)
    assert (scaling.returncode, third.returncode) == (0, 0)
    assert len(pusher.announcements()) == 2


def test_cancelled_deploy_leaves_nothing_and_says_by_whom(nap: Nap, pusher: Pusher) -> None:
    nothing = nap.run("builds:cancel", "no-such-app-here", ok=False)
    assert (nothing.returncode, nothing.stderr.splitlines()[0]) == (1, " !     app no-such-app-here does not exist")
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    before = pusher.push()
    nothing = nap.run("builds:cancel", pusher.app, ok=False)
    assert (nothing.returncode, nothing.stderr.splitlines()[0]) == (
        1,
        f" !     nothing is being deployed to {pusher.app}",
    )
    deploy = slow_push(pusher, "two", 60)
    commit = pusher.git("rev-parse", "HEAD")[:7]
    asked = time.monotonic()
    cancelled = pusher.ssh_command("builds:cancel", pusher.app)
    assert (cancelled.returncode, cancelled.stderr) == (0, "")
    assert cancelled.stdout == f"{pusher.app}: cancelled; {pusher.user} was deploying {commit}\n"
    assert time.monotonic() - asked < 5
    said = rest(deploy)
    assert deploy.returncode == 1
    cancelled_it = f"{pusher.user} cancelled it; running instances were not changed"
    assert f" !     no longer deploying {commit}: {cancelled_it}" in said
    assert answer(before.url) == "one"
    assert nap.leftovers(pusher.app, 2) == []
    rows = json.loads(pusher.ssh_command("builds", pusher.app, "--json").stdout)
    assert [row["result"] for row in rows] == ["succeeded", "cancelled"]
    again = pusher.start_push()  # of what is there: it failed, so it is tried again
    read_until(again, "       begin")
    nap.run("builds:cancel", pusher.app)
    assert "no longer deploying" in rest(again)
    assert again.returncode == 1


def test_cancel_while_an_instance_starts_takes_it_away(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("CMD", "HEALTHCHECK --interval=60s CMD false\nCMD"))
    deploy = pusher.start_push()
    eventually(lambda: nap.containers(pusher.app), 20, "it starts")
    assert pusher.ssh_command("builds:cancel", pusher.app).returncode == 0
    assert nap.leftovers(pusher.app, 1) == []
    assert "cancelled it" in rest(deploy)


@pytest.mark.parametrize("stage", ["build", "start"])
def test_killed_deploy_holds_up_the_next_one_for_ten_seconds_at_most(nap: Nap, pusher: Pusher, stage: str) -> None:
    if stage == "build":
        deploy = slow_push(pusher, "one", 60)
    else:  # its instance runs, and is announced: it will be seen to when v2 comes
        pusher.commit(Dockerfile=HTTPD.replace("CMD", "HEALTHCHECK --interval=60s CMD false\nCMD"))
        deploy = pusher.start_push()
        eventually(lambda: nap.containers(pusher.app), 20, "it starts")
    os.kill(pusher.deploying(), signal.SIGKILL)
    killed = time.monotonic()
    said = rest(deploy)
    assert deploy.returncode == 1
    assert " !     the deploy was killed (signal 9); running instances were not changed" in said
    pusher.commit(Dockerfile=HTTPD, index_html="two")
    following = pusher.start_push()
    lines = read_until(following, f"-----> {pusher.app}: building")
    assert time.monotonic() - killed < 20, "the lock goes after 10 s; on a busy machine a push comes to it late"
    said = rest(following)
    assert following.returncode == 0, said
    if stage == "start":
        assert "-----> Removing v1, whose deploy was killed" in lines
        assert nap.leftovers(pusher.app, 1) == []
        outcomes = nap.keys(f"/nap/apps/{pusher.app}/outcomes/")
        assert outcomes[f"/nap/apps/{pusher.app}/outcomes/00000001"] == {
            "state": "failed",
            "reason": "its deploy was killed",
        }
    assert [key.rpartition("/")[2] for key in pusher.announcements()] == [
        "v2.web.1" if stage == "start" else "v1.web.1"
    ]


def test_a_release_that_was_never_retired_is_retired_by_the_next_push(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    etcd = nap.etcd()
    try:
        etcd.put(f"/nap/apps/{pusher.app}/lock", SOMEONE)  # nobody can have it: the retiring of v1 waits for us
        pusher.commit(index_html="two")
        second = pusher.start_push()
        lines = read_until(second, "       its log is on elsewhere")
        assert "someone has been deploying 0000000 since" in lines[0]
        etcd.delete(f"/nap/apps/{pusher.app}/lock")
        assert "v2 is live" in rest(second)
        etcd.put(f"/nap/apps/{pusher.app}/current", 1)  # as if v2 had been started, and its receiver lost
    finally:
        etcd.close()
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert [key.rpartition("/")[2] for key in pusher.announcements()] == ["v3.web.1"]
    eventually(lambda: nap.runs(pusher.app, 2) == [], 15, "v2 is gone")


def test_deploy_that_lost_its_turn_ends(nap: Nap, pusher: Pusher) -> None:
    deploy = slow_push(pusher, "one", 60)
    process = pusher.deploying()
    os.kill(process, signal.SIGSTOP)  # long enough for etcd to think that it is dead
    try:
        eventually(lambda: not nap.keys(f"/nap/apps/{pusher.app}/lock"), 15, "the lock is free")
    finally:
        os.kill(process, signal.SIGCONT)
    said = rest(deploy)
    assert deploy.returncode == 1
    assert "no longer deploying" in said
    assert "lost the deploy lock" in said
    assert nap.leftovers(pusher.app, 1) == []


def test_push_that_does_not_wait(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=SLOW.format(seconds=3, app=pusher.app), index_html="one")
    pushed = pusher.push("-o", "nap.wait=no", "nap", "HEAD:refs/heads/master")
    assert pushed.status == 0
    commit = pusher.git("rev-parse", "HEAD")[:7]
    assert pushed.lines[0] == f"=====> {pusher.app}: the deploy of {commit} has started and continues in the background"
    assert (
        pushed.lines[1] == f"       To follow it: ssh HOST builds:output {pusher.app} -t (HOST as in your remote's URL)"
    )
    assert not pusher.announcements()
    followed = pusher.ssh_command("builds:output", pusher.app, "-t")
    assert followed.returncode == 0
    lines = followed.stdout.splitlines()
    assert lines[0] == f"-----> {pusher.app}: building {commit} from master", "from its start"
    assert answer(lines[-1].strip()) == "one", "to its end"


def test_push_that_does_not_wait_is_told_what_goes_wrong_at_once(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(README_md="no Dockerfile")
    pushed = pusher.push("-o", "nap.wait=no", "nap", "HEAD:refs/heads/master")
    assert pushed.status == 1
    assert "has no Dockerfile at its top" in pushed.text
    assert "continues in the background" not in pushed.text


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_deploy_whose_pusher_left_goes_on_and_can_be_followed(nap: Nap, pusher: Pusher, how: signal.Signals) -> None:
    deploy = slow_push(pusher, "one", 3)
    follower = subprocess.Popen(
        pusher.ssh_words("builds:output", pusher.app, "-t"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    read_until(follower, "       begin")
    os.killpg(deploy.pid, how)
    deploy.wait(timeout=10)
    assert f"=====> {pusher.app} v1 is live" in rest(follower)
    assert follower.returncode == 0
    (value,) = pusher.announcements().values()
    assert isinstance(value, dict)
    assert answer(f"http://{value['host']}:{value['port']}") == "one"
    builds = pusher.ssh_command("builds", pusher.app).stdout.splitlines()
    assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{7}  finished +succeeded", builds[-1])


def test_waiting_push_whose_pusher_left_deploys_all_the_same(nap: Nap, pusher: Pusher) -> None:
    first = slow_push(pusher, "one", 3)
    two = pusher.commit(Dockerfile=HTTPD, index_html="two")[:7]
    second = pusher.start_push()
    queued(nap, pusher, two)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait(timeout=10)
    assert "v1 is live" in rest(first)
    eventually(lambda: [key for key in pusher.announcements() if "/v2." in key], 20, "it deploys")


def test_output_of_builds(nap: Nap, pusher: Pusher) -> None:
    none = pusher.ssh_command("builds:output", pusher.app)
    assert (none.returncode, none.stderr.splitlines()[0]) == (1, f" !     app {pusher.app} does not exist")
    commits = [pusher.commit(Dockerfile=HTTPD, index_html="one")[:7]]
    assert pusher.push().status == 0
    commits.append(pusher.commit(index_html="two")[:7])
    assert pusher.push().status == 0
    pusher.commit(Dockerfile="FROM scratch\nCOPY nothing /\n")
    assert pusher.push().status == 1
    rows = json.loads(pusher.ssh_command("builds", pusher.app, "--json").stdout)
    assert [row["result"] for row in rows] == ["succeeded", "succeeded", "failed"]
    named = [line.split()[0] for line in pusher.ssh_command("builds", pusher.app).stdout.splitlines()[2:]]
    assert [name.partition("-")[2] for name in named[:-1]] == commits
    assert "v1 is live" in pusher.ssh_command("builds:output", pusher.app, commits[0]).stdout
    assert "v2 is live" in pusher.ssh_command("builds:output", pusher.app, commits[1], "-t").stdout
    unknown = pusher.ssh_command("builds:output", pusher.app, "fffffff0")
    assert unknown.stderr.startswith(f" !     there is no build 'fffffff0' of {pusher.app} on this host\n")


def test_a_push_does_not_overtake_one_that_waits(nap: Nap, pusher: Pusher) -> None:
    etcd = nap.etcd()
    try:
        etcd.put(f"/nap/apps/{pusher.app}/next", SOMEONE)  # the lock has become free this moment
    finally:
        etcd.close()
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    assert not nap.keys(f"/nap/apps/{pusher.app}/next"), "and so the other gives way"


def test_an_older_push_that_comes_late_does_not_undo_a_newer_one(nap: Nap, pusher: Pusher) -> None:
    older = pusher.commit(Dockerfile=HTTPD, index_html="one")
    newer = pusher.commit(index_html="two")
    pushed = pusher.push()
    hook = nap.run_hook(pusher.bare, older)
    assert hook.returncode == 1
    assert f" !     {older[:7]} was not deployed: superseded by {pusher.user}'s push of {newer[:7]}" in hook.stdout
    assert answer(pushed.url) == "two"


def test_a_release_goes_live_only_while_its_lock_is_held(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    etcd = nap.etcd()
    try:
        ledger = Ledger(etcd, nap.settings.etcd, pusher.app)
        release = ledger.current()
        assert release
        mine = turn("someone", "0000000", "deploying 0000000", Path("/"))
        taken = etcd.create(f"{ledger.root}/lock", mine)
        etcd.put(f"{ledger.root}/lock", mine)  # marked as cancelled, say
        later = msgspec.structs.replace(release, number=2)
        assert not ledger.make_current(later, Lock(f"{ledger.root}/lock", taken, mine))
        assert ledger.current() == release
        assert len(nap.keys(f"{ledger.root}/outcomes/")) == 1
        etcd.delete(f"{ledger.root}/lock")
    finally:
        etcd.close()


@contextmanager
def meanwhile(etcd: Etcd, values: dict[str, object]) -> Iterator[None]:
    """For the block; shortly after it began, these values are written."""
    later = threading.Timer(0.2, etcd.write, [values])
    later.start()
    yield
    later.join()


def test_a_lock_of_which_etcd_has_forgotten_the_beginning_is_waited_for(etcd: Etcd) -> None:
    """etcd compacts what is older than five minutes; a deploy may last longer."""
    mine, root = msgspec.convert(SOMEONE, Turn), "/turns/forgotten"
    etcd.put(f"{root}/lock", SOMEONE)
    etcd._client.compact(etcd.put("/turns/other", 1))
    with (
        Path(os.devnull).open("w") as nobody,
        Channel(nobody.fileno()) as channel,
        etcd.lease(8) as lease,
        meanwhile(etcd, {f"{root}/lock": None}),
    ):
        assert _wait(etcd, root, mine, 5, channel, lease, supersedes=False)


def test_a_deploy_of_which_etcd_has_forgotten_the_beginning_is_cancelled(etcd: Etcd) -> None:
    key = "/turns/cancelled/lock"
    revision = etcd.put(key, SOMEONE)
    etcd._client.compact(etcd.put("/turns/other", 1))
    with meanwhile(etcd, {key: SOMEONE | {"cancelled_by": "bob"}}):
        assert "bob cancelled it" in str(why_over(etcd, Lock(key, revision, msgspec.convert(SOMEONE, Turn))))
    with meanwhile(etcd, {key: None}):
        etcd.put(key, SOMEONE)
        assert "lost the deploy lock" in str(why_over(etcd, Lock(key, revision, msgspec.convert(SOMEONE, Turn))))
