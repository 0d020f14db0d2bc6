"""When it goes wrong: the last lines say what happened and what to do, what ran still runs, nothing is left behind."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nap_receiver.core.http import serves
from nap_receiver.core.paths import state_at
from tests.conftest import free_address
from tests.nap import HTTPD, ROOT, Nap, Pushed, Pusher, answer, eventually, runs


@pytest.fixture(autouse=True)
def _what_ran_still_runs(nap: Nap, pusher: Pusher, live: Pushed) -> Iterator[None]:
    yield
    assert answer(live.url) == "one"
    assert list(pusher.announcements()) == [f"/services/{pusher.app}/v1.web.1"]
    assert nap.containers(pusher.app) == [f"{pusher.app}.v1.web.1.{nap.state.name}"]
    for release in range(2, 4):
        assert nap.leftovers(pusher.app, release) == []


def failed(pushed: Pushed, what: str, advice: str = "") -> None:
    """The push failed, and its last lines say so: in words, not in a traceback."""
    assert pushed.status == 1, pushed.text
    assert what in "\n".join(pushed.trouble), pushed.text
    assert advice in "\n".join(pushed.trouble), pushed.text
    assert "Traceback" not in pushed.text
    assert "nap itself failed" not in pushed.text
    own = [line for line in pushed.lines if not line.startswith(("To ", "error: ", "   ", " + ", " * "))]
    assert own[-1].startswith(" !     "), pushed.text


def refused(pushed: Pushed, what: str, advice: str) -> None:
    """Nothing was received, and the first lines say why and what to do."""
    assert pushed.status == 128, pushed.text
    assert what in pushed.trouble[0], pushed.text
    assert advice in pushed.trouble[1], pushed.text
    assert "[new branch]" not in pushed.text
    assert "building" not in pushed.text


def test_build_step_fails(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FROM nap/busybox\nRUN echo the build says this; exit 4\n")
    pushed = pusher.push()
    failed(pushed, "the build failed at [2/2] RUN echo the build says this; exit 4: it exited with status 4")
    assert "       the build says this" in pushed.lines
    assert nap.docker("ps", "--all", "--quiet", "--filter", "status=exited") == ""


def test_no_dockerfile(pusher: Pusher) -> None:
    (pusher.repository / "Dockerfile").unlink()
    pusher.commit(README_md="nothing else")
    failed(pusher.push(), "has no Dockerfile at its top", "Add a file named Dockerfile")
    pusher.commit(Dockerfile_prod=HTTPD)
    failed(pusher.push(), "has no Dockerfile at its top", "git mv Dockerfile.prod Dockerfile")


def test_wrong_dockerfile(pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FORM nap/busybox\n")
    failed(pusher.push(), "the build failed in the Dockerfile", "unknown instruction: FORM")


def test_exit_at_start_is_told_at_once(nap: Nap, pusher: Pusher) -> None:
    start = "echo starting; sleep 1; echo no database >&2; cut -d ' ' -f 1 /proc/uptime >&2; exit 3"
    pusher.commit(Dockerfile=runs(start))
    process = pusher.start_push()
    said, _ = process.communicate(timeout=30)
    told = float(Path("/proc/uptime").read_text().split()[0])
    lines = [line.removeprefix("remote: ").rstrip() for line in said.splitlines()]
    pushed = Pushed(process.returncode, lines, 0)
    failed(pushed, f"{pusher.app} v2 web.1 exited with status 3 before it answered on port 8080")
    at = lines.index("       starting")
    assert lines[at + 1] == "       no database"
    assert told - float(lines[at + 2]) < 10, "nobody waits for the deadline, which comes after 60 s"


def test_instance_that_exits_again_and_again_is_taken_away(nap: Nap, pusher: Pusher) -> None:
    # It lives long enough for the supervisor to take each end for one of a program that had started: the moment after
    # it, the program can neither be stopped nor forgotten.
    for number in range(2, 5):
        pusher.commit(Dockerfile=runs(f"sleep 1.{number}; exit {number}"))
        failed(pusher.push(), f"exited with status {number}")
        assert nap.leftovers(pusher.app, number) == []


def test_command_that_is_not_there(pusher: Pusher) -> None:
    pusher.commit(Dockerfile='FROM nap/busybox\nEXPOSE 8080\nCMD ["no-such-program"]\n')
    pushed = pusher.push()
    failed(pushed, "exited with status 127")
    assert "no-such-program" in pushed.text


def test_script_with_windows_line_ends_is_named(pusher: Pusher) -> None:
    script = 'FROM nap/busybox\nCOPY serve.sh /\nRUN chmod 755 /serve.sh\nEXPOSE 8080\nENTRYPOINT ["/serve.sh"]\n'
    pusher.commit(Dockerfile=script, serve_sh="#!/bin/sh\r\nexec httpd -f -p 8080\r\n")
    pushed = pusher.push()
    failed(pushed, "exited with status 127")
    assert (
        "scripts with Windows line ends or a byte order mark, which do not start on Linux: serve.sh" in pushed.trouble
    )


def test_never_listens(pusher: Pusher) -> None:
    pusher.commit(Dockerfile=runs("echo I am up but deaf; exec sleep 1000"))
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "2")
    pushed = pusher.push()
    failed(pushed, "did not answer on port 8080 within 2 s", "must listen on 0.0.0.0 (not 127.0.0.1)")
    assert "       I am up but deaf" in pushed.lines


def test_starved_app_is_told_apart_from_a_silent_one(pusher: Pusher) -> None:
    # All on one processor: what tells that they wait has another one, and so has whatever runs beside this test.
    one = "$(sed -n 's/^Cpus_allowed_list:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/self/status)"
    pusher.commit(
        Dockerfile=runs(f"taskset -cp {one} $$; for each in 1 2 3 4 5 6; do while :; do :; done & done; wait")
    )
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "10")
    pushed = pusher.push()
    failed(pushed, ", of which it got no processor for ", f"too low: resource:limit {pusher.app}")
    assert "       the machine is busy: the app got no processor for " in pushed.text


def test_listens_on_its_own_loopback_only(pusher: Pusher) -> None:
    pusher.commit(Dockerfile=runs("exec httpd -f -p 127.0.0.1:8080 -h /etc"))
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "10")
    where = "did not answer on port 8080 within 10 s: it listens on 127.0.0.1:8080 only"
    failed(pusher.push(), where, "It must listen on 0.0.0.0")


def test_healthcheck_never_passes(pusher: Pusher) -> None:
    check = 'HEALTHCHECK --interval=5m CMD ["sh", "-c", "echo no database yet; echo at all >&2; exit 1"]'
    pusher.commit(Dockerfile=HTTPD.replace("CMD", f"{check}\nCMD"))
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "3")
    pushed = pusher.push()
    failed(pushed, "its HEALTHCHECK did not pass within 3 s")
    first = pushed.lines.index("       its HEALTHCHECK ended with status 1, and printed:")
    assert sorted(pushed.lines[first + 1 : first + 3]) == ["       at all", "       no database yet"]


def test_healthcheck_fails(pusher: Pusher) -> None:
    check = "HEALTHCHECK --interval=1s --retries=1 CMD echo 'no \"database\" yet'; exit 3"
    pusher.commit(Dockerfile=HTTPD.replace("CMD", f"{check}\nCMD"))
    pushed = pusher.push()
    failed(pushed, f"{pusher.app} v2 web.1: its HEALTHCHECK fails")
    first = pushed.lines.index("       its HEALTHCHECK ended with status 3, and printed:")
    assert pushed.lines[first + 1] == '       no "database" yet'


def test_timeout_that_is_no_number(pusher: Pusher) -> None:
    pusher.commit(index_html="two")
    pusher.git(f"--git-dir={pusher.bare}", "config", "nap.timeout", "soon")
    pushed = pusher.push()
    failed(pushed, 'nap.timeout: expected a whole number of seconds, got "soon"')
    assert "building" not in pushed.text


@contextmanager
def stopped(nap: Nap, program: str) -> Iterator[None]:
    """One of nap's own programs is away for the block."""
    nap.supervisor.call("stopProcess", program)
    try:
        yield
    finally:
        nap.supervisor.call("startProcess", program)
        eventually(lambda: nap.answers(program), 20, f"{program} is back")


