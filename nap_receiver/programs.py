"""The programs of a single-machine nap: how each is run and configured, and how to tell that it answers."""

import getpass
import os
import shutil
import socket
import ssl
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sh

from nap_receiver import engine
from nap_receiver.caddy import answers
from nap_receiver.errors import NapError
from nap_receiver.kept import write_etcdctl
from nap_receiver.keys import renew
from nap_receiver.routes import STOP_SECONDS, has_told, prepare, told_last
from nap_receiver.settings import EtcdSettings, Settings
from nap_receiver.state import State
from nap_receiver.supervision import Supervisor
from nap_receiver.units import TEMPLATES, environment

_PACKAGES = {
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "docker-registry": "docker-registry",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "docker": "docker.io",
    "git": "git",
    "curl": "curl",
    "caddy": "caddy",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "flock": "util-linux",
}


SCHEDULER_STOP_SECONDS = 3600
"""How long the scheduler may take to stop all apps: above any drain and grace, and the same whatever they are."""


@dataclass(frozen=True)
class Program:
    """One of nap's own programs: how it is run, where it answers, and how to tell that it does."""

    name: str
    command: list[str]
    address: str
    setting: str
    answers: Callable[[], bool]
    order: int
    stop_seconds: int = 20


@dataclass(frozen=True)
class Foreign:
    """What nap relies on and somebody else runs: where it answers, and how to tell that it does."""

    name: str
    address: str
    answers: Callable[[], bool]


def require_installed() -> None:
    """Raise `NapError` with the Debian packages to install where a program is missing."""
    missing = sorted({package for program, package in _PACKAGES.items() if not _found(program)})
    if missing:
        raise NapError(
            "some of the programs that nap runs are not installed",
            advice=f"Install them: {'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(missing)}",
        )


def foreign(state: State, settings: Settings) -> list[Foreign]:
    """What somebody else runs: an engine that is not nap's and, under fleet, all that belongs to the cluster."""
    found = []
    if settings.engine.url != engine.own_url(state):
        url = settings.engine.url or engine.USUAL
        found.append(Foreign("engine", url, lambda: engine.answers(url)))
    if settings.scheduler == "fleet":
        registry = settings.registry.address
        found += [
            Foreign("etcd", settings.etcd.address, lambda: etcd_answers(settings.etcd)),
            Foreign("registry", registry, lambda: _greets(registry.host, registry.port, b"")),
            Foreign("fleet", settings.fleet.endpoint, lambda: _has_machines(state, settings)),
        ]
    return found


def programs_of(state: State, settings: Settings) -> list[Program]:
    """All of them, the ones that others need first. Under fleet, the cluster has its own etcd and registry."""
    if settings.scheduler == "local" and settings.etcd.ca:
        raise NapError("etcd.ca: the etcd that nap runs itself is on loopback, without TLS", advice="Remove etcd.ca.")
    etcd, registry, ssh = settings.etcd.address, settings.registry.address, settings.ssh.address
    scheduler = Supervisor(state.run / "scheduler.sock", "the local scheduler")
    programs = [
        Program("etcd", _etcd_command(state, etcd), etcd, "etcd.address", lambda: serves(f"http://{etcd}/health"), 20),
        Program(
            "registry",
            [path_of("docker-registry"), "serve", str(state.run / "registry.yml")],
            registry,
            "registry.address",
            lambda: serves(f"http://{registry}/v2/"),
            30,
        ),
        Program(
            "gate",
            [path_of("sshd"), "-D", "-e", "-f", str(state.run / "sshd_config")],
            ssh,
            "ssh.address",
            lambda: _greets(ssh.host, ssh.port, b"SSH-"),
            40,
        ),
        Program(
            "scheduler",
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(state.run / "scheduler.conf")],
            str(state.run / "scheduler.sock"),
            "",
            scheduler.answers,
            50,
            SCHEDULER_STOP_SECONDS,
        ),
    ]
    if settings.router.domain:
        programs += _router(state, settings)
    if settings.scheduler == "fleet":
        programs = [program for program in programs if program.name == "gate"]
    own = engine.own_url(state)
    if settings.engine.url == own:
        programs.insert(0, Program("engine", engine.own_command(state), own, "", lambda: engine.answers(own), 10))
    return programs


def _router(state: State, settings: Settings) -> list[Program]:
    """Caddy, and what tells it where apps are."""
    socket, where = state.run / "caddy.sock", str(settings.router.https or settings.router.http)
    start = ["/usr/bin/env", f"XDG_CONFIG_HOME={state.root / 'caddy'}", "/bin/sh", str(TEMPLATES / "caddy.sh")]
    router = [sys.executable, "-P", "-m", "nap_receiver.router", str(state.root)]
    return [
        Program(
            "caddy",
            [*start, str(state.run / "caddy.json"), caddy_of(settings)],
            where,
            "router.http",
            lambda: answers(socket),
            60,
            STOP_SECONDS,
        ),
        Program("router", router, str(socket), "", lambda: has_told(state), 70),
    ]


