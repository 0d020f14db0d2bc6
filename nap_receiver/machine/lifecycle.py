"""The single-machine nap: `nap up`, `nap down` and `nap status`.

etcd, a registry, the ssh gate, the agent and, where none answers, a Docker Engine, kept alive by supervisord.
"""

import getpass
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sh

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.privacy import close
from nap_receiver.core.settings import (
    ETCD_VARIABLE,
    Settings,
    has_own_etcd,
    load,
    read_environment,
    settings_variables,
    write_environment,
)
from nap_receiver.core.supervision import Fault, Supervisor
from nap_receiver.engine import daemon
from nap_receiver.machine import firewall
from nap_receiver.machine.programs import (
    Program,
    caddy_of,
    dependencies,
    programs_of,
    require_installed,
    write_configuration,
)
from nap_receiver.routing.caddy_origin import require_known
from nap_receiver.schedulers import supervised_units
from nap_receiver.schedulers.chosen import scheduler_of

UP_SECONDS = 60
"""How long all programs together may take to answer."""

NOT_NAPS = "not nap's"
"""How a program stands that nap relies on and does not run."""

NOT_STARTED = "not started"
"""How a program stands that came with settings, or with a nap, for which there was no `nap up` yet."""

_LOOK_AGAIN_SECONDS = 0.05
_LAST_WORDS = 15


@dataclass(frozen=True)
class Standing:
    """The state of a program: supervisord's word for it, its process, and whether it is ready."""

    program: str
    state: str
    pid: int
    address: str
    answers: bool


def up(state: State) -> Settings:
    """Start all programs that do not run; return when all are ready. Raises `NapError` with the log of one that is
    not."""
    state.require_room_for_sockets()
    require_installed()
    close(state)
    supervisor = _supervisor(state)
    was_up = supervisor.answers()
    before = programs_of(state, load(state).settings) if was_up else []
    variables = (read_environment(state) if was_up else {}) | settings_variables()
    if has_own_etcd(state, variables):
        del variables[ETCD_VARIABLE]  # the scheduler may be another one now
    settings = load(state, {**os.environ, **variables}, started={}).settings
    if settings.is_single_machine:
        variables[ETCD_VARIABLE] = state.etcd_url
        settings = load(state, variables, started={}).settings
    if not settings.engine.url:
        found = daemon.engine_of_the_machine()
        if found != daemon.USUAL:
            variables["NAP_ENGINE_URL"] = found or daemon.own_url(state)
        settings = load(state, variables, started={}).settings
    programs = programs_of(state, settings)
    if any(program.name == "caddy" for program in programs):
        require_known(Path(caddy_of(settings)))
    _require_free_ports(programs, {program.address for program in before})
    write_environment(state, variables)
    rewritten = write_configuration(state, settings, programs)
    if settings.engine.url == daemon.own_url(state):
        daemon.make_bridge(state)
    if was_up:
        supervised_units.let_go(state, supervisor)
        _take_up_changes(supervisor, rewritten)
    else:
        _start_supervisor(state)
    try:
        _await_answers(state, supervisor, programs, settings)
    except NapError:
        if not was_up:
            down(state)
        raise
    _renew_units(state, settings)
    return settings


def start_again(state: State) -> None:
    """Start the programs that were up and are not; all of them if nap is down. Raises `NapError` as `up` does."""
    supervisor = _supervisor(state)
    if not supervisor.answers():
        up(state)
        return
    settings = load(state).settings
    running = {process["name"] for process in _start_stopped(supervisor)}
    programs = [program for program in programs_of(state, settings) if program.name in running]
    _await_answers(state, supervisor, programs, settings)


def down(state: State) -> bool:
    """Stop all programs, the apps first; return whether any ran. Returns when the last process has ended."""
    supervisor = _supervisor(state)
    if not supervisor.answers():
        firewall.tear_down(state)
        daemon.clean_up(state)
        return False
    firewall.tear_down(state)
    settings = load(state).settings
    seconds = settings.deploy.drain + settings.deploy.grace + UP_SECONDS
    patient = Supervisor(supervisor.path, "nap's supervisor", seconds)
    if scheduler_of(state, settings).runs_on == "this machine":
        patient.unless((Fault.NOT_RUNNING, Fault.BAD_NAME), "stopProcess", "agent", True)
        from nap_receiver.agent.shutdown import end_instances  # the engine's library, for `nap down` alone

        end_instances(state, settings)
    if settings.engine.url == daemon.own_url(state):
        daemon.stop_containers(settings.engine.url)
    # When it shuts down, supervisord notices the end of each program up to a second late; when it is asked, at once.
    for program in sorted(programs_of(state, settings), key=lambda program: program.order, reverse=True):
        patient.unless((Fault.NOT_RUNNING, Fault.BAD_NAME), "stopProcess", program.name, True)
    process = os.pidfd_open(int(supervisor.call("getPID")))
    supervisor.call("shutdown")
    poller = select.poll()
    poller.register(process, select.POLLIN)
    ended = poller.poll(seconds * 1000)
    os.close(process)
    if not ended:
        raise NapError(
            f"nap did not stop within {seconds} s",
            advice=f"See {state.program_logs / 'supervisor.log'} for what still runs.",
        )
    daemon.clean_up(state)
    return True


