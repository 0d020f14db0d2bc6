"""A fleet cluster of containers: machines that run fleetd, and one that runs etcd and a registry.

Its engine, its record and everything else are below one folder, which suffices to remove all of it again.
usage: python -m tests.fleet_cluster up | down    (FLEET_BIN names the folder with fleetd and fleetctl)
"""

import fcntl
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import serves
from nap_receiver.core.paths import State, state_at
from nap_receiver.engine.daemon import answers, own_url
from tests.nap import ROOT, eventually
from tests.real_machine import Machine, boot, free_subnet, image, network, own_engine, stop_engine

FOLDER = ROOT / ".cluster"
"""Where the command line keeps its cluster."""

JOIN_SECONDS = 120
"""How long it may take until every machine is in touch with the others through etcd."""

REGISTRY_PORT = 5000

_SERVICES_HOST, _FIRST_HOST = 10, 11

_ETCD = """\
ETCD_ENABLE_V2=true
ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379
ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379
"""
_REGISTRY = """\
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
  delete:
    enabled: true
http:
  addr: :5000
"""
_FLEET = """\
[Unit]
Description=fleet
Requires=fleet.socket
After=fleet.socket docker.service network.target
# Without etcd it ends at once, and is to come back however long that lasts.
StartLimitIntervalSec=0

[Service]
Environment=FLEET_ETCD_SERVERS=http://{etcd}
Environment=FLEET_PUBLIC_IP={address}
Environment=FLEET_METADATA={metadata}
ExecStart=/usr/bin/fleetd
Restart=always
RestartSec=1
"""
_FLEET_SOCKET = """\
[Socket]
ListenStream=/var/run/fleet.sock
ListenStream=49153
"""
_AT_BOOT = "/etc/systemd/system/multi-user.target.d/cluster.conf"


