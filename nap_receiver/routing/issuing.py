"""For which names the router requests a public certificate, and when.

Authorities limit the requests of one account: Let's Encrypt allows 300 orders in 3 hours, and 5 failures of a name in
an hour (letsencrypt.org/docs/rate-limits). So names take turns, and one owner's many names do not use up the share of
others.
"""

import socket
import ssl
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from nap_receiver.core.settings import Address
from nap_receiver.routing.ownership import registered_of

_AT_ONCE, _OF_ONE_OWNER = 10, 3
"""Names that are asked for at the same moment; nobody waits long for those of one owner, even if none leads here."""

_SHARE = 4
"""One owner gets this part of an hour's turns: a fourth."""

_TURN_SECONDS = 90.0
"""How long a name has to get its certificate, from one authority or the next."""

_AGAIN_SECONDS = (600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
"""How long a name rests that got none: after the first time, the second, …, and then always the last."""

_HOUR_SECONDS = 3600.0


class Turns:
    """Chooses the names whose turn it is; `per_hour` turns begin in an hour."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour = per_hour
        self._asked: dict[str, float] = {}  # until when
        self._resting: dict[str, float] = {}  # until when
        self._failed: dict[str, int] = {}
        self._begun: list[tuple[float, str]] = []  # when, and by which owner
        self._last: dict[str, float] = {}  # of each owner

    @property
    def asked(self) -> set[str]:
        """The names whose turn it is now."""
        return set(self._asked)

    def waiting(self, names: Mapping[str, str], certified: Collection[str], now: float) -> set[str]:
        """Return the names that must not be requested at the time `now`, in seconds: others have their turn, or they
        failed.

        `names` maps all names to their owners; names in `certified` have a certificate, which Caddy only renews.
        """
        self._end_turns(names, certified, now)
        lacking = {name for name in names if name not in certified}
        ready = [name for name in lacking - self._asked.keys() if self._resting.get(name, 0.0) <= now]
        share = max(1, self._per_hour // _SHARE)
        of, begun = Counter(names[name] for name in self._asked), Counter(owner for _, owner in self._begun)
        for name in sorted(ready, key=lambda name: (self._last.get(names[name], 0.0), self._failed.get(name, 0), name)):
            if len(self._asked) == _AT_ONCE or len(self._begun) >= self._per_hour:
                break
            owner = names[name]
            if of[owner] < _OF_ONE_OWNER and begun[owner] < share:
                of[owner] += 1
                begun[owner] += 1
                self._asked[name] = now + _TURN_SECONDS
                self._last[owner] = now
                self._begun.append((now, owner))
        return lacking - self._asked.keys()

    def _end_turns(self, names: Mapping[str, str], certified: Collection[str], now: float) -> None:
        self._begun = [(begun, owner) for begun, owner in self._begun if begun > now - _HOUR_SECONDS]
        for name, until in list(self._asked.items()):
            if name in names and name not in certified and until > now:
                continue
            del self._asked[name]
            if name in names and name not in certified:
                failed = self._failed.get(name, 0)
                self._failed[name] = failed + 1
                self._resting[name] = now + _AGAIN_SECONDS[min(failed, len(_AGAIN_SECONDS) - 1)]
        owners = set(names.values())
        for gone in self._failed.keys() - {name for name in names if name not in certified}:
            del self._failed[gone], self._resting[gone]
        for gone in self._last.keys() - owners:
            if self._last[gone] <= now - _HOUR_SECONDS:  # or one who comes and goes would always be first
                del self._last[gone]


def owners_of(names: Iterable[tuple[str, str]], domain: str) -> dict[str, str]:
    """Return the owner of each name: the app for names below `domain`, else the registered domain, because many of
    these cost money."""
    return {name: app if name.endswith(f".{domain}") else registered_of(name) for name, app in names}


def visit(name: str, address: Address) -> None:
    """Connect to Caddy at `address` for `name`, so that it requests a certificate. Returns when it has one, or has
    failed.

    Errors are in Caddy's own log.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((address.host.strip("[]"), address.port), timeout=_TURN_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name),
    ):
        pass


def certified(storage: Path) -> set[str]:
    """Return the names for which Caddy has a certificate from any authority, in its storage folder."""
    return {path.stem for path in storage.glob("certificates/*/*/*.crt") if path.stem == path.parent.name}
