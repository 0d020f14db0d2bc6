"""Instances that nap 0.1 left on this machine: units of a supervisord, which held their containers.

An upgrade gives them to the agent while they run.
"""

import os
import re
import shutil
import signal
from contextlib import suppress

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.supervision import Supervisor
from nap_receiver.model.release import UNIT

PROGRAM = "scheduler"
"""What nap's supervisor called that supervisord."""

_FOLDERS = ("units", "units.before")
"""Below the state directory: the units, and those of a supervisord that was let go."""

_BODY = re.compile(r'"?NAP_BODY=([0-9a-f]+)"?')


def digests(state: State) -> dict[str, str]:
    """Of each such instance, by its unit, the digest of what its engine was asked for."""
    found = {}
    for path in (path for folder in _FOLDERS for path in (state.root / folder).glob("*.conf")):
        if UNIT.fullmatch(path.stem) and (body := _BODY.search(path.read_text(errors="replace"))):
            found[path.stem] = body[1]
    return found


def forget(state: State) -> None:
    """Remove the units, and what their programs printed: the engine has what the containers did."""
    for folder in (*(state.root / name for name in _FOLDERS), state.program_logs / "apps"):
        shutil.rmtree(folder, ignore_errors=True)


def let_go(state: State, supervisor: Supervisor) -> None:
    """End that supervisord and all of its programs, while the containers run on.

    Asked to end, each would stop its container; so they are killed, the one that would start them anew first.
    """
    held = Supervisor(state.run / "scheduler.sock", "the scheduler of before the upgrade")
    try:
        groups = [each["pid"] for each in held.call("getAllProcessInfo") if each["pid"]]
        first = int(supervisor.call("getProcessInfo", PROGRAM)["pid"])
    except NapError:
        return
    units, before = (state.root / name for name in _FOLDERS)
    if units.exists():
        units.rename(before)  # or its successor, which nap's supervisor starts at once, would begin with them again
    if first:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
    supervisor.remove(PROGRAM)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
