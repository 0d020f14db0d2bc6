"""Who answers where: the announcements in etcd, read and waited for.

They are written on the instance's own machine by `unit_templates/announce.sh`; the receiver only watches.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nap_receiver.channel import Channel, plain
from nap_receiver.errors import NapError
from nap_receiver.etcd import Entry, Etcd
from nap_receiver.release import Instance, Release
from nap_receiver.settings import EtcdSettings

PATIENCE = 10.0
"""Seconds without an answer after which it is asked whether there is any hope of one."""

LAST_WORDS_SECONDS = 15.0
"""How long an instance that never answered may take to end and to tell what it printed last."""


@dataclass(frozen=True)
class Announcement:
    """Where an instance answers; `ports` maps `8080/tcp` to the port on `host`."""

    instance: str
    host: str
    port: int
    ports: dict[str, int]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Wait:
    """What is waited for from etcd's revision `since` on, for `timeout` seconds.

    After `PATIENCE` of them `why_not` is called once, which raises `NapError` where waiting is no use.
    """

    since: int
    timeout: float
    why_not: Callable[[], None]


class InstanceFailed(NapError):
    """An instance of a release did not come up."""


class Silent(InstanceFailed):
    """An instance runs and does not answer."""

    def __init__(self, instance: Instance, what: str, advice: Sequence[str]) -> None:
        super().__init__(what, advice=advice)
        self.instance = instance


def announced(etcd: Etcd, places: EtcdSettings, app: str, release: str = "") -> list[Announcement]:
    """The announcements of `app` that are there now, or of one release (`v3`) of it."""
    prefix = places.announcements_of(app) + (f"{release}." if release else "")
    return [_announcement(entry.key, entry.value) for entry in etcd.below(prefix).entries]


def serving(etcd: Etcd, places: EtcdSettings, release: Release) -> list[Announcement]:
    """Where `release` answers, if each of its instances does, and nothing else of the app; else nothing."""
    found = announced(etcd, places, release.app)
    return found if {each.instance for each in found} == {each.key for each in release.instances} else []


def show(result: str, addresses: Sequence[Announcement], channel: Channel) -> None:
    """The last lines of a good push."""
    channel.result(result)
    for announcement in addresses:
        channel.detail(announcement.url)


def await_withdrawn(etcd: Etcd, places: EtcdSettings, app: str, instances: Sequence[str], timeout: float) -> None:
    """Wait until none of the `instances` (`v3.web.1`) of `app` is announced. Raises `NapError` after `timeout` s."""
    prefix = places.announcements_of(app)
    listing = etcd.below(prefix)
    left = {entry.key.removeprefix(prefix) for entry in listing.entries} & set(instances)
    if left:
        for change in etcd.changes([prefix], listing.revision, timeout):
            name = change.key.removeprefix(prefix)
            if change.value is None:
                left.discard(name)
            elif name in instances:
                left.add(name)
            if not left:
                return
        raise NapError(f"{app}: {', '.join(sorted(left))} still announced after {timeout:g} s")


def last_words(etcd: Etcd, places: EtcdSettings, instance: Instance) -> list[str]:
    """What a discarded instance printed last, oldest line first; nothing where it does not tell in time."""
    key = f"{places.exits_of(instance.release.app)}{instance.key}"
    before = etcd.revision()
    told = etcd.get(key) or next(etcd.changes([key], before, LAST_WORDS_SECONDS), None)
    return _lines(told.value["output"]) if told and told.value else []


def await_announcements(
    etcd: Etcd, places: EtcdSettings, release: Release, wait: Wait, channel: Channel
) -> list[Announcement]:
    """Wait until every instance of `release` is announced, watching etcd.

    Raises `InstanceFailed` as soon as one exits, with its last output, and `Silent` when the time is over.
    """
    waiting = {instance.key: instance for instance in release.instances}
    found: dict[str, Announcement] = {}
    exits = f"{places.exits_of(release.app)}{release.name}."
    prefixes = [f"{places.announcements_of(release.app)}{release.name}.", exits]
    with channel.waiting(f"waiting for {release.app} {release.name} to answer on port {release.port}"):
        for change in _changes(etcd, prefixes, wait):
            key = change.key.rpartition("/")[2]
            if key not in waiting or change.value is None:
                continue
            if change.key.startswith(exits):
                raise _exited(waiting[key], change.value)
            found[key] = _announcement(change.key, change.value)
            channel.detail(f"{waiting[key].label} answers on {found[key].host}:{found[key].port}")
            if len(found) == len(waiting):
                return [found[key] for key in waiting]
    silent = next(instance for key, instance in waiting.items() if key not in found)
    raise _silent(silent, wait.timeout)


def _changes(etcd: Etcd, prefixes: list[str], wait: Wait) -> Iterator[Entry]:
    seen = wait.since
    for change in etcd.changes(prefixes, seen, min(wait.timeout, PATIENCE)):
        seen = change.revision
        yield change
    wait.why_not()
    if wait.timeout > PATIENCE:
        yield from etcd.changes(prefixes, seen, wait.timeout - PATIENCE)


def _announcement(key: str, value: dict[str, Any]) -> Announcement:
    return Announcement(key.rpartition("/")[2], value["host"], value["port"], value["ports"])


def _exited(instance: Instance, report: dict[str, Any]) -> InstanceFailed:
    release = instance.release
    error = plain(_decoded(report["error"]).replace("\n", " ").strip())
    words = _lines(report["output"])
    name = f"{release.app} {release.name} {instance.label}"
    if error:
        what = f"{name} could not start: {error}"
    else:
        what = f"{name} exited with status {report['status']} before it answered on port {release.port}"
        words = words or ["(it printed nothing)"]
    return InstanceFailed(what, words=words, advice="Mend it, commit, and push again; what ran before still runs.")


def _silent(instance: Instance, seconds: float) -> Silent:
    release = instance.release
    name = f"{release.app} {release.name} {instance.label}"
    if release.has_healthcheck:
        what = f"{name} runs, but its HEALTHCHECK did not pass within {seconds:.0f} s"
        advice = ["See that the image's HEALTHCHECK command succeeds once the app is up."]
    else:
        what = f"{name} runs, but did not answer on port {release.port} within {seconds:.0f} s"
        advice = [f"See that it listens on 0.0.0.0 (not 127.0.0.1) and on port {release.port}, which PORT names too."]
    return Silent(instance, what, [*advice, "If it needs longer: git config nap.timeout SECONDS in its repository."])


def _lines(encoded: str) -> list[str]:
    return [line for line in map(plain, _decoded(encoded).split("\n")) if line]


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode("utf-8", "replace")
