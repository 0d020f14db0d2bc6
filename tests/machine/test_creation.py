"""Apps that are created before anything is pushed to them, and what is set for their first release."""

import json
import shutil
from pathlib import Path

from nap_receiver.auth.access import Access, access_of
from tests.fleet_apps import pushed
from tests.machine.test_config import environment_of
from tests.nap import HTTPD, Nap, Pusher, answer


def test_what_is_set_before_the_first_push_holds_from_the_first_release(nap: Nap, pusher: Pusher) -> None:
    app = pusher.app
    created = pusher.ssh_command("apps:create", app)
    assert (created.returncode, created.stderr) == (0, "")
    opened = pusher.ssh_command("open", app)
    url = opened.stdout.strip()
    assert opened.stderr.startswith(f" !     {app} was never deployed, so this address does not answer yet")
    assert created.stdout.splitlines() == [
        f"=====> {app} is created",
        f"       Address after the first deploy: {url}",
        f"       To deploy, in your repository: git remote add nap HOST:{app} (HOST: as in your ssh command)",
        "       git push nap master",
    ]
    assert access_of(app, nap.state) == Access(app, {pusher.user: "owner"})
    for words, said in {
        ("config:set", app, "GREETING=hello"): f"=====> {app} has GREETING, for its first release\n",
        ("ps:scale", app, "web=2", "wroker=1"): f"=====> {app}: web=2 wroker=1, for its first release\n",
        ("resource:limit", app, "--memory", "64m"): (
            f"=====> {app} has limits for every process type, for its first release\n"
        ),
        (
            "resource:limit",
            app,
            "-p",
            "web",
            "--cpu",
            "0.5",
        ): f"=====> {app} has limits for web, for its first release\n",
        ("access:add", app, "someone"): f"someone has the right to {app}: push\n",
    }.items():
        done = pusher.ssh_command(*words)
        assert (done.returncode, done.stdout) == (0, said), words
    nap.run("domains:add", app, "before-the-first-push.example.org")
    listed = {
        "ps:scale": [{"process": "web", "count": 2}, {"process": "wroker", "count": 1}],
        "resource:limit": [
            {"process": "web", "memory": 64 << 20, "cpu": 0.5},
            {"process": "wroker", "memory": 64 << 20, "cpu": nap.settings.container.cpus},
            {"process": "run", "memory": 64 << 20, "cpu": nap.settings.container.cpus},
        ],
        "ps": [],
        "releases": [],
        "config": [{"name": "GREETING", "value": "hello"}],
    }
    for command, rows in listed.items():
        assert json.loads(pusher.ssh_command(command, app, "--json").stdout) == rows, command
    assert pusher.ssh_command("ps", app).stdout == f"{app} was never deployed. To deploy it: git push nap master\n"
    for command in ("ps:restart", "ps:stop", "rollback", "logs"):
        refused = pusher.ssh_command(command, app)
        assert refused.returncode == 1
        assert (refused.stdout + refused.stderr).splitlines()[0] == f" !     {app} was never deployed", command
    assert app not in nap.run("doctor", ok=False).stdout
    assert pusher.git("ls-remote", "nap") == ""
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.branch", "trunk")

    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push("--dry-run", "nap", "HEAD:refs/heads/trunk").status == 0
    assert access_of(app, nap.state), "a push of nothing leaves it"
    first = pusher.push("nap", "HEAD:refs/heads/trunk")
    assert first.status == 0, first.text
    assert f"=====> {app} v1 is live" in first.text
    assert first.trouble == ["ps:scale named wroker: this commit has no such process type; it has: web"]
    assert pusher.git("ls-remote", "--symref", "nap", "HEAD").splitlines()[0] == "ref: refs/heads/trunk\tHEAD"
    pusher.git("push", "--quiet", "-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master")
    pusher.git(f"--git-dir={pusher.bare}", "config", "--unset", "nap.branch")
    assert pusher.git("ls-remote", "--symref", "nap", "HEAD").splitlines()[0] == "ref: refs/heads/master\tHEAD"
    assert environment_of(nap, app)["GREETING"] == "hello"
    told = json.loads(pusher.ssh_command("releases:info", app, "--json").stdout)
    assert (told["processes"], told["limits"]) == ("web=2", "web memory=64m cpu=0.5")
    (container, _) = nap.containers(app)
    assert nap.docker("inspect", "--format", "{{.HostConfig.Memory}}", container) == str(64 << 20)


