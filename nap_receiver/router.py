"""The router: it follows what etcd says of the apps, and has Caddy do so. `nap router` runs it, beside its Caddy.

Caddy keeps its routes by itself, also over its own restart; so what serves goes on while etcd or this program is away.
"""

import os
import queue
import select
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from nap_receiver.caddy import CaddyAway, load, process
from nap_receiver.domains import is_own, own_name
from nap_receiver.errors import NapError
from nap_receiver.etcd import Entry, Etcd, EtcdAway, connect
from nap_receiver.handover import prefer_newest
from nap_receiver.release import INSTANCE
from nap_receiver.routes import RECENT, Certificate, Site, become_only_router, configuration, dialled, say_told
from nap_receiver.settings import EtcdSettings, RouterSettings, Settings
from nap_receiver.settings import load as load_settings
from nap_receiver.state import State, state_at

_LOOK_ANEW_SECONDS = 600
_TRY_AGAIN_SECONDS = 0.1

News = queue.Queue[Entry | Mapping[str, Any] | Exception | None]
"""Changes; all there is; what went wrong for good; and nothing, where Caddy is to be told once more."""


class _App(msgspec.Struct):
    """What is asked of a value and of the rest of its key, `name`; what is no name would have Caddy take no routes."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+\Z")]


class _Instance(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=rf"/{INSTANCE.pattern}\Z")]
    host: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z.:-]+\Z")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1


class _Domain(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=r"^(\*\.)?[a-z0-9.-]+\Z")]
    app: str


class _Brought(msgspec.Struct):
    names: list[str]
    chain: str
    key: str


@dataclass
class Known:
    """What etcd says of all apps: the values of the keys below `prefixes`."""

    places: EtcdSettings
    router: RouterSettings
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Below each prefix, by what follows it."""
    silent_since: dict[str, float] = field(default_factory=dict)
    """Of apps of which no instance answers: since when."""
    told: int | None = None
    """The Caddy that was told last, by its process id."""
    keeps_streams: bool = True
    """Whether it can keep streams open over changes, as far as it has not said that it cannot."""
    unfit: set[str] = field(default_factory=set)
    """The certificates that Caddy does not take."""

    @property
    def prefixes(self) -> list[str]:
        """Below these is all that matters to the router."""
        places = self.places
        return [f"{each}/" for each in (places.announcements, places.access, places.domains, places.certificates)]

    def begin(self, values: Mapping[str, Any]) -> None:
        """This is all there is."""
        self.values = {}
        for key, value in values.items():
            self._take(key, value)

    def change(self, entry: Entry) -> None:
        """This is other now."""
        self._take(entry.key, entry.value)

    def sites(self) -> list[Site]:
        """Every app, by its name."""
        announced, access, domains, _ = self.prefixes
        names: dict[str, list[str]] = {}
        instances: dict[str, list[str]] = {}
        for app, _ in self._below(access):
            names[app] = [own_name(app, self.router)]
        for domain, value in self._below(domains):
            app = value["app"]
            if app in names and not is_own(domain, self.router):
                names[app].append(domain)
        for name, value in self._below(announced):
            if "port" in value:  # else it answers nobody
                app = name.partition("/")[0]
                instances.setdefault(app, []).append(dialled(value["host"], value["port"]))
        now = time.time()
        self.silent_since = {app: self.silent_since.get(app, now) for app in names if app not in instances}
        return [
            Site(app, tuple(of), tuple(instances.get(app, ())), self.silent_since.get(app, 0.0))
            for app, of in sorted(names.items())
        ]

    def certificates(self) -> list[Certificate]:
        """Every certificate that an owner brought, and Caddy takes."""
        *_, prefix = self.prefixes
        found = self._below(prefix)
        certificates = [Certificate(app, value["names"], value["chain"], value["key"]) for app, value in found]
        return [each for each in certificates if each.chain not in self.unfit]

    def _take(self, key: str, value: object) -> None:
        """Take this as what is there; where it is not what belongs there, say so, and go on as if nothing were."""
        of_all = zip(self.prefixes, (_Instance, _App, _Domain, _Brought), strict=True)
        prefix, kind = next((prefix, kind) for prefix, kind in of_all if key.startswith(prefix))
        name, there = key.removeprefix(prefix), self.values.setdefault(prefix, {})
        there.pop(name, None)
        if value is None:
            return
        try:
            msgspec.convert({**value, "name": name} if isinstance(value, dict) else value, kind)
        except msgspec.ValidationError as error:
            _say(f"{key} is of no use: {error}")
        else:
            there[name] = value

    def _below(self, prefix: str) -> list[tuple[str, Any]]:
        return sorted(self.values.get(prefix, {}).items())


