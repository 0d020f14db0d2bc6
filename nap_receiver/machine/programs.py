"""The programs of a single-machine nap: how each is run, configured and checked."""

import getpass
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sh

from nap_receiver.auth.gate_socket import gate_socket
from nap_receiver.auth.keys import renew
from nap_receiver.build.registry import registry_answers
from nap_receiver.core.errors import NapError
from nap_receiver.core.http import ANSWER_SECONDS, answers_well, serves
from nap_receiver.core.installed import digest_of_code, found_program, path_of, script
from nap_receiver.core.paths import ETCD_SOCKET, State
from nap_receiver.core.ready import is_ready
from nap_receiver.core.settings import EtcdSettings, Settings
from nap_receiver.core.templates import HOOKS, TEMPLATES, environment
from nap_receiver.engine import daemon
from nap_receiver.engine.login import make_login
from nap_receiver.routing.caddy import answers
from nap_receiver.routing.caddy_configuration import (
    CADDY,
    FRONT,
    STOP_SECONDS,
    admin_socket,
    has_told,
    inner_socket,
    prepare,
    told_last,
)
from nap_receiver.schedulers.chosen import scheduler_of
from nap_receiver.schedulers.scheduler import Dependency
from nap_receiver.store.etcdctl import write_etcdctl

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


@dataclass(frozen=True)
class Program:
    """One of nap's own programs: its command, its address, and a check that it is ready."""

    name: str
    command: list[str]
    address: str
    setting: str
    answers: Callable[[], bool]
    order: int
    stop_seconds: int = 20


def require_installed() -> None:
    """Raise `NapError` with the missing Debian packages."""
    missing = sorted({package for program, package in _PACKAGES.items() if not found_program(program)})
    if found_program("dockerd") and "docker.io" in missing:  # from Debian 13 on, docker.io is without its client
        missing[missing.index("docker.io")] = "docker-cli"
    if missing:
        raise NapError(
            "some programs that nap needs are not installed",
            advice=f"Install them: {'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(missing)}",
        )


def dependencies(state: State, settings: Settings) -> list[Dependency]:
    """Return the programs that nap needs and does not run: another engine and, on a cluster, the cluster's programs."""
    found: list[Dependency] = []
    if settings.engine.url != daemon.own_url(state):
        url = settings.engine.url or daemon.USUAL
        found.append(Dependency("engine", url, lambda: daemon.answers(url)))
    if not settings.is_single_machine:
        registry = settings.registry.address
        found += [
            Dependency("etcd", settings.etcd.address, lambda: etcd_answers(settings.etcd)),
            Dependency("registry", registry, lambda: _greets(registry.host, registry.port, b"")),
        ]
    return [*found, *scheduler_of(state, settings).dependencies()]


def programs_of(state: State, settings: Settings) -> list[Program]:
    """Return all programs in the order of their start. A cluster has its own etcd, registry and router."""
    if settings.is_single_machine and settings.etcd.ca:
        raise NapError("etcd.ca: nap's own etcd uses a socket, without TLS", advice="Remove etcd.ca.")
    registry, ssh = settings.registry.address, settings.ssh.address
    programs = [
        Program("etcd", _etcd_command(state), settings.etcd.address, "", lambda: etcd_answers(settings.etcd), 20),
        Program(
            "registry",
            [path_of("docker-registry"), "serve", str(state.run / "registry.yml")],
            registry,
            "registry.address",
            lambda: registry_answers(state, settings),
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
            "gate-server",
            [script("nap-gate-server"), str(state.root)],
            gate_socket(state.root),
            "",
            lambda: is_ready(gate_socket(state.root)),
            45,
        ),
        Program(
            "agent",
            [script("nap-agent"), str(state.root)],
            str(state.agent_socket),
            "",
            lambda: is_ready(str(state.agent_socket)),
            50,
        ),
    ]
    if settings.router.domain:
        programs += _router(state, settings)
    if scheduler_of(state, settings).runs_on != "this machine":
        programs = [program for program in programs if program.name != "agent"]
    if not settings.is_single_machine:
        programs = [program for program in programs if program.name in {"gate", "gate-server", "agent"}]
    own = daemon.own_url(state)
    if settings.engine.url == own:
        programs.insert(0, Program("engine", daemon.own_command(state), own, "", lambda: daemon.answers(own), 10))
    return programs


def _router(state: State, settings: Settings) -> list[Program]:
    """Return the programs of the router: the second Caddy, the front, and the process that configures them."""
    where = str(settings.router.https or settings.router.http)
    router = [script("nap-router"), str(state.root)]
    return [
        _caddy(CADDY, state, settings, str(inner_socket(state, "web")), "", 60),
        _caddy(FRONT, state, settings, where, "router.http", 65),  # ends first, for it waits for answers from the other
        Program("router", router, str(admin_socket(state, CADDY)), "", lambda: has_told(state), 70),
    ]


