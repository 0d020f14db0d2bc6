"""supervisord, driven over XML-RPC through its unix socket (supervisord.org/api.html)."""

import enum
import http.client
import xmlrpc.client
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import UnixConnection

CALL_SECONDS = 15
"""How long one call may take; a discovery unit is given 10 s to withdraw."""


class Fault(enum.IntEnum):
    """The fault codes of supervisord that matter here; importing `supervisor.xmlrpc.Faults` takes 0.1 s."""

    BAD_NAME = 10
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    ALREADY_ADDED = 90
    STILL_RUNNING = 91


class Refused(NapError):
    """supervisord answered a call with a fault."""

    def __init__(self, what: str, fault: int) -> None:
        super().__init__(what, advice="Its log is in programs/ of the state directory.")
        self.fault = fault


class Supervisor:
    """A client of a supervisord. A call raises `NapError` when it is not answered within `seconds`."""

    def __init__(self, path: Path, what: str, seconds: float = CALL_SECONDS) -> None:
        self.path = path
        self._what = what
        self._seconds = seconds

    def call(self, method: str, *arguments: object) -> Any:
        """Call `supervisor.<method>` and return its result. Raises `Refused` for a fault."""
        with self._answering():
            proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(self.path, self._seconds))
            try:
                with proxy:
                    return getattr(proxy.supervisor, method)(*arguments)
            except xmlrpc.client.Fault as fault:
                message = f"{self._what} refuses {method} {' '.join(map(str, arguments))}: {fault.faultString}"
                raise Refused(message, fault.faultCode) from fault

    def unless(self, faults: Sequence[Fault], method: str, *arguments: object) -> bool:
        """Call, and ignore these faults; return whether the call succeeded."""
        try:
            self.call(method, *arguments)
        except Refused as refused:
            if refused.fault not in faults:
                raise
            return False
        return True

    def remove(self, group: str) -> None:
        """Stop and remove a group; does nothing if it does not exist."""
        for method in ("stopProcessGroup", "removeProcessGroup"):
            self.unless((Fault.BAD_NAME, Fault.NOT_RUNNING), method, group)

    def answers(self) -> bool:
        """Return whether supervisord answers."""
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
    """XML-RPC over a unix socket; importing supervisor's own transport takes a tenth of a second."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self._path = path
        self._seconds = seconds

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return UnixConnection(self._path, self._seconds)
