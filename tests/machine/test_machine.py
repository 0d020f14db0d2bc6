"""`nap up`, `nap down` and `nap status`: the single machine, as its operator sees it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nap_receiver.schedulers.local import Local
from tests.conftest import free_address, fresh_nap
from tests.nap import HTTPD, Nap, Pusher, answer, eventually, throughout
from tests.regulars import regulars


@pytest.fixture
def own(short_folder: Path, request: pytest.FixtureRequest) -> Iterator[Nap]:
    """A nap of the test's own, that shares no engine; not up yet."""
    folder = short_folder / request.node.originalname.removeprefix("test_")[:8]
    nap = fresh_nap(folder, NAP_ENGINE_URL=f"unix://{folder}/run/docker.sock")
    yield nap
    nap.run("down", ok=False)


def processes_of(nap: Nap) -> list[str]:
    """Command lines that name this nap's state directory, of processes that are alive."""
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "stat=,pid=,args="], text=True, capture_output=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(nap.folder) in line and not line.startswith("Z")]


def answered(pusher: Pusher) -> str:
    """What the app answers where it is announced now; nothing where it is not, or does not."""
    for value in pusher.announcements().values():
        assert isinstance(value, dict)
        try:
            return answer(f"http://{value['host']}:{value['port']}")
        except OSError:
            return ""
    return ""


def up_with_an_app(own: Nap, folder: Path) -> Pusher:
    """Bring `own` up; the pusher of `hello`, which answers `here` on it."""
    own.run("up")
    own.import_busybox()
    pusher = Pusher(own, "hello", folder)
    pusher.commit(Dockerfile=HTTPD, index_html="here")
    assert pusher.push().status == 0
    return pusher


def test_up_prints_what_to_do_next_and_status_agrees(nap: Nap) -> None:
    again = nap.run("up")
    for program in ("etcd", "registry", "gate", "gate-server", "agent"):
        assert nap.answers(program)
    assert f"{nap.settings.ssh.address.port}/APP" in again.stdout
    assert "git push nap master" in again.stdout
    assert nap.run("status").returncode == 0


def test_each_program_is_back_within_10_seconds(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="here")
    assert pusher.push().status == 0
    (container,) = nap.containers(pusher.app)
    same = nap.docker("inspect", "--format", "{{.Id}}", container)
    programs = [process["name"] for process in nap.supervisor.call("getAllProcessInfo")]
    assert {"etcd", "registry", "gate", "gate-server", "agent"} <= set(programs)
    for program in programs:
        before = nap.process(program)
        os.kill(before, signal.SIGKILL)
        eventually(lambda p=program, b=before: nap.process(p) not in (0, b), 10, f"{program} runs")  # type: ignore[misc]
        eventually(lambda p=program: nap.answers(p), 10, f"{program} answers")  # type: ignore[misc]

    eventually(lambda: answered(pusher) == "here", 30, "the app is back and announced")
    assert nap.docker("inspect", "--format", "{{.Id}}", container) == same, "it never stopped"
    assert len(nap.containers(pusher.app)) == 1
    pusher.commit(index_html="deploys")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "deploys"


