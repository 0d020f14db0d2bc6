"""A stand-in for a fleet cluster: fleetctl's command line, played on the real systemd of one machine.

It says what fleetctl says and ends as fleetctl ends, for all that `tests/cluster/test_fleetctl_contract.py` asks of
both. What the cluster does, it does later and in a process of its own, as fleetd would, so that no caller can rely on
it having happened. It is quicker than fleetd, and a machine that is switched off is gone at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tests.stand_in import cluster

if TYPE_CHECKING:  # the stand-in itself runs without nap's libraries
    from tests.real_machine import Machine

FLEETCTL = Path(__file__).parent / "fleetctl"
"""The command."""


def stand_in(folder: Path, machine: "Machine", metadata: Mapping[str, str] = {}) -> dict[str, str]:
    """Make `folder` a cluster of this one machine; the settings with which nap uses it.

    Removing `fleet.json` there takes the cluster down. `errors.log` there has what went wrong unseen.
    """
    played = cluster.Machine(
        engine=machine.engine,
        container=machine.name,
        id=machine.run("cat", "/etc/machine-id").stdout.strip(),
        address=machine.address,
        metadata=dict(metadata),
    )
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "fleet.draft"
    draft.write_text(json.dumps(played._asdict()))
    draft.rename(folder / cluster.CONFIGURATION)
    (folder / cluster.ERRORS).touch()
    return {"NAP_FLEET_ENDPOINT": f"unix://{folder}/fleet.sock", "NAP_FLEET_FLEETCTL": str(FLEETCTL)}
