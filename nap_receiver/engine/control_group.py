"""Control groups of builds: limits for all steps together (cgroups(7), versions 1 and 2).

`POST /build` of the engine's API takes limits of memory and processors for the classic builder, and none of processes.
But it takes the parent control group of the steps. nap makes that group, as root, on the engine's machine: a folder of
the kernel's where the engine's driver is cgroupfs, and a slice (systemd.slice(5)) where it is systemd.

BuildKit takes no such parameter. The steps of all its builds are in the folder `buildkit` of the group that an engine
has for its containers (`--cgroup-parent` of dockerd(8)). nap's own engine has such a group, with the driver cgroupfs.
"""

import errno
import hashlib
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import sh

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import BuildSettings
from nap_receiver.engine.container import CPU_PERIOD

Driver = Literal["cgroupfs", "systemd"]

_ROOT = Path("/sys/fs/cgroup")
_END_SECONDS = 5  # after SIGKILL


@contextmanager
def bounded_group(app: str, machine: str, driver: Driver, pids: int) -> Iterator[str]:
    """Create a control group with at most `pids` processes and threads, for the block; yield its name for the engine.

    Each app of a nap has its own; `machine` is the name of this nap on the machine. Raises `NapError` if that fails;
    only root can create it.
    """
    name = f"nap{machine}build{hashlib.sha256(app.encode()).hexdigest()[:12]}"
    try:
        group = _made_slice(f"{name}.slice", pids) if driver == "systemd" else _made_folder(name, pids)
    except (OSError, sh.ErrorReturnCode, sh.CommandNotFound) as error:
        raise NapError(
            f"{app}: the number of processes of its build cannot be limited: {_reason(error)}",
            advice="Ask the operator to correct this, or to set build.pids to 0; then push again.",
        ) from error
    try:
        yield group
    finally:
        if driver == "systemd":
            with suppress(sh.ErrorReturnCode):  # the next build of the app takes what could not be removed
                _systemctl("stop", group)
                _systemctl("revert", group)  # what set-property wrote
        _remove_folders(group.lstrip("/"))  # of v1 with systemd, too, the engine makes some and leaves them


def group_of(machine: str) -> str:
    """Return the parent control group of nap's own engine, as the engine takes it."""
    return f"/nap{machine}"


def bound_buildkit(app: str, machine: str, limits: BuildSettings) -> None:
    """Limit what all builds of nap's own BuildKit use together, from now on.

    Raises `NapError` if that fails. A limit without a controller in the kernel is skipped, as the engine does.
    """
    try:
        for folder, file, value in _of_buildkit(group_of(machine).lstrip("/"), limits):
            if (folder / file).exists():
                (folder / file).write_text(value)
    except OSError as error:
        raise NapError(
            f"{app}: memory, CPU and processes of its build cannot be limited: {_reason(error)}",
            advice="Ask the operator to correct this, or to set build.engine to classic; then push again.",
        ) from error


def end_steps(machine: str) -> None:
    """Kill the remaining processes of BuildKit's steps after the engine has ended, which does not kill them."""
    handles = [handle for number in _processes(machine) if (handle := _opened(number)) is not None]
    try:
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        give_up = time.monotonic() + _END_SECONDS
        for handle in handles:
            select.select([handle], [], [], max(0.0, give_up - time.monotonic()))
    finally:
        for handle in handles:
            os.close(handle)


def steps_killed(machine: str) -> str:
    """Return the same as a line of shell."""
    group = f"{group_of(machine)}/buildkit/*/cgroup.procs"
    return f"cat {_ROOT}{group} {_ROOT}/*{group} 2>/dev/null | sort -u | xargs -r kill -KILL"


def forget_groups(machine: str) -> None:
    """Remove the control groups of nap's own engine after it has ended."""
    for top in (_ROOT, *(each for each in _ROOT.iterdir() if each.is_dir())):
        group = top / group_of(machine).lstrip("/")
        if group.is_dir():
            for folder in sorted((each for each in group.rglob("*") if each.is_dir()), reverse=True):
                _remove(folder)
            _remove(group)


def _processes(machine: str) -> set[int]:
    below = f"{group_of(machine).lstrip('/')}/buildkit/*/cgroup.procs"
    found: set[int] = set()
    for file in (*_ROOT.glob(below), *_ROOT.glob(f"*/{below}")):
        with suppress(OSError):  # the step has ended
            found |= {int(line) for line in file.read_text().split()}
    return found


def _opened(number: int) -> int | None:
    try:
        return os.pidfd_open(number)
    except ProcessLookupError:
        return None


def _of_buildkit(name: str, limits: BuildSettings) -> Iterator[tuple[Path, str, str]]:
    """Return the files to write after the folders exist, in order, with their contents."""
    quota = int(limits.cpus * CPU_PERIOD)
    if (_ROOT / "cgroup.controllers").exists():
        controllers = (_ROOT / "cgroup.controllers").read_text().split()
        given = " ".join(f"+{each}" for each in ("cpu", "memory", "pids") if each in controllers)
        folder = _ROOT / name / "buildkit"
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (_ROOT, _ROOT / name):
            yield parent, "cgroup.subtree_control", given
        if "pids" in controllers:
            yield folder, "pids.max", str(limits.pids or "max")
        if "memory" in controllers:
            yield folder, "memory.max", str(limits.memory or "max")
        if (folder / "memory.swap.max").exists():
            yield folder, "memory.swap.max", "0" if limits.memory else "max"
        if "cpu" in controllers:
            yield folder, "cpu.max", f"{quota or 'max'} {CPU_PERIOD}"
        return
    for controller in ("cpu", "memory", "pids"):
        if (_ROOT / controller).is_dir():
            (_ROOT / controller / name / "buildkit").mkdir(parents=True, exist_ok=True)
    memory, swap = _ROOT / "memory" / name / "buildkit", "memory.memsw.limit_in_bytes"
    yield _ROOT / "pids" / name / "buildkit", "pids.max", str(limits.pids or "max")
    if (memory / swap).exists():  # memory and swap together, which may never be less than the memory
        yield memory, swap, "-1"
    yield memory, "memory.limit_in_bytes", str(limits.memory or -1)
    if (memory / swap).exists():
        yield memory, swap, str(limits.memory or -1)
    yield _ROOT / "cpu" / name / "buildkit", "cpu.cfs_period_us", str(CPU_PERIOD)
    yield _ROOT / "cpu" / name / "buildkit", "cpu.cfs_quota_us", str(quota or -1)


def _made_folder(name: str, pids: int) -> str:
    unified = (_ROOT / "cgroup.controllers").exists()  # v2
    if unified and "pids" not in (_ROOT / "cgroup.subtree_control").read_text().split():
        (_ROOT / "cgroup.subtree_control").write_text("+pids")
    folder = (_ROOT if unified else _ROOT / "pids") / name
    folder.mkdir(exist_ok=True)  # it is there after a kill
    (folder / "pids.max").write_text(str(pids))
    return f"/{name}"


def _remove_folders(name: str) -> None:
    for folder in (_ROOT / name, *_ROOT.glob(f"*/{name}")):  # of v1 the engine makes one for each controller
        _remove(folder)


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:  # the next build takes it, where a step is ending
                raise


def _made_slice(name: str, pids: int) -> str:
    _systemctl("set-property", "--runtime", name, f"TasksMax={pids}")
    return name


def _systemctl(*words: str) -> None:
    sh.Command("systemctl")(*words, _tty_out=False)


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
    return plain(output[-1] if output else str(error))