@dataclass(frozen=True)
class Member:
    """A machine as fleet lists it."""

    id: str
    address: str
    metadata: str
    """As in `name=n1,region=east`."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    engine: str
    """The URL of the engine that the machines are on, which can push to the registry too."""
    fleet_bin: Path
    services: Machine
    """The machine that runs etcd and the registry, and no fleetd."""
    machines: dict[str, Machine]
    """The fleet's machines, by their names in the metadata: n1, n2, …"""

    @property
    def etcd(self) -> str:
        """Where etcd is reached, host and port: fleet's v2 keys, and nap's v3 keys."""
        return f"{self.services.address}:2379"

    @property
    def registry(self) -> str:
        """Where the registry is reached, host and port."""
        return f"{self.services.address}:{REGISTRY_PORT}"

    @property
    def variables(self) -> dict[str, str]:
        """The settings that a receiver on this cluster needs."""
        return {
            "NAP_SCHEDULER": "fleet",
            "NAP_ETCD_ADDRESS": self.etcd,
            "NAP_REGISTRY_ADDRESS": self.registry,
            "NAP_ENGINE_URL": self.engine,
            "NAP_FLEET_ENDPOINT": f"http://{self.etcd}",
            "NAP_FLEET_DRIVER": "etcd",
            "NAP_FLEET_FLEETCTL": str(self.fleet_bin / "fleetctl"),
        }

    def fleetctl(self, *words: str, ok: bool = True, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run fleetctl on this computer, for at most `seconds`; unless `ok` is false it must exit with 0."""
        settings = self.variables
        driver = ("--driver", settings["NAP_FLEET_DRIVER"]) if "NAP_FLEET_DRIVER" in settings else ()
        command = [settings["NAP_FLEET_FLEETCTL"], "--endpoint", settings["NAP_FLEET_ENDPOINT"], *driver, *words]
        done = subprocess.run(command, text=True, capture_output=True, timeout=seconds)
        assert not ok or done.returncode == 0, f"fleetctl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def members(self) -> list[Member]:
        """The machines that fleet lists now; none while etcd is down."""
        lines = self.fleetctl("list-machines", "--no-legend", "--full", ok=False).stdout.splitlines()
        return [Member(*line.split()) for line in lines]

    def has_all(self) -> bool:
        """Whether every machine is in touch with the others."""
        # For half a minute etcd lists a machine that is gone too, so each fleetd is asked for itself.
        apis = [f"http://{machine.address}:49153/fleet/v1/machines" for machine in self.machines.values()]
        return all(map(serves, apis)) and {machine.id for machine in self.machines.values()} <= self._ids()

    def await_members(self) -> None:
        """Return when every machine is in touch, within two minutes. Raises `NapError` with fleetd's last words."""
        try:
            eventually(self.has_all, JOIN_SECONDS, "every machine is in touch")
        except AssertionError as error:
            listed = self._ids()
            raise NapError(
                f"the machines are not all in touch with fleet within {JOIN_SECONDS} s",
                words=[
                    f"{name} {'is' if machine.id in listed else 'is not'} listed: {line}"
                    for name, machine in self.machines.items()
                    for line in machine.journal("fleet", 10).splitlines()
                ],
            ) from error

    def _ids(self) -> set[str]:
        return {member.id for member in self.members()}

    def stop_etcd(self) -> None:
        """Stop it; what is in it stays."""
        self.services.run("systemctl", "stop", "etcd")

    def start_etcd(self) -> None:
        """Start it; returns when it answers."""
        self.services.run("systemctl", "start", "etcd")

    def stop_registry(self) -> None:
        """Stop it; the images in it stay."""
        self.services.run("systemctl", "stop", "docker-registry")

    def start_registry(self) -> None:
        """Start it; returns when it answers."""
        self.services.run("systemctl", "start", "docker-registry")
        eventually(lambda: serves(f"http://{self.registry}/v2/"), 30, "the registry answers")

    def restart_fleetd(self, name: str) -> None:
        """Restart a machine's fleetd, which stops the machine's units; returns when all are in touch."""
        self.machines[name].run("systemctl", "restart", "fleet")
        self.await_members()

    def mend(self) -> None:
        """Undo whatever was cut, killed or stopped; returns when all machines are in touch."""
        self.services.mend()
        self.start_etcd()
        self.start_registry()
        for machine in self.machines.values():
            machine.mend()
        self.await_members()


def up(folder: Path, fleet_bin: Path, machines: int = 3) -> Cluster:
    """Boot a cluster, or mend the one that runs below `folder`; returns when all machines are in touch.

    `folder`'s path must be short, for unix sockets lie in it. Raises `NapError` where it cannot be done; then nothing
    of it is left.
    """
    state = state_at(folder)
    with _alone(state):
        if cluster := running(folder):
            cluster.mend()
            return cluster
        _require_fleet(fleet_bin.resolve())
        _remove(state)
        if state.root.exists() and any(state.root.iterdir()):
            raise NapError(f"{state.root} is there already, and is no cluster's")
        try:
            cluster = _make(state, fleet_bin.resolve(), machines)
        except BaseException:
            _remove(state)
            raise
        return cluster


def running(folder: Path) -> Cluster | None:
    """The cluster below `folder`, however its machines are; None where none was made, or its engine is down."""
    state = state_at(folder)
    record = _record(state)
    if not record.exists() or not answers(own_url(state)):
        return None
    plan = json.loads(record.read_text())
    return _planned(state, plan) if plan["made"] else None


def down(folder: Path) -> bool:
    """Remove the cluster below `folder` with all that belongs to it, also one half made; whether there was one."""
    state = state_at(folder)
    with _alone(state):
        return _remove(state)


def _require_fleet(fleet_bin: Path) -> None:
    for program, word in (("fleetd", "--version"), ("fleetctl", "version")):
        try:
            tried = subprocess.run([fleet_bin / program, word], text=True, capture_output=True, timeout=10)
        except OSError as error:
            raise NapError(f"{fleet_bin / program}: {error.strerror}") from error
        if tried.returncode != 0:
            raise NapError(
                f"{fleet_bin / program} does not run",
                words=tried.stderr.splitlines()[:3],
                # Its version comes from `git describe`; without one, fleet panics.
                advice="Build fleet in a git clone of its tag v1.0.0, not in an unpacked archive.",
            )


def _make(state: State, fleet_bin: Path, machines: int) -> Cluster:
    subnet = free_subnet(state.name)
    plan = {"fleet_bin": str(fleet_bin), "subnet": subnet, "machines": machines, "made": False}
    state.root.mkdir(exist_ok=True)
    _write(_record(state), json.dumps(plan))
    cluster = _planned(state, plan)
    image(own_engine(state.root))
    network(cluster.engine, _network(state), subnet)
    _boot(cluster, cluster.services, boot_files(cluster.services.address))
    with ThreadPoolExecutor() as pool:
        members = cluster.machines.items()
        for booted in [pool.submit(_boot, cluster, machine, _fleet_files(cluster, name)) for name, machine in members]:
            booted.result()
    cluster.await_members()
    _write(_record(state), json.dumps(plan | {"made": True}))
    return cluster


def _planned(state: State, plan: Mapping[str, Any]) -> Cluster:
    engine, subnet = own_url(state), ipaddress.IPv4Network(plan["subnet"])

    def machine(name: str, host: int) -> Machine:
        return Machine(engine, f"nap-{state.name}-{name}", str(subnet[host]), _network(state))

    names = [f"n{number + 1}" for number in range(plan["machines"])]
    machines = {name: machine(name, _FIRST_HOST + number) for number, name in enumerate(names)}
    return Cluster(engine, Path(plan["fleet_bin"]), machine("services", _SERVICES_HOST), machines)


def _boot(cluster: Cluster, machine: Machine, files: Mapping[str, str | Path]) -> None:
    boot(cluster.engine, machine.network, machine.name, machine.address, registry=cluster.registry, files=files)


def boot_files(address: str) -> dict[str, str | Path]:
    """What a machine at this address has on its disk that runs etcd and the registry."""
    return {
        "/etc/default/etcd": _ETCD.format(address=address),
        "/etc/docker/registry/config.yml": _REGISTRY,
        _AT_BOOT: "[Unit]\nWants=etcd.service docker-registry.service\n",
    }


def _fleet_files(cluster: Cluster, name: str) -> dict[str, str | Path]:
    region = "west" if name == [*cluster.machines][-1] else "east"
    address, metadata = cluster.machines[name].address, f"name={name},region={region}"
    return {
        "/usr/bin/fleetd": cluster.fleet_bin / "fleetd",
        "/usr/bin/fleetctl": cluster.fleet_bin / "fleetctl",
        "/etc/systemd/system/fleet.socket": _FLEET_SOCKET,
        "/etc/systemd/system/fleet.service": _FLEET.format(etcd=cluster.etcd, address=address, metadata=metadata),
        _AT_BOOT: "[Unit]\nWants=fleet.service\n",
    }


def _remove(state: State) -> bool:
    if not _record(state).exists():
        return False
    stop_engine(state.root)
    shutil.rmtree(state.root)
    return True


def _record(state: State) -> Path:
    return state.root / "cluster.json"


def _network(state: State) -> str:
    return f"napc{state.name}"


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """One at a time makes or removes this cluster; the directory above is what is there before and after."""
    directory = os.open(state.root.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _show(cluster: Cluster) -> None:
    names = {machine.id: machine.name for machine in cluster.machines.values()}
    members = sorted(cluster.members(), key=lambda member: names[member.id])
    rows = [(names[member.id], member.id, member.address, member.metadata) for member in members]
    print(tabulate(rows, headers=("container", "machine", "address", "metadata")))
    print(f"\netcd      {cluster.etcd}\nregistry  {cluster.registry}\nengine    {cluster.engine}\n")
    print("settings.toml of a receiver:\n")
    print(_settings(cluster.variables))


def _settings(variables: Mapping[str, str]) -> str:
    sections: dict[str, list[str]] = {}
    for variable, value in variables.items():
        section, _, field = variable.removeprefix("NAP_").lower().rpartition("_")
        sections.setdefault(section, []).append(f"{field} = {json.dumps(value)}")
    return "\n".join(
        "\n".join([*([f"[{section}]"] if section else []), *lines, ""]) for section, lines in sections.items()
    )


def _main(words: Sequence[str]) -> int:
    try:
        if words == ["up"]:
            was_up = running(FOLDER) is not None
            cluster = up(FOLDER, Path(os.environ.get("FLEET_BIN", "")))
            print(f"The cluster {'runs already' if was_up else 'is up'}; make cluster-down removes it.\n")
            _show(cluster)
        elif words == ["down"]:
            print("The cluster is gone." if down(FOLDER) else "There is no cluster.")
        else:
            print("usage: python -m tests.fleet_cluster up | down", file=sys.stderr)
            return 2
    except NapError as error:
        told = [f" !     {error}", *(f"       {line}" for line in error.words), *(f" !     {a}" for a in error.advice)]
        print("\n".join(told), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
