"""Another name for an app."""

import json
import subprocess

import pytest

from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, runs


def test_a_renamed_app_is_the_same_under_another_name(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    old, new = pusher.app, "another-name"
    assert pusher.ssh_command("config:set", old, "COLOUR=green").returncode == 0
    pusher.commit(index_html="two")
    pushed(pusher)
    renamed = pusher.ssh_command("apps:rename", old, new)
    assert renamed.returncode == 0, renamed.stdout + renamed.stderr
    lines = renamed.stdout.splitlines()
    assert "-----> Starting v4: web.1" in lines
    assert lines[-2:] == [
        f"=====> {old} is now named {new}",
        f"       In your repository: git remote set-url nap …/{new}",
    ]
    url = next(line.strip() for line in lines if line.startswith("       http://127.0.0.1:"))
    assert answer(url) == "two"
    assert not nap.keys(f"/services/{old}/")
    assert not nap.keys(f"/nap/access/{old}")
    assert not {key for key in nap.keys(f"/nap/apps/{old}/") if not key.endswith("/lock")}
    eventually(lambda: nap.containers(old) == [], 20, "nothing runs under the old name")
    assert not pusher.bare.exists()

    pusher.app = new
    pusher.git("remote", "set-url", "nap", f"ssh://{nap.settings.ssh.address}/{new}")
    rows = json.loads(pusher.ssh_command("releases", new, "--json").stdout)
    assert [(row["release"], row["why"]) for row in rows[:2]] == [
        ("v4", f"Rename from {old}"),
        ("v3", f"Deploy {pusher.git('rev-parse', '--short=7', 'HEAD')}"),
    ]
    assert pusher.ssh_command("config:get", new, "COLOUR").stdout == "green\n"
    assert "already runs" in pusher.push().text
    images = {json.loads(nap.run("releases:info", new, f"v{n}", "--json").stdout)["image"] for n in range(1, 5)}
    assert all(f"/{new}@sha256:" in image for image in images)
    of_old = ("images", "--quiet", f"{nap.settings.registry.address}/{old}")
    eventually(lambda: not nap.docker(*of_old), 30, "the engine has none under the old name")
    for image in images:  # they are in the registry under the new name
        nap.docker("pull", image)
        with pytest.raises(subprocess.CalledProcessError):  # and under it alone
            nap.docker("pull", image.replace(f"/{new}@", f"/{old}@"))
    back = pusher.ssh_command("rollback", new, "v1")
    assert answer(back.stdout.split()[-1]) == "one"
    pusher.commit(index_html="three")
    assert answer(pushed(pusher).url) == "three"
    assert json.loads(pusher.ssh_command("builds", new, "--json").stdout)[0]["build"]


def test_the_old_name_is_free_for_another_app(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    old = pusher.app
    assert pusher.ssh_command("apps:rename", old, f"{old}-2").returncode == 0
    again = pushed(pusher)
    assert f"=====> {old} v" in again.text
    assert answer(again.url) == "one"
    assert nap.keys(f"/services/{old}-2/")


def test_a_name_that_is_taken_is_refused(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    taken = f"{pusher.app}-taken"
    pusher.git("push", "--quiet", f"ssh://{nap.settings.ssh.address}/{taken}", "HEAD:refs/heads/kept")
    before = nap.keys("/nap/")
    for name, why in {
        taken: f"repository name {taken} is already in use",
        pusher.app: f"repository name {pusher.app} is already in use",
        "No": "cannot be an app's name",
        "../no": "cannot be an app's name",
    }.items():
        refused = pusher.ssh_command("apps:rename", pusher.app, name)
        assert refused.returncode == 1
        assert why in refused.stdout + refused.stderr
    assert nap.keys("/nap/") == before
    assert answer(live.url) == "one"


def test_a_rename_that_fails_leaves_the_app_as_it_was(nap: Nap, pusher: Pusher) -> None:
    once = f"test $NAP_APP = {pusher.app} || exit 3; exec httpd -f -p 8080 -h /etc"
    pusher.commit(Dockerfile=runs(once))
    first = pushed(pusher)
    name = f"{pusher.app}-2"
    failed = pusher.ssh_command("apps:rename", pusher.app, name)
    assert failed.returncode == 1
    assert f"{name} v2 web.1 exited with status 3" in failed.stdout
    assert answer(f"{first.url}/passwd")
    left = {*nap.keys(f"/nap/apps/{name}/"), *nap.keys(f"/nap/access/{name}"), *nap.keys(f"/services/{name}/")}
    assert not {key for key in left if "/exits/" not in key}
    assert nap.containers(name) == []
    pusher.commit(Dockerfile=HTTPD, index_html="two")
    assert answer(pushed(pusher).url) == "two"
