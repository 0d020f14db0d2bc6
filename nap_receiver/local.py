"""The local scheduler: this machine, through a supervisord of its own, driven over XML-RPC.

A unit is a program's configuration file in the state directory; supervisord reads them all when it starts, so what ran
before a reboot runs after it. A unit whose file is gone is stopped and then forgotten: a scheduler that is killed in
between starts without it.
"""

import http.client
import socket
import xmlrpc.client
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nap_receiver.errors import NapError
from nap_receiver.state import State
from nap_receiver.units import InstanceUnits, Unit

CALL_SECONDS = 15
"""How long one call may take; a discovery unit is given 10 s to withdraw."""

_LAST_WORDS_BYTES = 4000
_NO_SUCH_GROUP = 10  # supervisor.xmlrpc.Faults.BAD_NAME
_STILL_RUNNING = 91
NOT_RUNNING = 70


class Local:
    """A `Scheduler` for the machine that this state directory is on."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._supervisor = Supervisor(state.run / "scheduler.sock", "the local scheduler")
        self.machine = state.name

    def start(self, units: Sequence[InstanceUnits]) -> None:
        for unit in (unit for pair in units for unit in (pair.app, pair.discovery)):
            self._write(unit)
        self._reread()

    def withdraw(self, instances: Sequence[str]) -> None:
        self._remove_files(f"{instance}-discovery" for instance in instances)
        for instance in instances:
            self._supervisor.unless((_NO_SUCH_GROUP, NOT_RUNNING), "stopProcess", f"{instance}-discovery", True)
        self._reread()

    def stop(self, instances: Sequence[str]) -> None:
        self._remove_files(instances)
        for instance in instances:
            self._supervisor.unless((_NO_SUCH_GROUP, NOT_RUNNING), "stopProcess", instance, False)

    def discard(self, instances: Sequence[str]) -> None:
        self._remove_files(instances)  # first, so that nothing of them starts again whatever fails below
        self.withdraw(instances)
        for instance in instances:
            self._supervisor.unless((_NO_SUCH_GROUP, NOT_RUNNING), "signalProcess", instance, "USR1")
            self._supervisor.unless((_NO_SUCH_GROUP, NOT_RUNNING), "stopProcess", instance, True)
        self._reread()

    def running(self, app: str) -> list[str]:
        known = {process["name"] for process in self._supervisor.call("getAllProcessInfo")}
        known |= {path.stem for path in self._state.units.glob("*.conf")}
        return sorted(name for name in known if name.startswith(f"{app}.") and not name.endswith("-discovery"))

    def apps(self) -> list[str]:
        """The apps that this scheduler was given units of."""
        return sorted({path.name.partition(".")[0] for path in self._state.units.glob("*.conf")})

    def renew(self, units: Sequence[InstanceUnits], seconds: float) -> None:
        """Put these units in the place of their namesakes, and restart those whose text is another one now.

        An instance may take `seconds` to stop.
        """
        known = [unit for pair in units for unit in (pair.discovery, pair.app) if self._file(unit.name).exists()]
        changed = [unit for unit in known if self._text(unit.name) != unit.text]
        for unit in changed:
            self._write(unit)
        if not changed:
            return
        self._supervisor.call("reloadConfig")
        patient = Supervisor(self._supervisor.path, "the local scheduler", seconds)
        for unit in changed:
            patient.unless((_NO_SUCH_GROUP,), "stopProcessGroup", unit.name)
            patient.unless((_NO_SUCH_GROUP,), "removeProcessGroup", unit.name)
        for unit in changed:
            patient.call("addProcessGroup", unit.name)

    def last_words(self, instance: str) -> list[str]:
        try:
            said = self._supervisor.call("readProcessStdoutLog", instance, -_LAST_WORDS_BYTES, 0)
        except xmlrpc.client.Fault:
            return []
        return str(said).splitlines()[-20:]

    def _file(self, unit: str) -> Path:
        return self._state.units / f"{unit}.conf"

    def _text(self, unit: str) -> str:
        return self._file(unit).read_text(encoding="utf-8", errors="surrogateescape")

    def _write(self, unit: Unit) -> None:
        path = self._file(unit.name)
        draft = path.with_suffix(".draft")
        draft.write_text(unit.text, encoding="utf-8", errors="surrogateescape")
        draft.rename(path)

    def _remove_files(self, units: Iterable[str]) -> None:
        for unit in units:
            self._file(unit).unlink(missing_ok=True)

    def _reread(self) -> None:
        """Have supervisord start what is new in the units' folder, and forget what is gone and stopped."""
        [[added, _changed, removed]] = self._supervisor.call("reloadConfig")
        for group in removed:
            if self._supervisor.unless((_NO_SUCH_GROUP, _STILL_RUNNING), "removeProcessGroup", group):
                for log in (self._state.program_logs / "apps").glob(f"{group}.log*"):
                    log.unlink(missing_ok=True)
        for group in added:
            self._supervisor.call("addProcessGroup", group)


class Supervisor:
    """A supervisord behind its unix socket."""

    def __init__(self, path: Path, what: str, seconds: float = CALL_SECONDS) -> None:
        self.path = path
        self._what = what
        self._seconds = seconds

    def call(self, method: str, *arguments: object) -> Any:
        """What `supervisor.<method>` returns. Raises `NapError` when supervisord does not answer, else its `Fault`."""
        with self._answering():
            proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(self.path, self._seconds))
            with proxy:
                return getattr(proxy.supervisor, method)(*arguments)

    def unless(self, faults: Sequence[int], method: str, *arguments: object) -> bool:
        """`call`, where these faults mean that there is nothing to do; whether something was done."""
        try:
            self.call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in faults:
                raise
            return False
        return True

    def answers(self) -> bool:
        try:
            self.call("getState")
        except NapError:
            return False
        return True

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise NapError(
                f"{self._what} does not answer ({error})", advice="`nap up` starts it; `nap status` shows what runs."
            ) from error


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket; supervisor's own transport costs a tenth of a second to import."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self._path = path
        self._seconds = seconds

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=self._seconds)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self._seconds)
        connection.sock.connect(str(self._path))
        return connection