def route_for_ever(state: State, settings: Settings) -> None:
    """Keep Caddy's routes as etcd has them, until this process ends. Raises `NapError` where that makes no sense."""
    if not settings.router.domain:
        raise NapError("there is no router without router.domain", advice="Set it, then run nap up again.")
    become_only_router(state)
    known = Known(settings.etcd, settings.router)
    changed: News = queue.Queue()
    threading.Thread(target=_listen, args=(settings.etcd, known.prefixes, changed), daemon=True).start()
    while True:
        _take_in(known, changed)
        _tell(state, known, changed)


def _take_in(known: Known, changed: News) -> None:
    """Wait for news, and take in all there is."""
    news = changed.get()
    while True:
        if isinstance(news, Entry):
            known.change(news)
        elif isinstance(news, Exception):
            raise news
        elif news is not None:
            known.begin(news)
        try:
            news = changed.get_nowait()
        except queue.Empty:
            return


def _tell(state: State, known: Known, changed: News) -> None:
    """Have Caddy do as is known, and say so; while it is away, try again, with what is news by then."""
    while True:
        try:
            told = process(state.run / "caddy.sock")
            is_another = told != known.told
            if is_another:
                known.keeps_streams = True
            sites = _load(state, known)
            if is_another:
                known.told = told
                threading.Thread(target=_await_end, args=(told, changed), daemon=True).start()
                _prefer_newest(known.router)
            say_told(state, sites)
            return
        except CaddyAway:
            time.sleep(_TRY_AGAIN_SECONDS)  # a socket that is not there has nothing to wait for
            if not changed.empty():
                _take_in(known, changed)
        except NapError as error:
            _say(error)
            return


def _prefer_newest(router: RouterSettings) -> None:
    """At each change, have new connections go by the new routes at once, and none be cut off with the old."""
    for address in filter(None, (router.http, router.https)):
        try:
            prefer_newest(address)
        except OSError as error:
            _say(f"{address}: a change of routes may cut off who connects in that moment: {error}")


def _await_end(told: int, changed: News) -> None:
    """Make it news when this Caddy has ended: the next one may have to be told all of it."""
    if not told:
        return
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(told)
        select.select([ended], [], [])
        os.close(ended)
    changed.put(None)


def _load(state: State, known: Known) -> list[Site]:
    """Have Caddy do as is known, without any certificate that it does not take; the sites that it serves now.

    Raises `CaddyAway`, or `NapError`.
    """
    sites, certificates = known.sites(), known.certificates()

    def tell(chosen: Sequence[Certificate]) -> None:
        told = configuration(sites, chosen, state, known.router, keeps_streams=known.keeps_streams)
        try:
            load(state.run / "caddy.sock", told)
        except NapError as error:
            if not known.keeps_streams or not any(word in str(error) for word in RECENT):
                raise
            known.keeps_streams = False
            tell(chosen)

    try:
        tell(certificates)
        return sites
    except CaddyAway:
        raise
    except NapError:
        if not certificates:
            raise
    tell([])  # what is wrong with one owner's is not the others' trouble
    taken: list[Certificate] = []
    for each in certificates:
        try:
            tell([*taken, each])
            taken.append(each)
        except CaddyAway:
            raise
        except NapError as error:
            known.unfit.add(each.chain)
            _say(f"{each.app}: its certificate is not used: {error}")
    return sites


def _listen(places: EtcdSettings, prefixes: list[str], changed: News) -> None:
    """Tell all there is, and each change that comes; for ever, also after etcd was away."""
    is_away = False
    while True:
        try:
            with connect(places) as etcd:
                since = etcd.revision()
                changed.put(_all(etcd, prefixes))
                if is_away:
                    _say("etcd answers again")
                is_away = False
                for entry in etcd.changes(prefixes, since, _LOOK_ANEW_SECONDS):
                    changed.put(entry)
        except EtcdAway as error:
            if not is_away:
                _say(error)
            is_away = True
            time.sleep(_TRY_AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001 # whoever waits for news is to end with it
            changed.put(error)
            return


def _all(etcd: Etcd, prefixes: list[str]) -> dict[str, Any]:
    return {entry.key: entry.value for prefix in prefixes for entry in etcd.below(prefix).entries}


def _say(what: object) -> None:
    print(time.strftime("%F %T"), what, flush=True)


def main() -> None:
    """`python -m nap_receiver.router STATE`."""
    state = state_at(sys.argv[1])
    # What this process got as its environment is that of the nap up that started supervisord.
    route_for_ever(state, load_settings(state, environ={}).settings)


if __name__ == "__main__":
    main()
