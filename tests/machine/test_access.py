"""Who may do what with an app, in a real etcd, as commands on the host and over ssh change it."""

from pathlib import Path

import pytest

from nap_receiver.auth.access import Access, access_of
from tests.nap import HTTPD, ROOT, Nap, Pusher


@pytest.mark.parametrize(
    ("has", "may"),
    [("read", {"read"}), ("push", {"read", "push"}), ("owner", {"read", "push", "owner"}), (None, set())],
)
def test_each_right_holds_those_before_it(has: str | None, may: set[str]) -> None:
    access = Access("hello", {"ann": has} if has else {})
    assert {right for right in ("read", "push", "owner") if access.allows("ann", right)} == may


def test_first_push_makes_an_owner_who_lets_others_in(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    assert access_of(pusher.app, nap.state) == Access(pusher.app, {pusher.user: "owner"})
    (tmp_path / "other").mkdir()
    other = Pusher(nap, "someone-else", tmp_path / "other")
    other.git("remote", "set-url", "nap", pusher.git("remote", "get-url", "nap"))
    other.commit(Dockerfile=HTTPD)
    refused = other.push("nap", "HEAD:refs/heads/theirs")
    assert refused.trouble == [
        f"{other.user} may not push to {pusher.app}",
        f"Ask its owner ({pusher.user}) for: access:add {pusher.app} {other.user} push",
    ]

    given = pusher.ssh_command("access:add", pusher.app, other.user, "read")
    assert (given.returncode, given.stdout) == (0, f"{other.user} has the right to {pusher.app}: read\n")
    assert given.stderr == ""
    misspelt = pusher.ssh_command("access:add", pusher.app, "someone-esle", "read")
    assert (misspelt.returncode, misspelt.stdout) == (0, f"someone-esle has the right to {pusher.app}: read\n")
    assert misspelt.stderr.splitlines() == [
        " !     User someone-esle has no key, so nobody can use this right",
        f" !     If that is a mistake: access:remove {pusher.app} someone-esle. Else the operator adds a key:",
        " !     nap keys:add someone-esle < KEY.pub",
    ]
    assert pusher.ssh_command("access:remove", pusher.app, "someone-esle").returncode == 0
    other.git("fetch", "--quiet", "nap", "master")
    assert "may not push" in other.push("nap", "HEAD:refs/heads/theirs").text
    pusher.ssh_command("access:add", pusher.app, other.user)
    assert other.push("nap", "HEAD:refs/heads/theirs").status == 0
    listed = pusher.ssh_command("access", pusher.app).stdout.splitlines()[2:]
    assert [line.split() for line in listed] == [[pusher.user, "owner"], [other.user, "push"]]

    only = pusher.ssh_command("access:remove", pusher.app, pusher.user)
    assert only.returncode == 1
    assert only.stderr.startswith(f" !     {pusher.user} is the only owner of {pusher.app}\n")
    nap.run("access:add", pusher.app, other.user, "owner")
    assert other.ssh_command("access:remove", pusher.app, pusher.user).returncode == 0
    assert pusher.push("nap", "HEAD:refs/heads/mine").trouble[0] == f"{pusher.user} may not push to {pusher.app}"


def test_an_app_belongs_to_one_repository(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    team, _, name = pusher.app.partition("-")
    twin = f"ssh://{nap.settings.ssh.address}/{team}/{name}"
    assert (
        f"app name {pusher.app} is already used by repository {pusher.app}"
        in pusher.push(twin, "HEAD:refs/heads/master").text
    )
    elsewhere = pusher.folder / f"{pusher.app}.git"
    pusher.git("init", "--quiet", "--bare", str(elsewhere))
    (elsewhere / "hooks" / "post-receive").symlink_to(ROOT / "hooks" / "post-receive")
    pusher.git(f"--git-dir={elsewhere}", "config", "nap.state", str(nap.folder))
    assert (
        f"app name {pusher.app} is already used by repository {pusher.app}"
        in pusher.push(str(elsewhere), "HEAD:master").text
    )
    assert not (nap.state.deploy_logs / pusher.app).exists()


def test_first_push_of_nothing_leaves_no_app(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    url = f"{pusher.git('remote', 'get-url', 'nap').rpartition('/')[0]}/new-team/thing"
    assert pusher.push("--dry-run", url, "HEAD:refs/heads/master").status == 0
    assert not (nap.state.repositories / "new-team").exists()
    assert not nap.keys("/nap/access/new-team-thing")