def test_an_app_is_created_once_and_by_those_who_may_have_one_more(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, name = Pusher(nap, "creator-of-apps", tmp_path / "other"), f"team-{pusher.app}"[:40]
    path = f"team/{name.removeprefix('team-')}"
    assert pusher.ssh_command("apps:create", path).returncode == 0
    assert access_of(name, nap.state) == Access(path, {pusher.user: "owner"})
    for who, words, lines in (
        (pusher, path, [f"app name {name} is already in use", f"To list its users: access {name}"]),
        (
            other,
            path,
            [
                f"app name {name} is already in use: {pusher.user} owns it",
                f"Choose another name, or ask its owner for: access:add {name} {other.user} push",
            ],
        ),
        (other, name, [f"app name {name} is already used by repository {path}"]),
        (other, "My_App", ['"My_App" cannot be an app\'s name: only a to z, 0 to 9 and single dashes between them']),
        (other, "../x", ["'../x' is not a name of an app"]),
    ):
        refused = who.ssh_command("apps:create", words)
        assert refused.returncode == 1
        said = refused.stderr.splitlines()
        assert [line.startswith(f" !     {each}") for line, each in zip(said, lines, strict=False)] == [True] * len(
            lines
        )
    renamed = pusher.ssh_command("apps:rename", name, f"{name[:-1]}2")
    assert renamed.returncode == 0, renamed.stdout
    assert pusher.ssh_command("apps:destroy", f"{name[:-1]}2", "--confirm", f"{name[:-1]}2").returncode == 0
    assert not nap.keys(f"/nap/access/{name[:-1]}")
    assert not (nap.state.repositories / "team").exists()


def test_an_app_of_the_operators_making_gets_its_owner_afterwards(nap: Nap, pusher: Pusher) -> None:
    created = nap.run("apps:create", pusher.app)
    assert f"git remote add nap ssh://{Path('/root').owner()}@{nap.settings.ssh.address}/{pusher.app}" in created.stdout
    assert created.stderr.startswith(f" !     Nobody may push to it yet: nap access:add {pusher.app} ")
    pusher.commit(Dockerfile=HTTPD)
    keep = ("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master")
    assert pusher.push(*keep).trouble[0] == f"{pusher.user} may not push to {pusher.app}"
    nap.run("access:add", pusher.app, pusher.user, "owner")
    assert pusher.push(*keep).status == 0
    nap.run("apps:destroy", pusher.app, "--confirm", pusher.app)


def test_a_repository_of_sha256_objects_deploys_to_an_app_made_for_it(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    url = pusher.git("remote", "get-url", "nap")
    shutil.rmtree(pusher.repository / ".git")
    pusher.git("init", "--quiet", "--initial-branch=master", "--object-format=sha256")
    for name, value in (
        ("user.email", "a@b"),
        ("user.name", "A"),
        ("core.sshCommand", pusher.ssh),
        ("remote.nap.url", url),
        ("remote.nap.fetch", "+refs/heads/*:refs/remotes/nap/*"),
    ):
        pusher.git("config", name, value)
    commit = pusher.commit()
    assert len(commit) == 64
    refused = pusher.push()
    assert refused.status != 0
    assert refused.trouble == [
        f"git ended before it sent anything: {pusher.app} has sha1 objects; your repository may have sha256 objects "
        "(git rev-parse --show-object-format)",
        "To create an app for them: apps:create NAME --object-format sha256",
    ]
    assert access_of(pusher.app, nap.state) is None
    assert pusher.ssh_command("apps:create", pusher.app, "--object-format", "sha256").returncode == 0
    assert answer(pushed(pusher).url) == "one"
    assert environment_of(nap, pusher.app)["GIT_REV"] == commit
    pusher.commit(index_html="two")
    assert answer(pushed(pusher).url) == "two"
    assert f"already runs {pusher.git('rev-parse', 'HEAD')[:7]}" in pusher.push().text
    pusher.git("fetch", "--quiet", "nap", "refs/nap/v1")
    assert pusher.git("rev-parse", "FETCH_HEAD") == commit
    assert "v3 is live" in pusher.ssh_command("rollback", pusher.app, "v1").stdout
