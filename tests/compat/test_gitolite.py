"""A real gitolite 3, over real ssh, that deploys by nap: what its users and its administrator see."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.core.escape import perl_word, sh_word
from nap_receiver.core.installed import script
from tests import gitolite_server
from tests.conftest import free_address
from tests.gitolite_server import Developer, Gitolite
from tests.nap import HTTPD, Nap, answer, eventually, is_script, processes

CONF = """
@devs = alice bob
repo team/shop team/early slow displaced
    RW+ = @devs
    option nap = deploy
    config receive.advertisePushOptions = true
repo mended
    RW+ = @devs
    option nap = deploy
    config nap.timeout = {timeout}
repo branchy
    RW+ = @devs
    option nap = deploy
    config nap.branch = live
repo guarded
    RW+ master = alice
    RW+ dev = bob
    option nap = deploy
repo kept
    RW+ = @devs
repo wild/CREATOR/..*
    C = @devs
    RW+ = CREATOR
    option nap = deploy
repo mirrored told
    RW+ = @devs
    option nap = deploy
    option mirror.master = origin
    option mirror.copies = here
repo told
    option nap.copies = elsewhere here
repo redirected
    RW+ = @devs
    option nap = deploy
    option mirror.master = here
    option mirror.copies = origin
    option mirror.redirectOK = all
