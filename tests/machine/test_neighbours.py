"""What a tenant's build reaches of the machine and of other tenants, on real programs."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nap_receiver.build.confine import confined
from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.engine.client import engine_at
from nap_receiver.git.checkout import DOCKERFILE, Checkout
from nap_receiver.machine.firewall import chains
from tests.nap import HTTPD, Nap, Pusher, answer

SERVE = 'EXPOSE 8080\nCMD ["httpd", "-f", "-p", "8080", "-h", "/"]\n'
SECRET = "only for whom it concerns"


class Neighbour(BaseHTTPRequestHandler):
    """A service that is nobody's on the network, and tells a secret to all who reach it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SECRET.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def served(address: str, port: int = 0) -> Iterator[str]:
    with ThreadingHTTPServer((address, port), Neighbour) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"{address}:{server.server_port}"
        server.shutdown()


def refusal(nap: Nap, app: str, dockerfile: str) -> str:
    """Why nap's engine is not given this Dockerfile."""
    checkout = Checkout("1" * 40, 0, manifests={DOCKERFILE: dockerfile.encode()})
    with (
        tempfile.TemporaryFile() as file,
        Channel(file.fileno()) as channel,
        engine_at(nap.engine_url) as engine,
        pytest.raises(NapError) as refused,
        confined(checkout, app, engine, nap.settings, channel),
    ):
        """The engine would build now."""
    return str(refused.value)


