"""A cluster of one machine, for where there is no fleet: etcd, the registry, systemd and Docker on it are real, and the
stand-in plays fleetctl.
"""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.fleet_cluster import REGISTRY_PORT, Cluster, boot_files
from tests.real_machine import Machine, boot, free_subnet, image, network, own_engine, stop_engine
from tests.stand_in import FLEETCTL, stand_in


@dataclass(frozen=True)
class LoneMachine(Cluster):
    """That cluster; its machine `n1` runs etcd and the registry too."""

    folder: Path
    settings: dict[str, str]
    """How the stand-in is reached."""

    @property
    def variables(self) -> dict[str, str]:
        usual = {name: value for name, value in super().variables.items() if not name.startswith("NAP_FLEET_")}
        return usual | self.settings

    def mend(self) -> None:
        self.start_etcd()
        self.start_registry()


def boot_alone(folder: Path) -> LoneMachine:
    """Boot it on an engine of its own below `folder`."""
    engine = own_engine(folder)
    image(engine)
    subnet = free_subnet(secrets.token_hex(4))
    name = f"napl{secrets.token_hex(4)}"
    network(engine, name, subnet)
    machine = Machine(engine, "alone", subnet.replace("0/24", "11"), name)
    registry = f"{machine.address}:{REGISTRY_PORT}"
    boot(engine, name, machine.name, machine.address, registry=registry, files=boot_files(machine.address))
    settings = stand_in(folder / "stand-in", machine, {"name": "n1", "region": "east"})
    cluster = LoneMachine(engine, FLEETCTL.parent, machine, {"n1": machine}, folder, settings)
    cluster.mend()
    return cluster


def remove(cluster: LoneMachine) -> None:
    """Remove the machine with its engine and all else."""
    stop_engine(cluster.folder)
    shutil.rmtree(cluster.folder, ignore_errors=True)
