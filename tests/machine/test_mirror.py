"""CI jobs that mirror: whatever refs come, at most one deploy, of the deploy branch when it moved."""

import subprocess
from pathlib import Path

import pytest

from tests.nap import HTTPD, Nap, Pushed, Pusher, answer

MANY = 10_000


def many_refs(pusher: Pusher, kind: str, commit: str, number: int = MANY) -> None:
    """That many refs of a kind in the pusher's repository."""
    lines = "".join(f"create refs/{kind}{index} {commit}\n" for index in range(number))
    subprocess.run(["git", "update-ref", "--stdin"], cwd=pusher.repository, input=lines, text=True, check=True)


def mirror(pusher: Pusher) -> Pushed:
    """`git push --mirror` to an address: to a remote by name it would push what it knows of that remote as well."""
    return pusher.push("--mirror", pusher.git("remote", "get-url", "nap"))


def builds(nap: Nap, pusher: Pusher) -> int:
    """How many builds of the app there were."""
    return len(list((nap.state.deploy_logs / pusher.app).glob("*.log")))


def refs(pusher: Pusher) -> list[str]:
    """What refs nap's repository has."""
    return pusher.git(f"--git-dir={pusher.bare}", "for-each-ref", "--format=%(refname)").splitlines()


def test_mirror_of_ten_thousand_refs_deploys_once(nap: Nap, pusher: Pusher) -> None:
    commit = pusher.commit(Dockerfile=HTTPD, index_html="one")
    many_refs(pusher, "tags/v", commit, MANY - 3)
    for ref in ("merge-requests/1/head", "pull/2/head"):  # of GitLab and of Gitea
        pusher.git("update-ref", f"refs/{ref}", commit)
    pushed = mirror(pusher)
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "one"
    assert len(refs(pusher)) == MANY + 1, "and refs/nap/v1"
    assert "       9989 more refs: kept as pushed, not deployed" in pushed.lines
    assert len([line for line in pushed.lines if line.startswith("       tag v")]) <= 10, "not a line for each"
    assert builds(nap, pusher) == 1

    again = mirror(pusher)  # nothing new
    assert (again.status, again.url) == (0, pushed.url)
    pusher.git("tag", "another")
    tagged = mirror(pusher)
    assert tagged.status == 0
    assert "       tag another kept, not deployed" in tagged.lines
    assert builds(nap, pusher) == 1, "the deploy branch did not move"


