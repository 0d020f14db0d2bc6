"""A router that its operator runs beside etcd, as on a cluster."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.conftest import free_address
from tests.examples import ROOT as CHECKOUT
from tests.fleet_apps import pushed
from tests.machine.test_router import ask, own, served
from tests.nap import Nap, Pushed, Pusher, eventually


def unit(name: str) -> dict[str, str]:
    """What a unit of the documentation says, by option."""
    text = (CHECKOUT / "docs" / "router-cluster.md").read_text()
    (block,) = re.findall(rf"^# /etc/systemd/system/{name}\.service\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


@contextmanager
def running(words: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program, until the block's end."""
    with log.open("ab") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_router_on_a_machine_of_its_own(nap: Nap, pusher: Pusher, live: Pushed, short_folder: Path) -> None:
    folder = short_folder / "elsewhere"
    folder.mkdir()
    (folder / "settings.toml").write_text(
        f'[etcd]\naddress = "{nap.settings.etcd.address}"\n\n'
        f'[router]\ndomain = "apps.example.test"\nhttp = "{free_address()}"\n'
    )
    elsewhere = Nap(folder)
    caddies, follower = [unit("nap-caddy"), unit("nap-front")], unit("nap-router")

    def words(line: str) -> list[str]:
        return shlex.split(line.replace("/opt/nap", str(CHECKOUT)).replace("/var/lib/nap", str(folder)))

    variables = {"PATH": os.environ["PATH"], "NAP_STATE": str(folder)}
    for caddy in caddies:
        prepared = subprocess.run(
            words(caddy["ExecStartPre"]), env=variables, capture_output=True, text=True, timeout=60
        )
        assert prepared.stdout == f"{folder}/run/caddy.json\n{folder}/run/front.json\n"
    refused = elsewhere.run("logs", pusher.app, "-p", "router", ok=False)
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (
        1,
        "",
        [
            " !     no router has run on this machine; its log is on the machine where it runs",
            f" !     Read it there: {folder}/programs/requests.log, or below its state directory (docs/router.md).",
        ],
    )

    name, log = f"{pusher.app}.apps.example.test", folder / "said"
    with ExitStack() as stack:
        for caddy in caddies:
            (setting,) = words(caddy["Environment"])
            own_place = dict([setting.split("=", 1)])
            stack.enter_context(running(words(caddy["ExecStart"]), variables | own_place, log))
        first = stack.enter_context(running(words(follower["ExecStart"]), variables, log))
        eventually(lambda: answers(elsewhere, name), 10, "it serves the app")
        served(elsewhere, name, 200, "one")
        served(elsewhere, own(pusher), 404)
        served(nap, own(pusher), 200, "one")
        pusher.commit(index_html="two")
        pushed(pusher)
        served(elsewhere, name, 200, "two")
        assert '"GET / HTTP/1.1" 200 ' in elsewhere.run("logs", pusher.app, "-p", "router").stdout

        stack.enter_context(running(words(follower["ExecStart"]), variables, folder / "second"))
        waits = "Another router is running. This one takes over when the other ends."
        eventually(lambda: waits in (folder / "second").read_text(), 10, "a second one waits")
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=5) == 0
        nap.run("domains:add", pusher.app, f"www.{pusher.app}.test")
        served(elsewhere, f"www.{pusher.app}.test", 200, "two")
        assert not (CHECKOUT / "caddy").exists(), "where it was started"
        assert "Traceback" not in log.read_text() + (folder / "second").read_text()


def answers(nap: Nap, name: str) -> bool:
    """Whether a visitor of `name` is answered by an app."""
    try:
        return ask(nap, name)[0] == 200
    except OSError:
        return False
