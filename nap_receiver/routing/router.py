"""The router: reads apps from etcd, and configures Caddy. `nap router` runs it, beside its two Caddies.

One Caddy has the routes (`caddy_configuration`). The front before it has visitors' connections (`front`). Both keep
their last configuration, also over a restart, so apps stay reachable while etcd or this process is down.
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

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import log
from nap_receiver.core.settings import EtcdSettings, RouterSettings, Settings
from nap_receiver.core.settings import load as load_settings
from nap_receiver.model.app_url import own_name
from nap_receiver.model.release import INSTANCE, Protocol
from nap_receiver.routing.caddy import CaddyAway, load, process
from nap_receiver.routing.caddy_configuration import (
    CADDY,
    FRONT,
    RECENT,
    Site,
    admin_socket,
    become_only_router,
    behind,
    dialled,
    say_told,
    storage_of,
)
from nap_receiver.routing.domains import is_own
from nap_receiver.routing.front import Certificate, asked_for, front, permitted, whole
from nap_receiver.routing.issuing import Turns, certified, owners_of, visit
from nap_receiver.routing.reuseport import prefer_newest
from nap_receiver.store.assignments import withdraw_of_another_boot
from nap_receiver.store.etcd import Entry, Etcd, EtcdAway, connect

_LOOK_ANEW_SECONDS = 600
_TRY_AGAIN_SECONDS = 0.1
_LOOK_FOR_CERTIFICATES_SECONDS = 2.0

News = queue.Queue[Entry | Mapping[str, Any] | Exception | None]
"""Changes; all there is; what went wrong for good; and nothing, where Caddy is to be told once more."""


class _AppKey(msgspec.Struct):
    """The checked form of a value and of the rest of its key, `name`; an invalid name would make Caddy reject all
    routes."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+\Z")]


class _Instance(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=rf"/{INSTANCE.pattern}\Z")]
    host: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z.:-]+\Z")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1
    protocol: Protocol = "http"


class _Domain(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=r"^(\*\.)?[a-z0-9.-]+\Z")]
    app: str


class _Brought(msgspec.Struct):
    names: list[str]
    chain: str
    key: str


@dataclass
class Known:
    """The router's copy of etcd: the values of the keys below `prefixes`, and the state of both Caddies."""

    places: EtcdSettings
    router: RouterSettings
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Below each prefix, by what follows it."""
    silent_since: dict[str, float] = field(default_factory=dict)
    """Of apps of which no instance answers: since when."""
    told: dict[str, int] = field(default_factory=dict)
    """The Caddies that were told last, by their names: their process ids."""
    fronts: dict[str, Any] = field(default_factory=dict)
    """The front's configuration, as it was told last."""
    has_two: bool = True
    """Whether the routes are those of a Caddy behind the front, as far as none has said that it cannot do that."""
    unfit: set[str] = field(default_factory=set)
    """The certificates that Caddy does not take."""
    turns: Turns = field(init=False)
    waiting: set[str] = field(default_factory=set)
    """The names for which no authority is asked yet."""
    visited: set[str] = field(default_factory=set)
    """The names for whose certificates the front was visited, in this turn of theirs."""

    def __post_init__(self) -> None:
        self.turns = Turns(self.router.certificates_per_hour)

    @property
    def prefixes(self) -> list[str]:
        """The prefixes of all keys that the router watches."""
        places = self.places
        return [f"{each}/" for each in (places.announcements, places.access, places.domains, places.certificates)]

    def begin(self, values: Mapping[str, Any]) -> None:
        """Replace all values."""
        self.values = {}
        for key, value in values.items():
            self._take(key, value)

    def change(self, entry: Entry) -> None:
        """Apply one change."""
        self._take(entry.key, entry.value)

    def sites(self) -> list[Site]:
        """Return every app, by name."""
        announced, access, domains, _ = self.prefixes
        names: dict[str, list[str]] = {}
        instances: dict[str, dict[Protocol, list[str]]] = {}
        for app, _ in self._below(access):
            names[app] = [own_name(app, self.router)]
        for domain, value in self._below(domains):
            app = value["app"]
            if app in names and not is_own(domain, self.router):
                names[app].append(domain)
        for name, value in self._below(announced):
            if "port" in value:  # else it answers nobody
                app = name.partition("/")[0]
                speaking = instances.setdefault(app, {"http": [], "h2c": []})
                speaking[value.get("protocol", "http")].append(dialled(value["host"], value["port"]))
        now = time.time()
        self.silent_since = {app: self.silent_since.get(app, now) for app in names if app not in instances}
        none: dict[Protocol, list[str]] = {"http": [], "h2c": []}
        return [
            Site(app, tuple(of), *_in_one_protocol(instances.get(app, none)), self.silent_since.get(app, 0.0))
            for app, of in sorted(names.items())
        ]

    def certificates(self) -> list[Certificate]:
        """Return the owners' certificates that Caddy accepts."""
        *_, prefix = self.prefixes
        found = self._below(prefix)
        certificates = [Certificate(app, value["names"], value["chain"], value["key"]) for app, value in found]
        return [each for each in certificates if each.chain not in self.unfit]

    def take_turns(self, state: State, sites: Sequence[Site], certificates: Sequence[Certificate]) -> bool:
        """Update which names may get a certificate now; return whether that changed."""
        if not self.router.https:
            return False
        names = owners_of(asked_for(sites, certificates), self.router.domain)
        before = self.waiting
        self.waiting = self.turns.waiting(names, certified(storage_of(state)), time.monotonic())
        return before != self.waiting

    def _take(self, key: str, value: object) -> None:
        """Store a value; report and skip an invalid one."""
        of_all = zip(self.prefixes, (_Instance, _AppKey, _Domain, _Brought), strict=True)
        prefix, kind = next((prefix, kind) for prefix, kind in of_all if key.startswith(prefix))
        name, stored = key.removeprefix(prefix), self.values.setdefault(prefix, {})
        stored.pop(name, None)
        if value is None:
            return
        try:
            msgspec.convert({**value, "name": name} if isinstance(value, dict) else value, kind)
        except msgspec.ValidationError as error:
            log(f"{key} is ignored: {error}")
        else:
            stored[name] = value

    def _below(self, prefix: str) -> list[tuple[str, Any]]:
        return sorted(self.values.get(prefix, {}).items())


