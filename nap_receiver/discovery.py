"""Who answers where: the announcements in etcd, read and waited for; and which instances are good that answer nobody.

Both are written on the instance's own machine by `unit_templates/announce.sh`; the receiver only watches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nap_receiver.channel import Channel, plain
from nap_receiver.errors import NapError
from nap_receiver.kept import Entry, Reader
from nap_receiver.release import INSTANCE, Instance, Release
from nap_receiver.settings import EtcdSettings

if TYPE_CHECKING:  # its library is for those who wait
    from nap_receiver.etcd import Etcd

PATIENCE = 10.0
"""Seconds without an answer after which it is asked whether there is any hope of one."""

_NOT_STARTED = range(125, 129)  # docker-run(1), "Exit Status"; 128 where the engine gives up later

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


class _Told(msgspec.Struct):
    """An announcement, as its key has it."""

    host: str
    port: int
    ports: dict[str, int]


class _Exit(msgspec.Struct):
    """How an instance ended; the texts are in base64."""

    status: int
    error: bytes
    output: bytes


class InstanceFailed(NapError):
    """An instance of a release did not come up."""


class Silent(InstanceFailed):
    """An instance runs and does not answer."""

    def __init__(self, instance: Instance, what: str, advice: Sequence[str]) -> None:
        super().__init__(what, advice=advice)
        self.instance = instance


def announced(etcd: Reader, places: EtcdSettings, app: str, release: str = "") -> list[Announcement]:
    """The announcements of `app` that are there now, or of one release (`v3`) of it; what is none is left out."""
    prefix = places.announcements_of(app) + (f"{release}." if release else "")
    return [found for entry in etcd.below(prefix).entries if (found := _announcement(entry))]


def good(etcd: Reader, places: EtcdSettings, app: str) -> set[str]:
    """The instances (`v3.web.1`) of `app` that are good now, announced or not."""
    up = {entry.key.rpartition("/")[2] for entry in etcd.below(places.up_of(app)).entries}
    return {each.instance for each in announced(etcd, places, app)} | set(filter(INSTANCE.fullmatch, up))


def serving(etcd: Reader, places: EtcdSettings, release: Release) -> list[Announcement] | None:
    """Where `release` answers, if each of its instances is good, and nothing else of the app; else None.

    A release of which nothing is to run serves nobody.
    """
    wanted = {each.key for each in release.instances}
    if not wanted or good(etcd, places, release.app) != wanted:
        return None
    return announced(etcd, places, release.app)


def show(result: str, url: str, addresses: Sequence[Announcement], channel: Channel) -> None:
    """The last lines of a good push: where the app is reached on the web, if it is, and each of its instances."""
    channel.result(result)
    if url and addresses:
        channel.detail(url)
    for announcement in addresses:
        channel.detail(announcement.url)


def await_withdrawn(etcd: "Etcd", places: EtcdSettings, app: str, instances: Sequence[str], timeout: float) -> None:
    """Wait until none of the `instances` (`v3.web.1`) of `app` is announced. Raises `NapError` after `timeout` s."""
    before = etcd.revision()
    left = good(etcd, places, app) & set(instances)
    if left:
        for change in etcd.changes(_places_of(places, app), before, timeout):
            name = change.key.rpartition("/")[2]
            if change.value is None:
                left.discard(name)
            elif name in instances:
                left.add(name)
            if not left:
                return
        raise NapError(f"{app}: {', '.join(sorted(left))} still announced after {timeout:g} s")


def last_words(etcd: "Etcd", places: EtcdSettings, instance: Instance) -> list[str]:
    """What a discarded instance printed last, oldest line first; nothing where it does not tell in time."""
    key = f"{places.exits_of(instance.release.app)}{instance.key}"
    before = etcd.revision()
    told = etcd.get(key) or next(etcd.changes([key], before, LAST_WORDS_SECONDS), None)
    report = _exit(told) if told else None
    return _lines(report.output) if report else []


def await_announcements(
    etcd: "Etcd", places: EtcdSettings, release: Release, wait: Wait, channel: Channel
) -> list[Announcement]:
    """Wait until every instance of `release` is good, watching etcd; where those answer that are announced.

    Raises `InstanceFailed` as soon as one exits, with its last output, and `Silent` when the time is over.
    """
    waiting = {instance.key: instance for instance in release.instances}
    if not waiting:
        return []
    found: dict[str, Announcement | None] = {}
    exits = f"{places.exits_of(release.app)}{release.name}."
    prefixes = [exits, *(f"{place}{release.name}." for place in _places_of(places, release.app))]
    what = f"answer on port {release.port}" if any(each.is_web for each in release.instances) else "be up"
    with channel.waiting(f"waiting for {release.app} {release.name} to {what}"):
        for change in _changes(etcd, prefixes, wait):
            key = change.key.rpartition("/")[2]
            if key not in waiting or change.value is None:
                continue
            if change.key.startswith(exits):
                if report := _exit(change):
                    raise _exited(waiting[key], report)
                continue
            if waiting[key].is_web:
                announcement = _announcement(change)
                if not announcement:
                    continue
                found[key] = announcement
                channel.detail(f"{waiting[key].label} answers on {announcement.host}:{announcement.port}")
            else:
                found[key] = None
                channel.detail(f"{waiting[key].label} is up")
            if len(found) == len(waiting):
                return [answers for key in waiting if (answers := found[key])]
    silent = next(instance for key, instance in waiting.items() if key not in found)
    raise _silent(silent, wait.timeout)


def _changes(etcd: "Etcd", prefixes: list[str], wait: Wait) -> Iterator[Entry]:
    seen = wait.since
    for change in etcd.changes(prefixes, seen, min(wait.timeout, PATIENCE)):
        seen = change.revision
        yield change
    wait.why_not()
    if wait.timeout > PATIENCE:
        yield from etcd.changes(prefixes, seen, wait.timeout - PATIENCE)


def _places_of(places: EtcdSettings, app: str) -> list[str]:
    """Below these is what tells that instances are good."""
    return [places.announcements_of(app), places.up_of(app)]


def _announcement(entry: Entry) -> Announcement | None:
    """What the entry announces; None where somebody else wrote it, and it is none."""
    key = entry.key.rpartition("/")[2]
    try:
        told = msgspec.convert(entry.value, _Told)
    except msgspec.ValidationError:
        return None
    return Announcement(key, told.host, told.port, told.ports) if INSTANCE.fullmatch(key) else None


def _exit(entry: Entry) -> _Exit | None:
    try:
        return msgspec.convert(entry.value, _Exit)
    except msgspec.ValidationError:  # also where the entry was deleted
        return None


def _exited(instance: Instance, report: _Exit) -> InstanceFailed:
    release = instance.release
    error = plain(_decoded(report.error).replace("\n", " ").strip())
    words = _lines(report.output)
    name = f"{release.app} {release.name} {instance.label}"
    if error:
        what = f"{name} could not start: {error}" if report.status in _NOT_STARTED else f"{name}: {error}"
    else:
        before = f"it answered on port {release.port}" if instance.is_web else "it was up"
        what = f"{name} exited with status {report.status} before {before}"
        words = words or ["(it printed nothing)"]
    return InstanceFailed(what, words=words, advice="Mend it, commit, and push again; what ran before still runs.")


def _silent(instance: Instance, seconds: float) -> Silent:
    release = instance.release
    name = f"{release.app} {release.name} {instance.label}"
    if instance.checks:
        what = f"{name} runs, but did not pass its checks within {seconds:.0f} s"
        advice = ["See what they ask in app.json (healthchecks), or in docs/processes.md what they are without it."]
    elif release.has_healthcheck:
        what = f"{name} runs, but its HEALTHCHECK did not pass within {seconds:.0f} s"
        advice = ["See that the image's HEALTHCHECK command succeeds once the app is up."]
    else:
        what = f"{name} runs, but did not answer on port {release.port} within {seconds:.0f} s"
        advice = [f"See that it listens on 0.0.0.0 (not 127.0.0.1) and on port {release.port}, which PORT names too."]
    return Silent(instance, what, [*advice, "If it needs longer: git config nap.timeout SECONDS in its repository."])


def _lines(printed: bytes) -> list[str]:
    return [line for line in map(plain, _decoded(printed).split("\n")) if line]


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")