def test_a_build_reads_no_loopback_service_and_no_other_apps_image(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    victim = Pusher(nap, f"victim-of-{pusher.app}"[:40], tmp_path / "victim")
    commit = victim.commit(Dockerfile=HTTPD, secret_txt=SECRET)
    assert victim.push().status == 0
    name = f"{nap.settings.registry.address}/{victim.app}:{commit}"
    about = json.loads(nap.docker("image", "inspect", name))[0]
    identity = about["Id"].removeprefix("sha256:")

    for image in (name, about["RepoDigests"][0], identity[:12], f"sha256:{identity}"):
        for step in (f"FROM {image}\n", f"FROM nap/busybox\nCOPY --from={image} /www /www\n"):
            why = refusal(nap, pusher.app, step)
            assert "is an image of another app" in why or "cannot be pulled" in why, why
    pusher.commit(Dockerfile=f"FROM nap/busybox\nCOPY --from={name} /www /www\n")
    pushed = pusher.push()
    assert pushed.status == 1
    assert f"line 2: {name} is an image of another app" in pushed.text
    nap.docker("tag", name, "innocent:1")
    nap.docker(
        "build", "--tag", "trigger:1", "--file", str(trigger(tmp_path, f"COPY --from={name} /www /www")), str(tmp_path)
    )
    for base in ("innocent:1", "trigger:1"):
        assert "is an image of another app" in refusal(nap, pusher.app, f"FROM {base}\n")

    with served("127.0.0.1") as address:
        for url in (f"http://{address}/x", f"http://{nap.settings.registry.address}/v2/_catalog"):
            assert "nap machine itself" in refusal(nap, pusher.app, f"FROM nap/busybox\nADD {url} /www/x\n")
        nap.docker(
            "build", "--tag", "trigger:2", "--file", str(trigger(tmp_path, f"ADD http://{address}/x /x")), str(tmp_path)
        )
        assert "is not known before the build" in refusal(nap, pusher.app, "FROM trigger:2\n")


@contextmanager
def build_settings(nap: Nap, line: str) -> Iterator[None]:
    """Have this line be all that is set, below `[build]`, for the block."""
    nap.state.settings_file.write_text(f"[build]\n{line}\n")
    try:
        yield
    finally:
        nap.state.settings_file.unlink()


def test_a_build_uses_images_of_the_app_itself_and_what_the_operator_lets_it_download(nap: Nap, pusher: Pusher) -> None:
    first = pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push().status == 0
    own = f"{nap.settings.registry.address}/{pusher.app}:{first}"
    with build_settings(nap, 'private_networks = "127.0.0.0/8"'), served("127.0.0.1") as address:
        pusher.commit(
            Dockerfile=f"""\
FROM {own} AS before
FROM nap/busybox
ENV NAME=said
ADD http://{address}/$NAME.txt http://{address}/b /www/
ADD http://{address}/c.tar /www/c
COPY . /www/context/
COPY --from=before /www/index.html /www/
COPY --from={own} /www/index.html /www/too.html
RUN stat -c '%a %Y' /www/c >/www/about; ls -A /www/context >>/www/about; chmod -R a+r /www
EXPOSE 8080
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
"""
        )
        pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    for path in ("said.txt", "b", "c"):
        assert answer(f"{pushed.url}/{path}") == SECRET
    assert (answer(pushed.url), answer(f"{pushed.url}/too.html")) == ("one", "one")
    assert answer(f"{pushed.url}/about") == "600 0\nDockerfile\nindex.html\n"
    assert "nap-added" not in nap.docker("image", "ls", "--all")


def test_a_build_is_bounded_in_memory_and_processors(nap: Nap, pusher: Pusher) -> None:
    with build_settings(nap, "memory = 40000000\ncpus = 0.5"):
        pusher.commit(Dockerfile="FROM nap/busybox\nRUN exec head -c 200000000 /dev/zero | tail\n")
        pushed = pusher.push()
    assert pushed.status == 1
    assert "it used more memory than build.memory allows (40000000 bytes)" in pushed.text, pushed.text
    group = f"nap{nap.state.name}/buildkit"
    kept = {each.name: each.read_text().strip() for each in Path("/sys/fs/cgroup").glob(f"*/{group}/*_quota_us")}
    kept |= {each.name: each.read_text().strip() for each in Path("/sys/fs/cgroup").glob(f"{group}/cpu.max")}
    assert kept in ({"cpu.cfs_quota_us": "50000"}, {"cpu.max": "50000 100000"})


def test_a_step_of_the_classic_builders_is_bounded_in_memory_and_processors(nap: Nap, pusher: Pusher) -> None:
    limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null"
    with build_settings(nap, 'engine = "classic"\nmemory = 40000000'):
        pusher.commit(Dockerfile=f"FROM nap/busybox\nRUN {limits}; {quota}; exec head -c 200000000 /dev/zero | tail\n")
        pushed = pusher.push()
    assert pushed.status == 1
    assert "39997440" in pushed.text, "whole pages"
    assert "100000" in pushed.text
    assert "it used more memory than build.memory allows (40000000 bytes)" in pushed.text, pushed.text


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_the_steps_of_a_build_are_bounded_in_processes(nap: Nap, pusher: Pusher, builder: str) -> None:
    many = "i=0; while [ $i -lt 300 ]; do sleep 20 & i=$((i + 1)); done; echo all"
    before = groups_of_builds(nap)
    with build_settings(nap, f'engine = "{builder}"\npids = 200'):
        pusher.commit(Dockerfile=f"FROM nap/busybox\nRUN {many}\n")
        pushed = pusher.push()
    assert pushed.status == 1
    assert any("can't fork" in line for line in pushed.lines), pushed.text
    assert groups_of_builds(nap) <= before, "nothing of it is left"


def groups_of_builds(nap: Nap) -> set[Path]:
    """The control groups that are there for builds; one that ends within a moment of its build may leave its own."""
    return set(Path("/sys/fs/cgroup").rglob(f"nap{nap.state.name}build*"))


@pytest.fixture
def metadata() -> Iterator[str]:
    """A metadata service as clouds have it, at a link-local address."""
    ip = ["ip", "address", "add", "169.254.169.254/32", "dev", "lo"]
    subprocess.run(ip, check=True)
    with served("169.254.169.254", 80) as address:
        yield address
    subprocess.run([*ip[:2], "delete", *ip[3:]], check=True)


@pytest.mark.parametrize("builder", ["buildkit", "classic"])
def test_neither_a_build_nor_an_app_reaches_the_machines_services(
    nap: Nap, pusher: Pusher, metadata: str, builder: str
) -> None:
    with build_settings(nap, f'engine = "{builder}"'), served("0.0.0.0") as everywhere, served("0.0.0.0", 53) as names:
        ports = [_port(everywhere), nap.settings.registry.address.port, nap.settings.ssh.address.port]
        gateway = "$(route -n | awk '$1 == \"0.0.0.0\" {print $2}')"
        places = [metadata.replace(":", " "), *(f"{host} {port}" for host in ("127.0.0.1", gateway) for port in ports)]
        ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3"
        tries = "; ".join(f"{ask} {place} && echo reached" for place in places)
        name_server = f"{ask} {gateway} {_port(names)}"
        pusher.commit(Dockerfile=f"FROM nap/busybox\nRUN ({tries}; echo done; {name_server}) >/seen\n{SERVE}")
        pushed = pusher.push()
        assert pushed.status == 0, pushed.text
        container = nap.containers(pusher.app)[0]
        for seen in ("cat /seen", f"{tries}; echo done; {name_server}"):
            kept_out, reached = nap.docker("exec", container, "sh", "-c", seen).split("done\n")
            assert kept_out == ""
            assert SECRET in reached, "a name server is reached"


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def test_doctor_finds_a_missing_firewall_rule_and_makes_it_again(own_nap: Nap) -> None:
    to_machine, _ = chains(own_nap.state)
    subprocess.run(["iptables", "--wait", "--flush", to_machine], check=True)
    assert "problem   firewall: " in own_nap.run("doctor", ok=False).stdout
    assert "repaired  firewall: " in own_nap.run("doctor", "--fix", ok=False).stdout
    assert "ok        firewall: " in own_nap.run("doctor", ok=False).stdout


def trigger(folder: Path, step: str) -> Path:
    """A Dockerfile of a base image that does this in whatever is built from it."""
    path = folder / "trigger"
    path.write_text(f"FROM nap/busybox\nONBUILD {step}\n")
    return path