def status(state: State) -> list[Standing]:
    """Return the state of each program; empty if nap is down."""
    supervisor = _supervisor(state)
    if not supervisor.answers():
        return []
    processes = {process["name"]: process for process in supervisor.call("getAllProcessInfo")}
    settings = load(state).settings
    standings = [
        Standing(each.name, NOT_NAPS, 0, each.address, each.answers()) for each in dependencies(state, settings)
    ]
    for program in programs_of(state, settings):
        answers, process = program.answers(), processes.get(program.name, {"statename": NOT_STARTED, "pid": 0})
        word = "running" if answers else process["statename"].lower()  # supervisord waits a second before it says so
        standings.append(Standing(program.name, word, process["pid"], program.address, answers))
    return standings


def remote_url(settings: Settings, app: str) -> str:
    """Return the URL for `git remote add`."""
    host = settings.ssh.address.host
    shown = socket.gethostname() if host in {"0.0.0.0", "[::]"} else host
    return f"ssh://{getpass.getuser()}@{shown}:{settings.ssh.address.port}/{app}"


def _start_supervisor(state: State) -> None:
    # Of before a reboot, their numbers mean nothing now.
    for left_over in ("docker.pid", "supervisor.pid"):
        (state.run / left_over).unlink(missing_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o700, exist_ok=True)  # sshd's own, compiled in; Debian makes it at boot
    try:
        sh.Command(sys.executable)(
            "-P", "-m", "supervisor.supervisord", "-c", str(state.run / "supervisord.conf"), _cwd="/", _tty_out=False
        )
    except sh.ErrorReturnCode as error:
        output = (error.stdout + error.stderr).decode("utf-8", "replace").splitlines()
        raise NapError("supervisord did not start", words=output[-_LAST_WORDS:]) from error


def _take_up_changes(supervisor: Supervisor, rewritten: set[str]) -> None:
    [[added, changed, removed]] = supervisor.call("reloadConfig")
    for name in removed:
        supervisor.remove(name)
    for name in added:
        supervisor.unless((Fault.ALREADY_ADDED,), "addProcessGroup", name)
    for name in {*changed, *rewritten} - {*added, *removed}:  # each is away for as short a time as can be
        supervisor.remove(name)
        supervisor.unless((Fault.ALREADY_ADDED,), "addProcessGroup", name)
    _start_stopped(supervisor)


def _start_stopped(supervisor: Supervisor) -> list[dict[str, Any]]:
    """Start all programs that do not run; return supervisord's facts about all programs."""
    processes: list[dict[str, Any]] = supervisor.call("getAllProcessInfo")
    for process in processes:
        if process["statename"] in {"STOPPED", "EXITED", "FATAL"}:
            supervisor.unless((Fault.ALREADY_STARTED,), "startProcess", process["name"], False)
    return processes


def _await_answers(state: State, supervisor: Supervisor, programs: Sequence[Program], settings: Settings) -> None:
    deadline = time.monotonic() + UP_SECONDS
    waiting = list(programs)
    while waiting:
        waiting = [program for program in waiting if not program.answers()]
        stands = {p["name"]: p for p in supervisor.call("getAllProcessInfo")} if waiting else {}
        for program in waiting:
            crashed = stands[program.name]["statename"] in {"BACKOFF", "FATAL"}
            if crashed or time.monotonic() > deadline:
                log = state.program_logs / f"{program.name}.log"
                raise NapError(
                    f"{program.name} {'does not stay up' if crashed else f'did not answer within {UP_SECONDS} s'}"
                    f" ({program.address})",
                    words=_last_lines(log),
                    advice=f"All of its log: {log}. Fix the cause and run `nap up` again.",
                )
        time.sleep(_LOOK_AGAIN_SECONDS if waiting else 0)
    for each in dependencies(state, settings):
        if not each.answers():
            raise NapError(
                f"{each.name} at {each.address} does not answer, and nap needs it",
                advice="Start it, or correct its address in settings.toml: nap settings",
            )


def _renew_units(state: State, settings: Settings) -> None:
    """Write the units of running instances again, with the current settings and templates."""
    scheduler = scheduler_of(state, settings)
    apps = scheduler.apps_to_renew()
    if not apps:
        supervised_units.forget(state)
        return
    from nap_receiver.deploy.rollout import work_of
    from nap_receiver.store.etcd import connect  # a tenth of a second, needed only where there are apps
    from nap_receiver.store.ledger import Ledger

    with connect(settings.etcd) as etcd:
        for app in apps:
            ledger = Ledger(etcd, settings.etcd, app)
            if release := ledger.current():
                work = work_of(release, ledger, scheduler, settings)
                scheduler.renew(work)
    supervised_units.forget(state)


def _require_free_ports(programs: Sequence[Program], own: set[str]) -> None:
    for program in programs:
        if not program.setting or program.address in own:
            continue
        host, _, port = program.address.rpartition(":")
        try:
            with socket.create_server((host.strip("[]"), int(port)), family=_family(host)):
                pass
        except OSError as error:
            variable = "NAP_" + program.setting.upper().replace(".", "_")
            raise NapError(
                f"{program.setting}: {program.name} cannot listen on {program.address}: {error.strerror}",
                advice=f"Choose another address: {variable}=127.0.0.1:PORT, or {program.setting} in settings.toml.",
            ) from error


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _supervisor(state: State) -> Supervisor:
    return Supervisor(state.run / "supervisor.sock", "nap's supervisor")


def _last_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()[-_LAST_WORDS:]
    except FileNotFoundError:
        return []