def test_apps_stay_announced_when_the_agent_dies(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    ((key, value),) = pusher.announcements().items()
    before, prefix = nap.process("agent"), f"/services/{pusher.app}/"
    with closing(nap.etcd()) as etcd, regulars(nap, f"{pusher.app}.localhost") as asked:
        since = etcd.revision()
        os.kill(before, signal.SIGKILL)
        eventually(lambda: nap.process("agent") not in (0, before) and nap.answers("agent"), 10, "the next agent")
        changes = [change.value for change in etcd.changes([prefix], since, 3)]
        assert all(each == value for each in changes), "it was announced all the time"
    assert asked.answered > 50
    assert not asked.failed
    assert pusher.announcements() == {key: value}
    assert pusher.ssh_command("ps:stop", pusher.app).returncode == 0
    assert pusher.announcements() == {}, "the next agent withdraws it"


def test_agent_that_dies_while_a_release_retires_leaves_nothing_of_it(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    pusher.commit(index_html="two")
    pushed = pusher.push()
    assert len(nap.containers(pusher.app)) == 2, "the old one is drained"
    before = nap.process("agent")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: nap.process("agent") not in (0, before) and nap.answers("agent"), 10, "it is back")
    eventually(lambda: len(nap.containers(pusher.app)) == 1, 15, "the old one is gone")
    eventually(lambda: answered(pusher) == "two", 15, "the new one is announced")
    assert answer(pushed.url) == "two", "and never stopped"
    eventually(lambda: nap.runs(pusher.app, 1) == [], 5, "nothing of it runs")


def test_up_starts_nothing_again_that_is_being_stopped(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push().status == 0
    local = Local(nap.state, nap.settings)
    local.stop(local.running(pusher.app))
    eventually(lambda: not nap.containers(pusher.app), 15, "it has stopped")
    nap.run("up")
    assert local.is_stopping(f"{pusher.app}.v1.web.1")
    throughout(lambda: not pusher.announcements() and not nap.containers(pusher.app), 2, "it stays stopped")


def test_down_leaves_nothing_running_and_up_brings_the_apps_back(own: Nap, tmp_path: Path) -> None:
    pusher = up_with_an_app(own, tmp_path)
    assert processes_of(own)
    own.run("down")
    assert processes_of(own) == []
    assert not Path("/sys/class/net", f"nap{own.state.name}").exists()
    rules = [subprocess.check_output(["iptables", "-t", table, "-S"], text=True) for table in ("nat", "filter")]
    assert f"nap{own.state.name}" not in "".join(rules)
    assert f"NAP-{own.state.name}" not in "".join(rules)
    assert own.run("status", ok=False).returncode == 1
    assert own.run("down").stdout == "nap was not up.\n"
    own.run("up")
    eventually(lambda: answered(pusher) == "here", 20, "the app answers where it is announced")


def test_apps_come_back_after_the_machine_died(own: Nap, tmp_path: Path) -> None:
    pusher = up_with_an_app(own, tmp_path)
    os.kill(int(own.supervisor.call("getPID")), signal.SIGKILL)
    eventually(lambda: not own.supervisor.answers(), 5, "the supervisor is gone")
    eventually(lambda: not [p for p in processes_of(own) if "containerd" not in p], 60, "and all that it ran")
    own.run("up")
    eventually(lambda: answered(pusher) == "here", 30, "the app answers where it is announced")
    os.kill(own.process("engine"), signal.SIGKILL)
    own.run("down")
    assert str(own.folder) not in Path("/proc/self/mountinfo").read_text(), "no mount is left"


def test_two_naps_side_by_side_do_not_meet(nap: Nap, own: Nap, pusher: Pusher, tmp_path: Path) -> None:
    other = fresh_nap(own.folder, NAP_ENGINE_URL=nap.engine_url)  # the hard case: they share the engine
    other.run("up")
    (tmp_path / "other").mkdir()
    theirs = Pusher(other, pusher.app, tmp_path / "other")
    pusher.commit(Dockerfile=HTTPD, index_html="mine")
    theirs.commit(Dockerfile=HTTPD, index_html="theirs")
    mine_pushed, theirs_pushed = pusher.push(), theirs.push()
    assert answer(mine_pushed.url) == "mine"
    assert answer(theirs_pushed.url) == "theirs"
    other.run("down")
    assert other.containers(pusher.app) == []
    assert answer(mine_pushed.url) == "mine"


def test_taken_port_is_named(own: Nap) -> None:
    host, _, port = own.variables["NAP_REGISTRY_ADDRESS"].partition(":")
    with socket.create_server((host, int(port))):
        done = own.run("up", ok=False)
    assert done.returncode == 1
    assert f"registry.address: registry cannot listen on {host}:{port}: Address already in use" in done.stderr
    assert "NAP_REGISTRY_ADDRESS=" in done.stderr
    assert processes_of(own) == []


def test_program_that_does_not_come_up_is_named_with_its_log(own: Nap) -> None:
    data = own.folder / "etcd" / "data"
    data.parent.mkdir(parents=True)
    data.write_text("no directory")
    done = own.run("up", ok=False)
    assert done.returncode == 1
    assert " !     etcd does not stay up" in done.stderr
    assert "etcd.log" in done.stderr
    assert any("data" in line for line in done.stderr.splitlines() if line.startswith("       ")), "its own words"
    assert processes_of(own) == []


def test_changed_settings_reach_the_apps_that_run(own: Nap, tmp_path: Path) -> None:
    pusher = up_with_an_app(own, tmp_path)
    own.variables["NAP_ETCD_ADDRESS"] = free_address()  # of before etcd was on a socket; it has no effect
    own.variables["NAP_REGISTRY_ADDRESS"] = free_address()
    own.variables["NAP_DEPLOY_GRACE"] = "4"
    own.run("up")
    assert own.settings.etcd.url == own.state.etcd_url
    assert own.run("status").returncode == 0
    eventually(lambda: answered(pusher) == "here", 20, "its instance was started anew")
    assert pusher.push().status == 0


def test_settings_are_shown_with_their_source(own: Nap) -> None:
    own.folder.mkdir(exist_ok=True)
    own.state.settings_file.write_text("[deploy]\nanswer_timeout = 7\n")
    shown = {line.split()[0]: line for line in own.run("settings").stdout.splitlines()}
    assert str(own.state.settings_file) in shown["deploy.answer_timeout"]
    assert shown["deploy.answer_timeout"].split()[1] == "7"
    assert "environment: NAP_SSH_ADDRESS" in shown["ssh.address"]
    assert shown["deploy.build_timeout"].endswith("default")
    own.state.settings_file.write_text('[deploy]\nanswer_timeout = "two"\n')
    done = own.run("settings", ok=False)
    assert done.returncode == 1
    assert f"{own.state.settings_file}: deploy.answer_timeout: expected a whole number" in done.stderr
    assert 'got "two"' in done.stderr


def test_disk_full_while_building(own: Nap, tmp_path: Path) -> None:
    small = own.folder / "engine"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "nap-test", str(small)], check=True)
    own.variables["NAP_DEPLOY_FREE_SPACE"] = "0"
    try:
        own.run("up")
        own.import_busybox()
        pusher = Pusher(own, "hello", tmp_path)
        pusher.commit(Dockerfile=HTTPD, index_html="one")
        first = pusher.push()
        assert first.status == 0, first.text
        pusher.commit(Dockerfile=HTTPD.replace("EXPOSE", "RUN dd if=/dev/zero of=/filled bs=1M count=100\nEXPOSE"))
        pushed = pusher.push()
        assert pushed.status == 1
        assert "ran out of disk space" in "\n".join(pushed.trouble), pushed.text
        assert answer(first.url) == "one"
        assert own.leftovers("hello", 2) == []
    finally:
        own.run("down", ok=False)
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_keys_let_in_and_out(nap: Nap, pusher: Pusher) -> None:
    user = pusher.app[-30:].strip("-")
    assert user in nap.run("keys").stdout
    nap.run("keys:remove", user)
    pusher.commit(Dockerfile=HTTPD)
    pushed = pusher.push()
    assert pushed.status != 0
    assert "Permission denied" in pushed.text
    for bad, reason in {
        "": "expected one public key",
        "ssh-ed25519 AAAA": "ssh-keygen cannot read that key",
        'command="sh" ssh-ed25519 AAAA': "options before the key are not accepted",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n": "expected a public key, got a private key",
    }.items():
        done = nap.run("keys:add", "mallory", stdin=bad, ok=False)
        assert done.returncode == 1
        assert reason in done.stderr


def test_gate_has_no_shell(nap: Nap, pusher: Pusher) -> None:
    address = nap.settings.ssh.address
    ssh = [*pusher.ssh.split(), "-p", str(address.port), address.host]
    for command, status in {
        "sh": 2,
        "cat /etc/passwd": 2,
        "git-receive-pack": 1,
        "git-receive-pack 'a' 'b'": 1,
        "git-upload-pack ../../x; id": 1,
    }.items():
        done = subprocess.run([*ssh, command], text=True, capture_output=True, timeout=20)
        assert done.returncode == status, command
        assert done.stderr.startswith(" !     "), done.stderr
        assert done.stdout == ""