def _in_one_protocol(instances: Mapping[Protocol, Sequence[str]]) -> tuple[tuple[str, ...], Protocol]:
    """Return the instances of one protocol, and that protocol. While a release replaces one with another protocol,
    choose the protocol of more instances."""
    protocol: Protocol = "h2c" if len(instances["h2c"]) > len(instances["http"]) else "http"
    return tuple(instances[protocol]), protocol


def route_for_ever(state: State, settings: Settings) -> None:
    """Keep Caddy's routes as in etcd, until this process ends. Raises `NapError` without `router.domain`."""
    if not settings.router.domain:
        raise NapError("the router needs the setting router.domain", advice="Set it, then run nap up again.")
    become_only_router(state)
    known = Known(settings.etcd, settings.router)
    changed: News = queue.Queue()
    threading.Thread(target=_listen, args=(settings.etcd, known.prefixes, state.name, changed), daemon=True).start()
    while True:
        _take_in(known, changed, state)
        _tell(state, known, changed)


def _take_in(known: Known, changed: News, state: State) -> None:
    """Wait for changes and apply them; also return when another name's turn for a certificate has come."""
    while True:
        try:
            takes_turns = known.waiting or known.turns.asked
            news = changed.get(timeout=_LOOK_FOR_CERTIFICATES_SECONDS if takes_turns else None)
            break
        except queue.Empty:
            if known.take_turns(state, known.sites(), known.certificates()):
                return
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
    """Configure both Caddies, and record that; if one is away, try again with newer changes."""
    is_away = False
    while True:
        try:
            others = _others(state, known)
            sites = _load(state, known)
            for program, process_id in others.items():
                known.told[program] = process_id
                threading.Thread(target=_await_end, args=(process_id, changed), daemon=True).start()
            if FRONT in others:
                _prefer_newest(known.router)
            say_told(state, sites)
            return
        except CaddyAway as error:
            if not is_away:
                log(error)
            is_away = True
            time.sleep(_TRY_AGAIN_SECONDS)  # a socket that is not there has nothing to wait for
            if not changed.empty():
                _take_in(known, changed, state)
        except NapError as error:
            log(error)
            return


