"""What an earlier version of nap wrote goes on working with this one; tests/upgrade/README.md says what that is.

The tests are one story, in this order: an operator changes the checkout below a nap that is up, a user pushes before
`nap up` has renewed anything, the operator runs `nap up`, and users go on.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nap_receiver.core.installed import digest_of_code
from nap_receiver.core.templates import TEMPLATES
from tests import gitolite_server
from tests.gitolite_server import Developer
from tests.nap import HTTPD, Nap, answer, eventually, processes
from tests.upgrade.record import GREETING
from tests.upgrade.restore import VERSIONS, Restored, end, keys, restore

MOST_SECONDS = 10


@pytest.fixture(scope="module", params=VERSIONS)
def restored(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Restored]:
    """A nap of that version, whose code is this one now; nobody has run `nap up` since."""
    found = restore(request.param, short_folder / request.param)
    yield found
    end(found.nap)


@pytest.fixture(scope="module")
def upgraded(restored: Restored) -> Restored:
    """The same after `nap up`."""
    before = restored.nap.process("router")
    has_same_code = digest_of_code() in (restored.nap.state.run / "router.settings").read_text()
    restored.nap.run("up")
    assert (restored.nap.process("router") == before) == has_same_code, "the router runs the new code"
    return restored


def listed(nap: Nap, *words: str) -> list[dict[str, Any]]:
    """What a command lists."""
    found: list[dict[str, Any]] = json.loads(nap.run(*words, "--json").stdout)
    return found


def answers(nap: Nap, app: str) -> list[str]:
    """What each announced instance of the app answers; nothing for one that does not."""
    said = []
    for value in nap.keys(f"/services/{app}/").values():
        assert isinstance(value, dict)
        try:
            said.append(answer(f"http://{value['host']}:{value['port']}"))
        except OSError:
            said.append("")
    return said


def test_apps_run_on_with_their_old_units(restored: Restored) -> None:
    eventually(lambda: answers(restored.nap, "shop") == ["two", "two"], MOST_SECONDS, "shop answers")
    eventually(lambda: answers(restored.nap, "plain") == ["plain"], MOST_SECONDS, "plain answers")
    eventually(lambda: restored.nap.keys("/nap/apps/shop/up/"), MOST_SECONDS, "the worker is up")


def test_users_are_let_in_by_their_old_lines_in_authorized_keys(restored: Restored) -> None:
    assert restored.alice.ssh_command("releases", "shop").returncode == 0
    bob = restored.bob
    bob.commit(index_html="three")
    pushed = bob.push()
    assert pushed.status == 1
    assert "which starts instances, does not answer" in pushed.text
    assert "nap up" in pushed.text
    assert answers(restored.nap, "shop") == ["two", "two"]


def test_up_gives_instances_to_the_agent_while_they_run(restored: Restored) -> None:
    nap = restored.nap
    before = {app: started(nap, app) for app in ("shop", "plain")}
    announced = nap.keys("/services/")
    with closing(nap.etcd()) as etcd:
        since = etcd.revision()
        nap.run("up")
        gone = [change.key for change in etcd.changes(["/services/"], since, 3) if change.value is None]
    assert gone == [], "each was announced all the time"
    assert nap.keys("/services/") == announced
    assert {app: started(nap, app) for app in before} == before
    assert not [words for _, _, words in processes() if str(TEMPLATES / "local" / "instance.sh") in words]
    assert not (nap.state.root / "units").exists()
    policies = nap.docker("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", *nap.containers("shop")).split()
    assert set(policies) == {"unless-stopped"}


def started(nap: Nap, app: str) -> str:
    """The app's containers, and since when each runs."""
    return nap.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", *nap.containers(app))


def test_users_push(upgraded: Restored) -> None:
    bob = upgraded.bob
    bob.commit(index_html="three")
    pushed = bob.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "three"
    again = upgraded.alice.push("nap", "HEAD:refs/heads/other")
    assert again.status == 0, again.text


def test_old_hook_in_another_repository_deploys(upgraded: Restored) -> None:
    bob = upgraded.bob
    bob.git("fetch", "--quiet", str(upgraded.plain), "master")
    bob.git("checkout", "--quiet", "--detach", "FETCH_HEAD")
    bob.commit(index_html="plain again")
    pushed = bob.push(str(upgraded.plain), "HEAD:refs/heads/master")
    bob.git("checkout", "--quiet", "master")
    assert "=====> plain v2 is live" in pushed.text
    assert answer(pushed.url) == "plain again"


def test_old_trigger_and_hook_of_gitolite_serve_pushes(upgraded: Restored, tmp_path: Path) -> None:
    gitolite, nap = upgraded.gitolite, upgraded.nap
    gitolite_server.serve(gitolite)
    try:
        carol = Developer(gitolite, "carol", "team/wiki", nap, tmp_path)
        carol.commit(Dockerfile=HTTPD, index_html="wiki")
        pushed = carol.push()
        assert pushed.status == 0, pushed.text
        assert answer(pushed.url) == "wiki"
        there = carol.push()
        assert (there.status, there.url) == (0, pushed.url), there.text
        carol.commit(Dockerfile="FROM nap/busybox\nRUN false\n")
        failed = carol.push()
        assert failed.status == 1, failed.text
        assert "Not deployed" in failed.text

        gitolite.nap("gitolite:install", nap=nap)
        carol.commit(Dockerfile=HTTPD)
        renewed = carol.push()
        assert renewed.status == 0, renewed.text
    finally:
        gitolite_server.stop(gitolite)


