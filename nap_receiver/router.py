"""The router: it follows what etcd says of the apps, and has Caddy do so. `nap router` runs it, beside its Caddy.

Caddy keeps its routes by itself, also over its own restart; so what serves goes on while etcd or this program is away.
"""

import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nap_receiver.caddy import CaddyAway, load
from nap_receiver.domains import own_name
from nap_receiver.errors import NapError
from nap_receiver.etcd import Entry, Etcd, EtcdAway, connect
from nap_receiver.routes import Certificate, Site, configuration, only_router
from nap_receiver.settings import EtcdSettings, RouterSettings, Settings
from nap_receiver.settings import load as load_settings
from nap_receiver.state import State, state_at

_LOOK_ANEW_SECONDS = 600
_TRY_AGAIN_SECONDS = 0.1


@dataclass
class Known:
    """What etcd says of all apps: the values of the keys below `prefixes`."""

    places: EtcdSettings
    router: RouterSettings
    values: dict[str, Any] = field(default_factory=dict)
    silent_since: dict[str, float] = field(default_factory=dict)
    """Of apps of which no instance answers: since when."""

    @property
    def prefixes(self) -> list[str]:
        """Below these is all that matters to the router."""
        places = self.places
        return [f"{each}/" for each in (places.announcements, places.access, places.domains, places.certificates)]

    def begin(self, values: Mapping[str, Any]) -> None:
        """This is all there is."""
        self.values = dict(values)

    def change(self, entry: Entry) -> None:
        """This is other now."""
        if entry.value is None:
            self.values.pop(entry.key, None)
        else:
            self.values[entry.key] = entry.value

    def sites(self) -> list[Site]:
        """Every app, by its name."""
        announced, access, domains, _ = self.prefixes
        names: dict[str, list[str]] = {}
        instances: dict[str, list[str]] = {}
        for key in self._below(access):
            app = key.removeprefix(access)
            names[app] = [own_name(app, self.router)]
        for key in self._below(domains):
            names.setdefault(self.values[key]["app"], []).append(key.removeprefix(domains))
        for key in self._below(announced):
            value = self.values[key]
            instances.setdefault(key.removeprefix(announced).partition("/")[0], []).append(
                f"{value['host']}:{value['port']}"
            )
        now = time.time()
        self.silent_since = {app: self.silent_since.get(app, now) for app in names if app not in instances}
        return [
            Site(app, tuple(of), tuple(instances.get(app, ())), self.silent_since.get(app, 0.0))
            for app, of in sorted(names.items())
        ]

    def certificates(self) -> list[Certificate]:
        """Every certificate that an owner brought."""
        *_, prefix = self.prefixes
        return [Certificate(**self.values[key]) for key in self._below(prefix)]

    def _below(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))


def route_for_ever(state: State, settings: Settings) -> None:
    """Keep Caddy's routes as etcd has them, until this process ends. Raises `NapError` where that makes no sense."""
    if not settings.router.domain:
        raise NapError("there is no router without router.domain", advice="Set it, then run nap up again.")
    only_router(state)
    known = Known(settings.etcd, settings.router)
    changed: queue.Queue[Entry | Mapping[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(settings.etcd, known.prefixes, changed), daemon=True).start()
    while True:
        _take_in(known, changed)
        _tell(state, known, changed)


def _take_in(known: Known, changed: "queue.Queue[Entry | Mapping[str, Any]]") -> None:
    """Wait for news, and take in all there is."""
    news = changed.get()
    while True:
        if isinstance(news, Entry):
            known.change(news)
        else:
            known.begin(news)
        try:
            news = changed.get_nowait()
        except queue.Empty:
            return


def _tell(state: State, known: Known, changed: "queue.Queue[Entry | Mapping[str, Any]]") -> None:
    """Have Caddy do as is known; while it is away, try again, with what is news by then."""
    while True:
        try:
            load(state.run / "caddy.sock", configuration(known.sites(), known.certificates(), state, known.router))
            return
        except CaddyAway:
            time.sleep(_TRY_AGAIN_SECONDS)  # a socket that is not there has nothing to wait for
            if not changed.empty():
                _take_in(known, changed)
        except NapError as error:
            print(time.strftime("%F %T"), error, flush=True)
            return


def _listen(places: EtcdSettings, prefixes: list[str], changed: "queue.Queue[Entry | Mapping[str, Any]]") -> None:
    """Tell all there is, and each change that comes; for ever, also after etcd was away."""
    while True:
        try:
            with connect(places) as etcd:
                since = etcd.revision()
                changed.put(_all(etcd, prefixes))
                for entry in etcd.changes(prefixes, since, _LOOK_ANEW_SECONDS):
                    changed.put(entry)
        except EtcdAway as error:
            print(time.strftime("%F %T"), error, flush=True)
            time.sleep(_TRY_AGAIN_SECONDS)


def _all(etcd: Etcd, prefixes: list[str]) -> dict[str, Any]:
    return {entry.key: entry.value for prefix in prefixes for entry in etcd.below(prefix).entries}


def main() -> None:
    """`python -m nap_receiver.router STATE`."""
    state = state_at(sys.argv[1])
    route_for_ever(state, load_settings(state).settings)


if __name__ == "__main__":
    main()