"""


@pytest.fixture(scope="module")
def gitolite(nap: Nap, short_folder: Path) -> Iterator[Gitolite]:
    """A gitolite that is the mirror `here` of `origin`, and deploys to that nap."""
    gitolite = gitolite_server.make(short_folder / "gitolite", free_address(), "alice", "bob", "server-origin")
    gitolite.edit_rc("$RC{HOSTNAME} = 'here';", "push @{ $RC{ENABLE} }, 'Mirroring';")
    gitolite.nap("gitolite:install", nap=nap)
    gitolite.configure(CONF.format(timeout="soon"))
    gitolite_server.serve(gitolite)
    yield gitolite
    gitolite_server.stop(gitolite)


@pytest.fixture
def other(tmp_path: Path) -> Gitolite:
    """A gitolite that nobody has put nap into, and that nobody serves."""
    return gitolite_server.make(tmp_path / "other")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Gitolite:
    """Another such, for tests that leave it as it was."""
    return gitolite_server.make(tmp_path_factory.mktemp("untouched") / "gitolite")


def a_developer(gitolite: Gitolite, user: str, name: str, nap: Nap, folder: Path) -> Developer:
    """With an app that is not pushed yet."""
    developer = Developer(gitolite, user, name, nap, folder)
    developer.commit(Dockerfile=HTTPD, index_html="one")
    return developer


def releases(developer: Developer) -> list[dict[str, object]]:
    found = developer.nap.keys(f"/nap/apps/{developer.app}/releases/")
    return [value for value in found.values() if isinstance(value, dict)]


def test_a_push_deploys_and_another_prints_the_address(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "team/shop", nap, tmp_path)
    pushed = alice.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "one"
    assert "=====> team-shop v1 is live" in pushed.text
    assert [(each["app"], each["by"]) for each in releases(alice)] == [("team-shop", "alice")]

    alice.become("bob")
    again = alice.push()
    assert (again.status, again.url) == (0, pushed.url)
    assert "Everything up-to-date" in again.text
    assert len(releases(alice)) == 1

    alice.commit(index_html="two")
    kept = alice.push("-o", "nap.deploy=no", "nap", "master")
    assert kept.status == 0, kept.text
    assert "kept, not deployed, as nap.deploy=no asks" in kept.text
    there = alice.push()  # bob: what is there, and was not deployed
    assert there.status == 0, there.text
    assert answer(there.url) == "two"
    assert [each["by"] for each in releases(alice)] == ["alice", "bob"]


def test_an_app_is_configured_before_its_first_push(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "team/early", nap, tmp_path)
    created = gitolite.nap("apps:create", str(alice.bare), nap=nap)
    assert created.stdout == "=====> team-early is created\n"
    gitolite.nap("config:set", "team-early", "EARLY=yes", nap=nap)
    again = gitolite.nap("apps:create", str(alice.bare), nap=nap, ok=False)
    assert (again.returncode, again.stderr.splitlines()[0]) == (1, " !     app name team-early is already in use")
    absent = gitolite.nap("apps:create", str(alice.bare.with_name("nosuch.git")), nap=nap, ok=False)
    assert " is not a bare git repository" in absent.stderr
    assert alice.push().status == 0
    assert gitolite.nap("config:get", "team-early", "EARLY", nap=nap).stdout == "yes\n"
    assert releases(alice)[0]["config"] == 1


def test_a_failed_deploy_fails_the_push_until_it_works(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "mended", nap, tmp_path)
    failed = alice.push()
    assert failed.status == 1, failed.text
    assert "nap.timeout: expected" in failed.trouble[0], failed.text
    assert failed.trouble[-1] == "Not deployed, although the commits have arrived."
    assert alice.git("ls-remote", "nap", "refs/heads/master").split()[0] == alice.git("rev-parse", "HEAD")

    again = alice.push()
    assert again.status == 1, again.text
    assert "nap.timeout: expected" in again.trouble[0], again.text

    gitolite.configure(CONF.format(timeout="30"))
    mended = alice.push()
    assert mended.status == 0, mended.text
    assert answer(mended.url) == "one"


def test_a_killed_deploy_fails_the_push(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "slow", nap, tmp_path)
    alice.commit(Dockerfile="FROM nap/busybox\nRUN sleep 60\n")
    push = alice.start_push()
    hook: list[int] = []

    def is_building() -> bool:
        hook[:] = [number for number, _, words in processes() if is_hook_of("slow", number, words)]
        return bool(hook and nap.keys("/nap/apps/slow/lock"))

    eventually(is_building, 20, "the hook builds")
    os.kill(hook[0], signal.SIGKILL)
    said, _ = push.communicate(timeout=20)
    assert push.returncode == 1, said
    assert "the deploy was killed; running instances were not changed" in said


def is_hook_of(repository: str, number: int, words: list[str]) -> bool:
    if not is_script(words, [script("nap-hook")]):
        return False
    return f"GL_REPO={repository}".encode() in Path(f"/proc/{number}/environ").read_bytes().split(b"\0")


def test_the_deploy_branch_is_that_of_gitolite_conf(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "branchy", nap, tmp_path)
    kept = alice.push()
    assert kept.status == 0, kept.text
    assert "branch master kept; branchy deploys live" in kept.text
    deployed = alice.push("nap", "HEAD:refs/heads/live")
    assert deployed.status == 0, deployed.text
    assert answer(deployed.url) == "one"


def test_a_push_that_gitolite_refuses_deploys_nothing(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "guarded", nap, tmp_path)
    assert alice.push().status == 0
    alice.become("bob")
    alice.commit(index_html="two")
    refused = alice.push()
    assert refused.status == 1
    assert "DENIED by fallthru" in refused.text
    assert "guarded v1" not in refused.text, "it is no push of what is there"
    assert len(releases(alice)) == 1


def test_it_deploys_also_where_another_hook_has_its_place(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "displaced", nap, tmp_path)
    hook = alice.bare / "hooks/post-receive"
    hook.unlink()
    hook.write_text("#!/bin/sh\necho mail was sent\n")
    hook.chmod(0o755)
    pushed = alice.push()
    assert pushed.status == 0, pushed.text
    assert "mail was sent" in pushed.text
    assert answer(pushed.url) == "one"


def test_what_gitolite_conf_does_not_name_is_kept_only(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "alice", "kept", nap, tmp_path)
    for _ in range(2):
        pushed = alice.push()
        assert pushed.status == 0, pushed.text
        assert "--->" not in pushed.text
        assert "!" not in pushed.text
    assert (alice.bare / "hooks/post-receive").is_symlink(), "the hook is in every repository"
    assert not nap.keys("/nap/apps/kept/")


def test_the_first_push_makes_a_wild_repository_and_deploys_it(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    bob = a_developer(gitolite, "bob", "wild/bob/blog", nap, tmp_path)
    pushed = bob.push()
    assert pushed.status == 0, pushed.text
    assert "=====> wild-bob-blog v1 is live" in pushed.text
    assert answer(pushed.url) == "one"


def test_a_mirror_copy_deploys_only_where_it_is_told_to(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    mirrored = a_developer(gitolite, "server-origin", "mirrored", nap, tmp_path)
    pushed = mirrored.push("--mirror", "nap")
    assert pushed.status == 0, pushed.text
    assert "building" not in pushed.text
    assert not nap.keys("/nap/apps/mirrored/")

    told = a_developer(gitolite, "server-origin", "told", nap, tmp_path)
    pushed = told.push("--mirror", "nap")
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "one"


def test_a_push_that_a_copy_redirected_deploys(gitolite: Gitolite, nap: Nap, tmp_path: Path) -> None:
    alice = a_developer(gitolite, "server-origin", "redirected", nap, tmp_path)
    ssh = tmp_path / "ssh"  # as a copy does: "case 1" of pre_git in gitolite's Mirroring.pm
    ssh.write_text(f'#!/bin/sh\nexec {gitolite.ssh("server-origin")} "$1" "$2" "$3" "USER=alice" "SOC=$4"\n')
    ssh.chmod(0o755)
    alice.git("config", "core.sshCommand", str(ssh))
    alice.git("config", "ssh.variant", "ssh")
    alice.git("config", "protocol.version", "0")
    pushed = alice.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "one"
    assert [each["by"] for each in releases(alice)] == ["alice"]


def test_installing_again_changes_nothing(other: Gitolite, nap: Nap) -> None:
    first = other.nap("gitolite:install", nap=nap)
    assert "post-receive: written" in first.stdout
    before = other.files()
    again = other.nap("gitolite:install", nap=nap)
    assert other.files() == before
    assert again.stdout.startswith("nap is already installed in this gitolite. Nothing was changed.")
    assert "option nap = deploy" in again.stdout
    assert not again.stderr


def test_uninstalling_leaves_all_as_it_was(other: Gitolite, nap: Nap) -> None:
    before = other.files()
    other.nap("gitolite:install", nap=nap)
    assert "Nap::post_git" in other.run("gitolite", "query-rc", "POST_GIT").stdout
    other.configure("repo shop\n    RW+ = admin\n    config nap.branch = main\n")
    gone = other.nap("gitolite:uninstall", nap=nap)
    assert "gitolite.conf still has nap's `config` lines for shop;" in gone.stderr
    other.configure("")
    after = other.files()
    ours = {name for name in after if "nap" in name.lower() or "post-receive" in name}
    assert not ours
    for name in (".gitolite.rc", "repositories/gitolite-admin.git/hooks/update"):
        assert after[name] == before[name]
    assert not (other.home / "local").exists()
    again = other.nap("gitolite:uninstall", nap=nap)
    assert again.stdout.startswith("nap is not installed in this gitolite. Nothing was changed.")


def test_gitolite_serves_on_without_the_trigger(other: Gitolite, nap: Nap) -> None:
    other.nap("gitolite:install", nap=nap)
    (other.home / "local/lib/Gitolite/Triggers/Nap.pm").unlink()
    assert "Nap" not in other.run("gitolite", "query-rc", "POST_GIT", ok=False).stdout
    other.nap("gitolite:install", nap=nap)
    assert "Nap::post_git" in other.run("gitolite", "query-rc", "POST_GIT").stdout


@pytest.mark.parametrize(
    ("path", "content", "why"),
    [
        ("repositories/testing.git/hooks/post-receive", "#!/bin/sh\n", "already a post-receive hook in testing"),
        ("local/hooks/common/post-receive", "#!/bin/sh\n", "post-receive already exists and is not nap's"),
        ("local/lib/Gitolite/Triggers/Nap.pm", "1;\n", "Nap.pm already exists and is not nap's"),
        (".gitolite/hooks/common/post-receive", "#!/bin/sh\n", "post-receive already exists and is not nap's"),
        (
            ".gitolite.rc",
            "%RC = ( ENABLE => [] );\n5 +\n1;\n",
            "would be invalid after the change, so it was not changed",
        ),
        (".gitolite.rc", "%RC = ( ENABLE => [] );\n42;\n", "no line `1;`"),
        (".gitolite.rc", "%RC = (;\n1;\n", "gitolite cannot use"),
        (".gitolite.rc", "%RC = ( ENABLE => [] );\n1;\n__END__\n1;\n", "had no effect and were removed"),
    ],
)
def test_what_is_in_the_way_is_left_as_it_is(untouched: Gitolite, nap: Nap, path: str, content: str, why: str) -> None:
    place = untouched.home / path
    kept = place.read_text() if place.exists() else None
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    before = untouched.files()
    refused = untouched.nap("gitolite:install", nap=nap, ok=False)
    after = untouched.files()
    if kept is None:
        place.unlink()
    else:
        place.write_text(kept)
    assert refused.returncode == 1
    assert why in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert after == before


def test_installing_says_where_another_hook_has_its_place(other: Gitolite, nap: Nap) -> None:
    driver = other.home / "local/hooks/multi-hook-driver"
    place = other.repositories / "testing.git/hooks/post-receive"
    other.edit_rc('$RC{LOCAL_CODE} = "$ENV{HOME}/local";', "push @{ $RC{ENABLE} }, 'repo-specific-hooks';")
    for folder in ("hooks/repo-specific", "hooks/common"):
        (other.home / "local" / folder).mkdir(parents=True)
    (other.home / "local/hooks/repo-specific/mail").write_text("#!/bin/sh\n")
    (other.home / "local/hooks/repo-specific/mail").chmod(0o755)
    other.configure("repo testing\n    RW+ = admin\n    option hook.post-receive = mail\n")
    assert place.readlink() == driver
    installed = other.nap("gitolite:install", nap=nap)
    other.run("gitolite", "setup")
    assert "`option hook.post-receive` replaces nap's hook in testing" in installed.stderr


@pytest.mark.parametrize("value", ["it's", "\\", "\\'", "a\\\\b", "$x @y `z`", "two\nlines", "é", "-n", ""])
def test_perl_and_the_shell_read_back_what_is_written(value: str) -> None:
    said = subprocess.run(["perl", "-e", f"print {perl_word(value)}"], capture_output=True, check=True)
    assert said.stdout.decode() == value
    said = subprocess.run(["sh", "-c", f"printf %s {sh_word(value)}"], capture_output=True, check=True)
    assert said.stdout.decode() == value


def test_who_runs_no_gitolite_is_told_so(other: Gitolite, nap: Nap) -> None:
    other.rc.rename(other.home / "elsewhere")
    refused = other.nap("gitolite:install", nap=nap, ok=False)
    assert refused.returncode == 1
    assert "this account has no gitolite" in refused.stderr