def test_up_again_restarts_nothing(upgraded: Restored) -> None:
    nap = upgraded.nap
    before = {each["program"]: each["process"] for each in listed(nap, "status")}
    instances = nap.keys("/services/")
    nap.run("up")
    assert {each["program"]: each["process"] for each in listed(nap, "status")} == before
    assert nap.keys("/services/") == instances


def test_up_keeps_what_was_there(upgraded: Restored) -> None:
    nap = upgraded.nap
    assert nap.run("status").returncode == 0
    recorded = keys(upgraded.version).items()
    records = [json.loads(value) for key, value in recorded if key.startswith("/nap/apps/shop/releases/")]
    releases = {each["release"]: each for each in listed(nap, "releases", "shop")}
    for record in records:
        release = releases[f"v{record['number']}"]
        assert (release["why"], release["by"]) == (record["why"], record["by"])
    assert releases["v5"]["state"] == "failed"
    assert "exited with status 3" in releases["v5"]["reason"]
    assert {each["name"]: each["value"] for each in listed(nap, "config", "shop")} == {
        "GREETING": GREETING,
        "LINES": "one\ntwo",
    }
    assert [each["process"] for each in listed(nap, "ps", "shop")] == ["web.1", "web.2", "worker.1"]
    assert {each["domain"] for each in listed(nap, "domains", "shop")} >= {"www.shop.test", "*.shop.test"}
    assert [each["names"] for each in listed(nap, "certs", "shop")] == ["www.shop.test"]
    assert {each["user"]: each["right"] for each in listed(nap, "access", "shop")} == {"alice": "owner", "bob": "push"}
    limits = {each["process"]: each["memory"] for each in listed(nap, "resource:limit", "shop")}
    assert limits["web"] == 64 << 20
    settings = {each["setting"]: each["value"] for each in listed(nap, "settings")}
    assert (settings["deploy.grace"], settings["deploy.drain"], settings["limits.keys"]) == ("5", "1", "7")
    assert len(listed(nap, "builds", "shop")) >= len(records)


def test_app_answers_on_its_domain_with_the_old_certificate(upgraded: Restored, tmp_path: Path) -> None:
    settings = upgraded.nap.settings
    brought = json.loads(keys(upgraded.version)["/nap/certificates/shop"])
    (tmp_path / "certificate.pem").write_text(brought["chain"])
    address = settings.router.https
    assert address
    words = ["curl", "--silent", "--show-error", "--cacert", str(tmp_path / "certificate.pem")]
    words += ["--resolve", f"www.shop.test:{address.port}:{address.host}", f"https://www.shop.test:{address.port}/"]
    said = subprocess.run(words, text=True, capture_output=True, timeout=30)
    assert said.stdout in {"two", "three"}, said.stderr


def test_old_keys_are_kept_beside_a_new_one(upgraded: Restored, tmp_path: Path) -> None:
    nap = upgraded.nap
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "dave")], check=True)
    nap.run("keys:add", "dave", stdin=(tmp_path / "dave.pub").read_text())
    assert [each["user"] for each in listed(nap, "keys")] == ["alice", "bob", "dave"]
    for user in (upgraded.alice, upgraded.bob):
        assert user.ssh_command("releases", "shop").returncode == 0
    assert upgraded.bob.ssh_command("access:add", "shop", "dave").returncode == 1, "bob does not own it"


def test_owner_rolls_back_to_an_old_release(upgraded: Restored) -> None:
    rolled = upgraded.alice.ssh_command("rollback", "shop", "v1")
    assert rolled.returncode == 0, rolled.stderr
    eventually(lambda: answers(upgraded.nap, "shop") == ["one", "one"], MOST_SECONDS, "v1 answers again")
    assert listed(upgraded.nap, "config", "shop") == []


def test_app_that_was_created_before_deploys_as_it_was_configured(upgraded: Restored) -> None:
    nap, bob = upgraded.nap, upgraded.bob
    bob.git("remote", "set-url", "nap", f"ssh://{nap.settings.ssh.address}/early")
    pushed = bob.push("nap", "master")
    assert pushed.status == 0, pushed.text
    assert "Starting v1: web.1, web.2, worker.1" in pushed.text
    assert nap.run("config:get", "early", "EARLY").stdout == "yes\n"
    assert {each["domain"] for each in listed(nap, "domains", "early")} >= {"early.test"}


def test_doctor_finds_nothing_wrong(upgraded: Restored) -> None:
    found: list[dict[str, str]] = json.loads(upgraded.nap.run("doctor", "--json", ok=False).stdout)
    assert [each for each in found if each["state"] != "ok"] == []