def _others(state: State, known: Known) -> dict[str, int]:
    """Return the process ids of Caddies that were not configured yet, by name. Raises `CaddyAway`."""
    found = {program: process(admin_socket(state, program)) for program in (CADDY, FRONT)}
    others = {program: process_id for program, process_id in found.items() if process_id != known.told.get(program)}
    if others:
        known.has_two = True
    if FRONT in others:
        known.fronts = {}
        known.visited = set()
    return others


def _prefer_newest(router: RouterSettings) -> None:
    """At each change, send new connections to the new sockets at once, so that none is reset with the old."""
    for address in filter(None, (router.http, router.https)):
        try:
            prefer_newest(address)
        except OSError as error:
            log(f"{address}: a change of routes may cut off new connections at that moment: {error}")


def _await_end(process_id: int, changed: News) -> None:
    """Report a change when this Caddy has ended: the next one may need the whole configuration."""
    if not process_id:
        return
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(process_id)
        select.select([ended], [], [])
        os.close(ended)
    changed.put(None)


def _load(state: State, known: Known) -> list[Site]:
    """Configure both Caddies; return the sites that they serve now. Raises `CaddyAway` or `NapError`."""
    sites, certificates = known.sites(), known.certificates()
    known.take_turns(state, sites, certificates)
    if known.has_two:
        try:
            names = permitted(sites, certificates, known.waiting)
            load(admin_socket(state, CADDY), behind(sites, state, known.router, names))
            _load_front(state, known, sites, certificates)
            _visit(known)
            return sites
        except NapError as error:
            if not any(word in str(error) for word in RECENT):
                raise
            known.has_two = False
    _load_front(state, known, sites, certificates)
    return sites


def _load_front(state: State, known: Known, sites: Sequence[Site], certificates: Sequence[Certificate]) -> None:
    """Configure the front, without the certificates that it rejects.

    An unchanged configuration is not loaded again. Raises `CaddyAway` or `NapError`.
    """

    def tell(chosen: Sequence[Certificate]) -> None:
        if known.has_two:
            configuration = front(sites, chosen, state, known.router)
        else:
            configuration = whole(sites, chosen, state, known.router, known.waiting)
        if configuration != known.fronts:
            load(admin_socket(state, FRONT), configuration)
            known.fronts = configuration

    try:
        tell(certificates)
        return
    except CaddyAway:
        raise
    except NapError:
        if not certificates:
            raise
    tell([])  # what is wrong with one owner's is not the others' trouble
    taken: list[Certificate] = []
    left = [certificates]
    while left:  # halves, for each of many owners may bring one more
        some = left.pop()
        try:
            tell([*taken, *some])
            taken += some
        except CaddyAway:
            raise
        except NapError as error:
            if len(some) > 1:
                left += [some[len(some) // 2 :], some[: len(some) // 2]]
                continue
            known.unfit.add(some[0].chain)
            log(f"{some[0].app}: its certificate is not used: {error}")


def _visit(known: Known) -> None:
    """Connect to the front for each name whose turn it is: it requests a certificate when a visitor comes."""
    for name in known.turns.asked - known.visited:
        threading.Thread(target=visit, args=(name, known.router.https), daemon=True).start()
    known.visited = known.turns.asked


def _listen(places: EtcdSettings, prefixes: list[str], machine: str, changed: News) -> None:
    """Report all values, then each change; never ends, also after etcd was away."""
    is_away = False
    while True:
        try:
            with connect(places) as etcd:
                withdraw_of_another_boot(etcd, places, machine)
                since = etcd.revision()
                changed.put(_all(etcd, prefixes))
                if is_away:
                    log("etcd answers again")
                is_away = False
                for entry in etcd.changes(prefixes, since, _LOOK_ANEW_SECONDS):
                    changed.put(entry)
        except EtcdAway as error:
            if not is_away:
                log(error)
            is_away = True
            time.sleep(_TRY_AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001 # whoever waits for news is to end with it
            changed.put(error)
            return


def _all(etcd: Etcd, prefixes: list[str]) -> dict[str, Any]:
    return {entry.key: entry.value for prefix in prefixes for entry in etcd.below(prefix).entries}


def main() -> None:
    """`nap-router STATE`."""
    keep_private()
    state = state_at(sys.argv[1])
    # What this process got as its environment is that of the nap up that started supervisord.
    route_for_ever(state, load_settings(state, environ={}).settings)


if __name__ == "__main__":
    main()
