"""Machines for tests: containers that boot systemd as PID 1 and run Docker inside, on an engine of the tests' own.

The image is Debian 12, made by debootstrap once and kept below the user's cache directory. Only root can make it, and
only root can start the engine.

A container has no privileges beyond the capabilities listed here, because an engine that lacks one itself cannot grant
`--privileged`. systemd needs control groups that it can write. It gets a control group namespace of its own, on hosts
with cgroup v1 and with v2 alike, whose mounts are made writable before it starts. Sharing the host's hierarchies would
do too, but then systemd mounts what is missing there and makes the host's own mount read-only.

usage: python -m tests.real_machine    (makes the image, unless it is there)
"""

import hashlib
import io
import ipaddress
import json
import os
import select
import shlex
import signal
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State, state_at
from nap_receiver.engine.daemon import answers, clean_up, free_network, make_bridge, own_command, own_url
from tests.debian import IMAGE_SECONDS, RootFilesystem, make, require_root
from tests.nap import eventually

NETWORKS = ipaddress.IPv4Network("10.214.0.0/16")
"""Where machines' networks lie. An engine of the harness's own pushes to registries here without TLS."""

BOOT_SECONDS = 60
"""How long a machine may take until systemd is up and its engine answers."""

_ENGINE_SECONDS = 60
_LAST_WORDS = 30

_DEBIAN = RootFilesystem(
    "machine",
    (
        *("systemd", "systemd-sysv", "dbus", "iproute2", "iptables", "ca-certificates", "curl", "procps", "docker.io"),
        *("etcd-client", "etcd-server", "docker-registry", "openssh-server"),
    ),
    """\
chroot "$root" systemctl --quiet disable etcd docker-registry ssh
# Nothing here needs them, and each costs time at boot or wakes up later.
chroot "$root" systemctl --quiet mask getty@.service console-getty.service systemd-logind.service \\
    e2scrub_reap.service e2scrub_all.timer systemd-pstore.service apt-daily.timer apt-daily-upgrade.timer \\
    dpkg-db-backup.timer fstrim.timer
: >"$root"/etc/machine-id
""",
)
_SYSTEMD = """\
awk '$5 ~ "^/sys/fs/cgroup" { print $5 }' /proc/self/mountinfo | xargs -n 1 mount -o remount,bind,rw
exec /lib/systemd/systemd
"""

# Without SYS_RESOURCE, which hosts that are guests themselves often lack.
_CAPABILITIES = (
    "AUDIT_CONTROL AUDIT_WRITE BLOCK_SUSPEND CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL "
    "LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW SETFCAP "
    "SETGID SETPCAP SETUID SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYSLOG "
    "SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
)