def _caddy(name: str, state: State, settings: Settings, address: str, setting: str, order: int) -> Program:
    """Return a Caddy that keeps its last configuration itself."""
    start = ["/usr/bin/env", f"XDG_CONFIG_HOME={state.root / name}", "/bin/sh", str(TEMPLATES / "caddy.sh")]
    command = [*start, str(state.run / f"{name}.json"), caddy_of(settings)]
    socket = admin_socket(state, name)
    return Program(name, command, address, setting, lambda: answers(socket), order, STOP_SECONDS)


def _etcd_command(state: State) -> list[str]:
    # Whoever reaches it may do all, and each account and web browser of the machine reaches a port: so both of its
    # addresses are sockets in a directory that is this account's alone. The one member talks to no other.
    client, peer = f"unix://{ETCD_SOCKET}", "unix://etcd-peer:0"
    # It does not start where its socket is left of before, as after a kill.
    return [
        *("/bin/sh", "-c", 'cd "$0" && rm -f "$1" && shift && exec "$@"', str(state.run), ETCD_SOCKET),
        path_of("etcd"),
        f"--data-dir={state.root / 'etcd' / 'data'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--auto-compaction-retention=5m",  # what many changes of large values leave must not fill its 2 GiB
        "--logger=zap",
        "--log-level=warn",
    ]


def write_configuration(state: State, settings: Settings, programs: Sequence[Program]) -> set[str]:
    """Write the files of all programs; return the names of the programs whose files changed."""
    for folder in (
        state.run,
        state.repositories,
        state.program_logs,
        state.ssh,
        state.root / "etcd",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    host_key = state.ssh / "host_key"
    if not host_key.exists():
        sh.Command("ssh-keygen")("-q", "-t", "ed25519", "-N", "", "-C", "nap", "-f", str(host_key))
    (state.ssh / "authorized_keys").touch(mode=0o600)
    renew(state)
    values = {
        "root": str(state.root),
        "run": str(state.run),
        "logs": str(state.program_logs),
        "hooks": str(HOOKS),
        "settings": settings,
        "programs": programs,
        "account": getpass.getuser(),
        "account_is_locked": account_is_locked(),
    }
    if settings.is_single_machine:
        make_login(state, settings)
    templates = environment(TEMPLATES / "machine")
    changed = set()
    owners = {
        "supervisord.conf": "",
        "registry.yml": "registry",
        "sshd_config": "gate",
        state.git_configuration.name: "",  # read anew by each push
    }
    for name, owner in owners.items():
        path, text = state.run / name, templates.get_template(f"{name}.j2").render(values)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.add(owner)
    code = digest_of_code()
    if _differs(state, "gate-server", code):
        changed.add("gate-server")
    used_by_agent = (settings.etcd, settings.engine, settings.deploy, settings.local, settings.registry)
    if _differs(state, "agent", repr(used_by_agent) + code):
        changed.add("agent")
    if settings.router.domain and _prepare_router(state, settings, code):
        changed.add("router")
    write_etcdctl(state, settings.etcd)
    return changed & {program.name for program in programs}


def _differs(state: State, program: str, now: str) -> bool:
    """Whether what a program started with, its settings and its code, differs from what it would start with now."""
    path = state.run / f"{program}.started"
    if path.exists() and path.read_text() == now:
        return False
    path.write_text(now)
    return True


def _prepare_router(state: State, settings: Settings, code: str) -> bool:
    """Write Caddy's first configuration; return whether the router's settings or its code have changed.

    A process keeps the code that it started with: after an upgrade, the router has to start again.
    """
    prepare(state)
    path = state.run / "router.settings"
    now = [str(state.root), repr(settings.router), repr(settings.etcd), code]
    before = path.read_text().splitlines() if path.exists() else []
    if now == before:
        return False
    path.write_text("\n".join(now))
    if now[:2] != before[:2]:
        for program in (CADDY, FRONT):
            told_last(state, program).unlink(missing_ok=True)  # there it would listen elsewhere
    return True


def account_is_locked() -> bool:
    """Return whether sshd without PAM refuses this account: its password field starts with `!` (sshd(8), shadow(5))."""
    if os.geteuid() != 0:
        return False
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password = line.split(":")[:2]
        if name == getpass.getuser():
            return password.startswith("!")
    return False


def etcd_answers(settings: EtcdSettings) -> bool:
    """Return whether etcd answers within 2 s with these files. Raises `NapError` if a file cannot be used."""
    if settings.address.socket:
        return answers_well(settings.address.socket, "/health", ANSWER_SECONDS)
    return serves(f"{settings.url}/health", tls_of(settings))


def tls_of(settings: EtcdSettings) -> ssl.SSLContext | None:
    """Return the TLS context for etcd; None without TLS. Raises `NapError` if a file cannot be used."""
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


def _greets(host: str, port: int, greeting: bytes) -> bool:
    try:
        with socket.create_connection((host.strip("[]"), port), timeout=2) as connection:
            return connection.recv(len(greeting)) == greeting
    except OSError:
        return False


def caddy_of(settings: Settings) -> str:
    """Return the path of the Caddy to run."""
    return settings.router.caddy or path_of("caddy")