def _etcd_command(state: State, address: str) -> list[str]:
    # The one member talks to no other, and needs no port for it: its peer address is a socket below its directory.
    peer = "unix://etcd-peer:0"
    return [
        "/usr/bin/env",
        f"--chdir={state.root / 'etcd'}",
        path_of("etcd"),
        "--data-dir=data",
        f"--listen-client-urls=http://{address}",
        f"--advertise-client-urls=http://{address}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--auto-compaction-retention=1h",
        "--logger=zap",
        "--log-level=warn",
    ]


def write_configuration(state: State, settings: Settings, programs: Sequence[Program]) -> set[str]:
    """Write every program's files; the names of those whose files changed."""
    for folder in (
        state.run,
        state.units,
        state.repositories,
        state.program_logs / "apps",
        state.ssh,
        state.root / "etcd",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    for private in (state.ssh, state.run, state.root / "etcd"):
        private.chmod(0o700)
    host_key = state.ssh / "host_key"
    if not host_key.exists():
        sh.Command("ssh-keygen")("-q", "-t", "ed25519", "-N", "", "-C", "nap", "-f", str(host_key))
    (state.ssh / "authorized_keys").touch(mode=0o600)
    renew(state)
    values = {
        "root": str(state.root),
        "run": str(state.run),
        "logs": str(state.program_logs),
        "units": str(state.units),
        "hooks": str(TEMPLATES.parent / "hooks"),
        "settings": settings,
        "programs": programs,
        "account": getpass.getuser(),
        "account_is_locked": account_is_locked(),
    }
    templates = environment(TEMPLATES / "machine")
    changed = set()
    owners = {
        "supervisord.conf": "",
        "scheduler.conf": "scheduler",
        "registry.yml": "registry",
        "sshd_config": "gate",
        state.git_configuration.name: "",  # read anew by each push
    }
    for name, owner in owners.items():
        path, text = state.run / name, templates.get_template(f"{name}.j2").render(values)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.add(owner)
    if settings.router.domain and _prepare_router(state, settings):
        changed.add("router")
    write_etcdctl(state, settings.etcd)
    return changed & {program.name for program in programs}


def _prepare_router(state: State, settings: Settings) -> bool:
    """Write what Caddy starts with; whether what the router goes by is other than before."""
    prepare(state)
    path = state.run / "router.settings"
    now = [str(state.root), repr(settings.router), repr(settings.etcd)]
    before = path.read_text().splitlines() if path.exists() else []
    if now == before:
        return False
    path.write_text("\n".join(now))
    if now[:2] != before[:2]:
        told_last(state).unlink(missing_ok=True)  # there it would listen elsewhere
    return True


def account_is_locked() -> bool:
    """Whether sshd without PAM would refuse this account: its password field starts with `!` (sshd(8), shadow(5))."""
    if os.geteuid() != 0:
        return False
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        if name == getpass.getuser():
            return password.startswith("!")
    return False


def serves(url: str, context: ssl.SSLContext | None = None) -> bool:
    """Whether a GET of `url` is answered well within 2 s."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def etcd_answers(settings: EtcdSettings) -> bool:
    """Whether etcd answers, well within 2 s, to who has these files. Raises `NapError` where one cannot be used."""
    return serves(f"{settings.url}/health", tls_of(settings))


def tls_of(settings: EtcdSettings) -> ssl.SSLContext | None:
    """How etcd is spoken to; None without TLS. Raises `NapError` where one of its files cannot be used."""
    if not settings.ca:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key or None)
    except OSError as error:
        files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.key)))
        raise NapError(f"etcd's files for TLS cannot be used: {error.strerror or error}: {files}") from error
    return context


def _has_machines(state: State, settings: Settings) -> bool:
    from nap_receiver.fleet import Fleet

    try:
        return bool(Fleet(state, settings).machines())
    except NapError:
        return False


def _greets(host: str, port: int, greeting: bytes) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=2) as connection:
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def _found(program: str) -> str | None:
    installed_with_nap = [sysconfig.get_path("scripts")] if program == "caddy" else []
    return shutil.which(program, path=":".join([*installed_with_nap, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def caddy_of(settings: Settings) -> str:
    """The path of the Caddy that is to run."""
    return settings.router.caddy or path_of("caddy")


def path_of(program: str) -> str:
    """The path of an installed program."""
    return _found(program) or program