@dataclass(frozen=True)
class Machine:
    """A container that is a machine: systemd, and an engine inside."""

    engine: str
    """The URL of the engine that the container is on."""
    name: str
    """The container's name, and the machine's own."""
    address: str
    """Its IPv4 address on `network`."""
    network: str

    @property
    def id(self) -> str:
        """Its machine-id, the same after a power cut."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:32]

    @property
    def volume(self) -> str:
        """What holds the inner engine's data, which overlayfs wants on a disk of its own."""
        return f"{self.name}-docker"

    def run(
        self, *words: str, stdin: str = "", ok: bool = True, seconds: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as root on the machine; unless `ok` is false it must succeed. It may take `seconds`."""
        done = _docker(self.engine, "exec", "--interactive", self.name, *words, stdin=stdin, seconds=seconds)
        assert not ok or done.returncode == 0, f"{self.name}: {shlex.join(words)}: {done.stdout}{done.stderr}"
        return done

    def write(self, path: str, text: str) -> None:
        """Write a file, and the directories above it."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, stdin=text)

    def docker(self, *words: str) -> str:
        """What docker on the machine prints, of the engine inside."""
        return self.run("docker", *words).stdout.strip()

    def journal(self, unit: str = "", lines: int = _LAST_WORDS) -> str:
        """The last lines of the machine's journal, or of one unit's."""
        chosen = ["--unit", unit] if unit else []
        return self.run("journalctl", "--no-pager", "--lines", str(lines), *chosen, ok=False).stdout

    def kill(self) -> None:
        """Cut its power: every process on it is gone at once."""
        _said(self.engine, "kill", self.name)

    def start(self) -> None:
        """Switch it on again, with the disk it had; returns when it is up. Raises `NapError` where it does not."""
        _said(self.engine, "start", self.name)
        self.await_boot()

    def cut(self) -> None:
        """Pull its network cable: all on it runs on, alone."""
        _said(self.engine, "network", "disconnect", self.network, self.name)

    def join(self) -> None:
        """Plug it in again, under the address it had."""
        _said(self.engine, "network", "connect", "--ip", self.address, self.network, self.name)

    def mend(self) -> None:
        """Switch it on and plug it in, whichever it needs; returns when it is up."""
        if not _said(self.engine, "inspect", "--format", "{{range .NetworkSettings.Networks}}x{{end}}", self.name):
            self.join()
        if _said(self.engine, "inspect", "--format", "{{.State.Running}}", self.name) != "true":
            self.start()

    def remove(self) -> None:
        """Remove the container and its volume; nothing if they are gone already."""
        _docker(self.engine, "rm", "--force", "--volumes", self.name)
        _docker(self.engine, "volume", "rm", "--force", self.volume)

    def await_boot(self) -> None:
        """Return when systemd is up and Docker answers inside. Raises `NapError` with the journal's last lines."""
        try:
            eventually(self._is_up, BOOT_SECONDS, f"{self.name} has booted")
        except AssertionError as error:
            state = self.run("systemctl", "is-system-running", ok=False).stdout.strip()
            jobs = self.run("systemctl", "list-jobs", "--no-legend", ok=False).stdout
            raise NapError(
                f"{self.name} is not up within {BOOT_SECONDS} s: systemd says {state or 'nothing'}",
                words=[*jobs.splitlines(), *self.journal().splitlines()],
            ) from error

    def _is_up(self) -> bool:
        # systemd waits by itself for as long as it boots; before it does so, there is no bus to ask on.
        waited = self.run("systemctl", "is-system-running", "--wait", ok=False, seconds=BOOT_SECONDS)
        if waited.stdout.strip() not in {"running", "degraded"}:
            return False
        return self.run("docker", "version", ok=False).returncode == 0


def boot(
    engine: str,
    network: str,
    name: str,
    address: str,
    *,
    registry: str | None = None,
    files: Mapping[str, str | Path] = {},
) -> Machine:
    """Make a machine and return when it is up, within a minute. Raises `NapError` with the journal's last lines.

    It pulls from `registry` without TLS. `files` are there before systemd starts: paths, and either the text or the
    file, with its mode, to copy.
    """
    machine = Machine(engine, name, address, network)
    disk = {
        "/etc/machine-id": machine.id + "\n",
        "/etc/docker/daemon.json": json.dumps({"insecure-registries": [registry] if registry else []}),
        **files,
    }
    _said(
        engine,
        "create",
        f"--name={name}",
        f"--hostname={name}",
        f"--network={network}",
        f"--ip={address}",
        "--stop-signal=SIGRTMIN+3",
        f"--volume={machine.volume}:/var/lib/docker",
        "--tmpfs=/run:exec",
        "--tmpfs=/tmp:exec",
        *(f"--cap-add={capability}" for capability in _CAPABILITIES.split()),
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--security-opt=systempaths=unconfined",
        "--device-cgroup-rule=a *:* rwm",
        "--cgroupns=private",
        "--env=container=docker",
        image(engine),
        *("sh", "-ec", _SYSTEMD),
    )
    copied = subprocess.run(
        ["docker", "--host", engine, "cp", "-", f"{name}:/"], input=_tar(disk), capture_output=True, timeout=60
    )
    assert copied.returncode == 0, copied.stderr.decode()
    machine.start()
    return machine


def free_subnet(name: str) -> str:
    """A network of 254 addresses that no route of this machine goes to yet; `name`, hexadecimal, says where to begin.

    Raises `NapError` where none is free.
    """
    free = free_network(NETWORKS, name)
    if free is None:
        raise NapError(f"no network of {NETWORKS} is free for machines")
    return str(free)


def network(engine: str, name: str, subnet: str) -> None:
    """Make a network for machines, and an interface of the same name, of at most 15 bytes; nothing if it is there."""
    if _docker(engine, "network", "inspect", name).returncode == 0:
        return
    _said(
        engine,
        "network",
        "create",
        f"--subnet={subnet}",
        "--opt",
        f"com.docker.network.bridge.name={name}",
        name,
    )


def image(engine: str) -> str:
    """The name of the machines' image, which this engine has from now on.

    The first time on a computer takes a minute or two and about 600 MB of disk. Raises `NapError` where it cannot be
    made.
    """
    name = f"nap/machine:{_DEBIAN.version}"
    if _docker(engine, "image", "inspect", name).returncode != 0:
        _said(engine, "import", str(_DEBIAN.tarball()), name, seconds=IMAGE_SECONDS)
    return name


def own_engine(folder: Path) -> str:
    """The URL of an engine of the harness's own below `folder`, started unless it answers already; it runs on alone.

    `folder`'s path must be short, for unix sockets lie in it. Raises `NapError` without root, and with the engine's
    last words where it does not answer within a minute.
    """
    state = state_at(folder)
    if answers(own_url(state)):
        return own_url(state)
    require_root("an engine of the harness's own is needed")
    state.require_room_for_sockets()
    state.run.mkdir(parents=True, exist_ok=True)
    log = state.root / "engine.log"
    if _engine_process(state) is None:
        (state.run / "docker.pid").unlink(missing_ok=True)  # its number may be another's by now
        make_bridge(state)
        command = [*own_command(state), f"--insecure-registry={NETWORKS}"]
        with log.open("a") as written:
            subprocess.run(
                ["setsid", "--fork", *command],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                check=True,
            )
    try:
        eventually(lambda: answers(own_url(state)), _ENGINE_SECONDS, "the engine answers")
    except AssertionError as error:
        raise NapError(
            f"the engine below {state.root} does not answer within {_ENGINE_SECONDS} s",
            words=log.read_text(errors="replace").splitlines()[-_LAST_WORDS:],
        ) from error
    return own_url(state)


def stop_engine(folder: Path) -> bool:
    """End that engine, remove all its containers and networks, its interface and mounts; whether there was one.

    Its data stay below `folder`. One that was killed is started once more, because its containers may have outlived it.
    """
    state = state_at(folder)
    if not (state.root / "engine").exists():
        clean_up(state)
        return False
    url = own_engine(folder)
    if containers := _said(url, "ps", "--all", "--quiet").split():
        _said(url, "rm", "--force", "--volumes", *containers, seconds=_ENGINE_SECONDS)
    if networks := _said(url, "network", "ls", "--quiet", "--filter=type=custom").split():
        _said(url, "network", "rm", *networks)
    if process := _engine_process(state):
        _end(process)
    clean_up(state)
    return True


def _engine_process(state: State) -> int | None:
    """The process of the engine below this folder. Its pid file is written late and outlives it."""
    mark = f"--host={own_url(state)}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if mark in words and words[0].endswith(b"dockerd"):
                return int(folder.name)
    return None


def _end(process: int) -> None:
    """Ask a process to end, and kill it where it does not."""
    with suppress(ProcessLookupError):
        watched = os.pidfd_open(process)
        try:
            for word in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(watched, word)
                poller = select.poll()
                poller.register(watched, select.POLLIN)
                if poller.poll(30_000):
                    return
        finally:
            os.close(watched)


def _tar(files: Mapping[str, str | Path]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, content in files.items():
            name = path.lstrip("/")
            if isinstance(content, Path):
                tar.add(content, name, filter=_of_root)
            else:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content.encode()), 0o644
                tar.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _said(engine: str, *words: str, seconds: float = 60) -> str:
    """What docker prints; it must succeed."""
    done = _docker(engine, *words, seconds=seconds)
    if done.returncode != 0:
        raise NapError(f"docker {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def _docker(engine: str, *words: str, stdin: str = "", seconds: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", "--host", engine, *words], input=stdin, text=True, capture_output=True, timeout=seconds
    )


if __name__ == "__main__":
    make(_DEBIAN)