def test_mirror_that_rewrites_and_deletes(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pusher.git("branch", "old")
    assert mirror(pusher).status == 0
    pusher.git("branch", "--delete", "--force", "old")
    (pusher.repository / "index.html").write_text("rewritten")
    pusher.git("commit", "--quiet", "--all", "--amend", "--message", "Rewritten")
    pushed = mirror(pusher)
    assert pushed.status == 0, pushed.text
    assert "       branch old deleted: nothing to deploy" in pushed.lines
    assert answer(pushed.url) == "rewritten"
    assert refs(pusher) == ["refs/heads/master", "refs/nap/v1", "refs/nap/v2"]


def test_all_branches_then_tags(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pusher.git("branch", "feature")
    pushed = pusher.push("--all", "nap")
    assert (pushed.status, answer(pushed.url)) == (0, "one")
    pusher.git("tag", "v1")
    tags = pusher.push("--tags", "nap")
    assert tags.status == 0
    assert "       tag v1 kept, not deployed" in tags.lines
    assert builds(nap, pusher) == 1


@pytest.mark.parametrize("with_others", [False, True])
def test_deleting_the_deploy_branch_stops_nothing_and_says_so(nap: Nap, pusher: Pusher, with_others: bool) -> None:
    commit = pusher.commit(Dockerfile=HTTPD, index_html="one")
    live = pusher.push()
    words = [":refs/heads/master"]
    if with_others:  # and is not lost among many
        many_refs(pusher, "tags/v", commit, 20)
        words.append("refs/tags/*:refs/tags/*")
    deleted = pusher.push("nap", *words)
    assert deleted.status == 0, deleted.text
    assert f"       branch master deleted: it deploys {pusher.app}, which keeps running as it is" in deleted.lines
    assert answer(live.url) == "one"
    nothing = pusher.push("nap", ":refs/heads/gone", "HEAD:refs/heads/other")
    assert "other" in nothing.text
    assert builds(nap, pusher) == 1


def test_mirror_leaves_the_refs_that_are_naps_own(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert mirror(pusher).status == 0
    assert "refs/nap/v1" in refs(pusher)
    pusher.git("tag", "another")
    assert mirror(pusher).status == 0
    assert refs(pusher) == ["refs/heads/master", "refs/nap/v1", "refs/tags/another"]


def shallow_clone(pusher: Pusher, folder: Path) -> Path:
    """A clone that has the last commit only."""
    pusher.git("clone", "--quiet", "--depth=1", f"file://{pusher.repository}", str(folder))
    for name, value in (("user.email", "a@b"), ("user.name", "A"), ("core.sshCommand", pusher.ssh)):
        pusher.git("-C", str(folder), "config", name, value)
    return folder


def push_from(folder: Path, pusher: Pusher) -> Pushed:
    url = pusher.git("remote", "get-url", "nap")
    done = subprocess.run(
        ["git", "push", url, "HEAD:refs/heads/master"],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return Pushed(done.returncode, [line.removeprefix("remote: ").rstrip() for line in done.stdout.splitlines()], 0)


def test_shallow_push_that_lacks_history_is_refused_before_anything_is_built(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pusher.commit(index_html="two")
    folder = shallow_clone(pusher, pusher.folder / "shallow")
    refused = push_from(folder, pusher)
    assert refused.status == 1
    assert refused.trouble == [
        "this push is from a shallow clone, and its older commits are missing here; nothing was built",
        "Fetch the whole history, then push again: git fetch --unshallow",
    ]
    assert not pusher.bare.exists(), "and there is no app yet"
    assert not nap.keys(f"/nap/access/{pusher.app}")

    pusher.git("-C", str(folder), "fetch", "--quiet", "--unshallow")
    pushed = push_from(folder, pusher)
    assert (pushed.status, answer(pushed.url)) == (0, "two")


def test_shallow_push_on_top_of_what_is_there_deploys(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    pusher.commit(index_html="two")
    assert pusher.push().status == 0
    folder = shallow_clone(pusher, pusher.folder / "shallow")
    (folder / "index.html").write_text("three")
    pusher.git("-C", str(folder), "commit", "--quiet", "--all", "--message", "Three")
    pushed = push_from(folder, pusher)
    assert (pushed.status, answer(pushed.url)) == (0, "three")


def test_push_options(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    kept = pusher.push("-o", "nap.deploy=no", "-o", "ci.skip", "nap", "HEAD:refs/heads/master")
    assert kept.status == 0
    assert not pusher.announcements()
    assert kept.trouble == ['push option "ci.skip" is unknown and ignored; known: nap.deploy, nap.wait, nap.branch']
    assert (
        "       branch master kept, not deployed, as nap.deploy=no asks. To deploy it: git push nap master"
        in kept.lines
    )
    later = pusher.push()  # up to date, and never deployed
    assert (later.status, answer(later.url)) == (0, "one")

    pusher.commit(index_html="two")
    feature = pusher.push("-o", "nap.branch=feature", "nap", "HEAD:refs/heads/feature")
    assert (feature.status, answer(feature.url)) == (0, "two")
    missing = pusher.push("-o", "nap.branch=elsewhere", "nap", "HEAD:refs/heads/another")
    assert missing.status == 0
    assert "       branch elsewhere did not change: nothing to deploy" in missing.lines

    pusher.commit(index_html="three")
    wrong = pusher.push("-o", "nap.wait=perhaps", "nap", "HEAD:refs/heads/master")
    assert wrong.status == 1
    assert (
        'push option nap.wait: expected "yes" or "no", got "perhaps"; the commits are kept, not deployed'
        in wrong.trouble
    )
    assert builds(nap, pusher) == 2
