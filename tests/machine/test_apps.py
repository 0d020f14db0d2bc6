"""The apps there are, and doing away with one; new instances for old ones; completion."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.nap import COMMAND, Nap, Pushed, Pusher, answer, eventually


def test_apps_are_listed_to_those_who_may_read_them(nap: Nap, pusher: Pusher, live: Pushed, tmp_path: Path) -> None:
    url = pusher.ssh_command("open", pusher.app).stdout.strip()
    row = {"app": pusher.app, "repository": pusher.app, "owners": pusher.user, "url": url}
    assert row in json.loads(nap.run("apps", "--json").stdout)
    assert json.loads(pusher.ssh_command("apps", "--json").stdout) == [row]
    (tmp_path / "other").mkdir()
    other = Pusher(nap, "reader-of-apps", tmp_path / "other")
    assert json.loads(other.ssh_command("apps", "--json").stdout) == []
    pusher.ssh_command("access:add", pusher.app, other.user, "read")
    assert json.loads(other.ssh_command("apps", "--json").stdout) == [row]


def test_destroying_an_app_asks_for_its_name(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    for words in ((), ("--confirm", "another")):
        refused = pusher.ssh_command("apps:destroy", pusher.app, *words)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[1] == f" !     To go on: apps:destroy {pusher.app} --confirm {pusher.app}"
    assert answer(live.url) == "one"


def test_a_destroyed_app_is_gone_and_can_be_made_anew(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    image = json.loads(pusher.ssh_command("releases:info", pusher.app, "--json").stdout)["image"]
    destroyed = pusher.ssh_command("apps:destroy", pusher.app, "--confirm", pusher.app)
    assert destroyed.returncode == 0, destroyed.stdout + destroyed.stderr
    lines = destroyed.stdout.splitlines()
    assert lines[0] == f"-----> Stopping {pusher.app}: {pusher.app}.v1.web.1"
    assert lines[-1] == f"=====> {pusher.app} is destroyed"
    with pytest.raises(subprocess.CalledProcessError):
        nap.docker("pull", image)
    listing = ("images", "--quiet", f"{nap.settings.registry.address}/{pusher.app}")
    eventually(lambda: not nap.docker(*listing), 30, "the engine has nothing of it")
    eventually(lambda: nap.leftovers(pusher.app, 1) == [], 15, "it has stopped")
    assert not pusher.announcements()
    assert not nap.keys(f"/nap/apps/{pusher.app}/") | nap.keys(f"/nap/access/{pusher.app}")
    assert not pusher.bare.exists()
    assert not (nap.state.deploy_logs / pusher.app).exists()
    assert pusher.ssh_command("ps", pusher.app).stderr.startswith(f" !     app {pusher.app} does not exist")

    again = pusher.push()
    assert again.status == 0, again.text
    assert f"{pusher.app} v1 is live" in again.text
    assert answer(again.url) == "one"


def test_a_restart_is_a_new_release_of_the_same(pusher: Pusher, live: Pushed) -> None:
    restarted = pusher.ssh_command("ps:restart", pusher.app)
    assert restarted.returncode == 0, restarted.stdout
    assert "building" not in restarted.stdout
    assert f"=====> {pusher.app} v2 is live" in restarted.stdout
    assert answer(restarted.stdout.split()[-1]) == "one"
    assert (
        pusher.push().lines[0] == f"=====> {pusher.app} v2 already runs {pusher.git('rev-parse', '--short=7', 'HEAD')}"
    )


def test_completion_in_bash() -> None:
    script = f"source <(PATH={COMMAND.parent}:$PATH nap completion bash); declare -F _nap_completion"
    done = subprocess.run(["bash", "-c", script], text=True, capture_output=True, check=True)
    assert done.stdout == "_nap_completion\n"
    asked = {"_NAP_COMPLETE": "bash_complete", "COMP_WORDS": "nap builds:", "COMP_CWORD": "1", "PATH": "/usr/bin:/bin"}
    found = subprocess.run([str(COMMAND)], env=asked, text=True, capture_output=True, check=True).stdout
    assert {line.partition(",")[2] for line in found.splitlines()} == {"builds:cancel", "builds:output"}
