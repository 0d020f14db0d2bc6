"""Background jobs, each in its own process, and how to find out whether one is running.

Each job has a file in the state directory that its process holds a lock on (flock(2)); the file names what it works on.
The lock ends with the process, however that ends.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nap_receiver.core.paths import State


def start_job(state: State, kind: str, module: str, subjects: Sequence[str], log: str) -> None:
    """Run `python -m MODULE STATE SUBJECT…`; append its output to this log beside the deploy logs."""
    folder = _folder(state)
    folder.mkdir(parents=True, exist_ok=True)
    state.deploy_logs.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".")
    with os.fdopen(descriptor, "w") as file, (state.deploy_logs / log).open("a") as output:
        fcntl.flock(file, fcntl.LOCK_SH)  # the process that inherits it holds it too
        file.write("\n".join(subjects))
        file.flush()
        Path(draft).rename(folder / f"{kind}{Path(draft).name}")  # only a locked file has a job's name
        subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(state.root), *subjects],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[descriptor],
        )


def is_at_work(state: State, kind: str, subject: str) -> bool:
    """Return whether a running job of this kind works on `subject`. Files of ended jobs are removed."""
    return subject in set(_subjects(state, kind))


def _subjects(state: State, kind: str) -> Iterator[str]:
    for path in _folder(state).glob(f"{kind}.*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield from file.read().splitlines()
            else:
                path.unlink(missing_ok=True)


def _folder(state: State) -> Path:
    return state.run / "jobs"