def test_registry_is_away(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(index_html="two")
    with stopped(nap, "registry"):
        failed(pusher.push(), "the registry at", "nap status")


def test_etcd_is_away(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(index_html="two")
    with stopped(nap, "etcd"):
        pushed = pusher.push()
    refused(pushed, "etcd at", "nap up")
    eventually(pusher.announcements, 20, "announced again")


def test_etcd_is_frozen(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(index_html="two")
    etcd = nap.process("etcd")
    os.kill(etcd, signal.SIGSTOP)
    try:
        pushed = pusher.push()
    finally:
        os.kill(etcd, signal.SIGCONT)
    refused(pushed, "etcd at", "nap up")
    assert pushed.seconds < 15
    eventually(pusher.announcements, 30, "announced again")


def test_agent_is_away(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(index_html="two")
    nowhere = pusher.folder / "nowhere"
    known = {"NAP_STATE": str(nowhere), "NAP_ETCD_ADDRESS": nap.settings.etcd.address}
    known |= {"NAP_REGISTRY_ADDRESS": nap.settings.registry.address, "NAP_ENGINE_URL": nap.engine_url}
    shutil.copytree(nap.state.registry_login, state_at(nowhere).registry_login)
    pushed = push_to_hook(nap, pusher, nowhere / "repositories" / f"{pusher.app}.git", known)
    why = "the agent of this machine, which starts instances, does not answer"
    assert why in pushed.trouble, pushed.text
    assert nap.keys(f"/nap/machines/{state_at(nowhere).name}/") == {}


def push_to_hook(nap: Nap, pusher: Pusher, bare: Path, variables: dict[str, str]) -> Pushed:
    """Push into a plain repository with nap's hook, run under these settings."""
    bare.parent.mkdir(parents=True, exist_ok=True)
    pusher.git("init", "--quiet", "--bare", str(bare))
    (bare / "hooks" / "post-receive").unlink(missing_ok=True)
    (bare / "hooks" / "post-receive").symlink_to(ROOT / "hooks" / "post-receive")
    done = subprocess.run(
        ["git", "push", str(bare), "HEAD:refs/heads/master"],
        cwd=pusher.repository,
        env=nap.environment | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return Pushed(done.returncode, [line.removeprefix("remote: ").rstrip() for line in done.stdout.splitlines()], 0)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"NAP_ENGINE_URL": "unix:///no/such/engine.sock"}, "the Docker Engine at unix:///no/such/engine.sock"),
        ({"NAP_REGISTRY_ADDRESS": "127.0.0.1:1"}, "could not be pushed to the registry at 127.0.0.1:1: "),
        ({"NAP_LOCAL_HOST": "192.0.2.1"}, "cannot assign requested address"),
        (
            {"NAP_LOCAL_HOST": "256.0.0.1"},
            'NAP_LOCAL_HOST: expected an IPv4 address of this machine, such as "127.0.0.1"',
        ),
        ({"NAP_DEPLOY_DRAIN": "soon"}, "environment: NAP_DEPLOY_DRAIN: expected a whole number of seconds"),
    ],
    ids=["engine away", "registry away", "address not there", "no address", "setting wrong"],
)
def test_under_settings(nap: Nap, pusher: Pusher, variables: dict[str, str], what: str) -> None:
    pusher.commit(index_html="two")
    pushed = push_to_hook(nap, pusher, pusher.bare, variables)
    assert pushed.status == 0, "git ignores how a plain hook ends"
    assert what in "\n".join(pushed.trouble), pushed.text
    assert "nap itself failed" not in pushed.text


def test_registry_refuses(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    address = free_address()
    configuration = tmp_path / "registry.yml"
    configuration.write_text(
        "version: 0.1\n"
        "storage:\n"
        f"  filesystem:\n    rootdirectory: {tmp_path}\n"
        "  maintenance:\n    readonly:\n      enabled: true\n"
        f"http:\n  addr: {address}\n"
    )
    registry = subprocess.Popen(
        ["docker-registry", "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: serves(f"http://{address}/v2/"), 10, "the registry answers")
        pusher.commit(index_html="two")
        bare = pusher.bare
        pushed = push_to_hook(nap, pusher, bare, {"NAP_REGISTRY_ADDRESS": address})
    finally:
        registry.terminate()
        registry.wait()
    assert f"could not be pushed to the registry at {address}: " in pushed.trouble[0], pushed.text
    assert "405" in pushed.trouble[0]


def test_damaged_repository_yields_no_image(nap: Nap, pusher: Pusher) -> None:
    commit = pusher.commit(index_html="two", zzz="the last file of the context")
    bare = pusher.folder / "damaged.git"
    pusher.git("clone", "--quiet", "--bare", "--no-hardlinks", str(pusher.repository), str(bare))
    blob = pusher.git("rev-parse", "HEAD:zzz")
    (bare / "objects" / blob[:2] / blob[2:]).unlink()
    hook = nap.run_hook(bare, commit)
    assert hook.returncode == 1
    assert f"zzz (object {blob[:12]}) cannot be read" in hook.stdout
    assert commit not in nap.docker("images", "--format", "{{.Repository}}:{{.Tag}}")


def test_build_takes_too_long(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FROM nap/busybox\nRUN echo endless; sleep 600\n")
    pushed = push_to_hook(nap, pusher, pusher.bare, {"NAP_DEPLOY_BUILD_TIMEOUT": "2"})
    assert "building and pushing the image took longer than 2 s and was stopped" in pushed.trouble[0], pushed.text
    eventually(lambda: "sleep 600" not in nap.docker("ps", "--no-trunc"), 5, "the step is stopped too")


def test_a_name_that_cannot_be_an_apps(nap: Nap, pusher: Pusher) -> None:
    address = nap.settings.ssh.address
    pushed = pusher.push(f"ssh://{address}/Not_An_App", "HEAD:refs/heads/master")
    assert pushed.status != 0
    assert "cannot be an app's name: only a to z, 0 to 9 and single dashes" in pushed.text
    assert not (nap.state.repositories / "Not_An_App.git").exists()


def test_a_second_repository_of_the_same_app(nap: Nap, pusher: Pusher) -> None:
    team, _, name = pusher.app.partition("-")
    pushed = pusher.push(f"ssh://{nap.settings.ssh.address}/{team}/{name}", "HEAD:refs/heads/master")
    assert pushed.status != 0
    assert f"app name {pusher.app} is already used by repository {pusher.app}" in pushed.text
    assert not (nap.state.repositories / team).exists()


def test_killed_deploy_leaves_the_next_push_nothing_to_mend(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile="FROM nap/busybox\nRUN echo building; sleep 60\n")
    process = pusher.start_push()
    assert process.stdout
    for line in process.stdout:
        if "sleep 60" in line:
            break
    ((_, lock),) = nap.keys(f"/nap/apps/{pusher.app}/lock").items()
    assert lock
    os.kill(pusher.deploying(), signal.SIGKILL)
    said, _ = process.communicate(timeout=20)
    assert "the deploy was killed" in said
    assert process.returncode == 1
    pusher.commit(Dockerfile="FROM nap/busybox\nRUN exit 5\n")
    pushed = pusher.push()
    failed(pushed, "it exited with status 5")
    assert pushed.seconds < 15, "a dead deploy's lock is in the way for at most 10 s"


def test_stopped_deploy_takes_its_instance_away(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=runs("exec sleep 1000"))
    process = pusher.start_push()
    eventually(lambda: len(nap.containers(pusher.app)) == 2, 20, "the new instance runs")
    os.kill(pusher.deploying(), signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "the deploy was stopped from outside" in said
    assert process.returncode == 1
