"""Announcements in etcd: read them, and wait for instances to become good.

The instance's machine writes both: its agent or, on a cluster, `unit_templates/announce.sh`. The receiver only watches.
"""

import shlex
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings
from nap_receiver.model.health import Answer, Check, answered, ended
from nap_receiver.model.release import INSTANCE, WEB, Instance, Release
from nap_receiver.store.etcdctl import Entry, Reader
from nap_receiver.store.listening import Listening, explained, how_to_name, listening

if TYPE_CHECKING:  # its library is for those who wait
    from nap_receiver.store.etcd import Etcd

PATIENCE = 10.0
"""Seconds without an answer after which it is asked whether there is any hope of one."""

_LEAST_STARVED = 1.0
"""Seconds without a processor that are worth a word."""

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
    """How to wait for instances: from etcd's revision `since` on, for `timeout` seconds.

    After `PATIENCE` seconds `why_not` is called once; it raises `NapError` if more waiting is useless. `check_failed`
    is called with each check that an instance has failed, and a sentence about it. `url` is the URL of the app, empty
    without a router.
    """

    since: int
    timeout: float
    why_not: Callable[[], None]
    check_failed: Callable[[Check, str], None]
    url: str


class _Announced(msgspec.Struct):
    """An announcement, as its key has it."""

    host: str
    port: int
    ports: dict[str, int]


class _Starved(msgspec.Struct):
    """How long a starting instance has waited for a processor, in nanoseconds."""

    waited: int


class _Warned(msgspec.Struct):
    """The numbers of the failed checks that only warn, as a healthy instance reports them."""

    warned: list[int] = []


class _Exit(msgspec.Struct):
    """How an instance ended; texts are in base64; `check` is the number of the failed check, or 0."""

    status: int
    error: bytes
    output: bytes
    check: int = 0

    @property
    def is_complaint(self) -> bool:
        """Whether the instance kept running and the engine reported it as unhealthy."""
        return bool(self.error) and not self.status


class InstanceFailed(NapError):
    """An instance of a release did not start."""


class Silent(InstanceFailed):
    """An instance runs but does not answer."""

    def __init__(self, instance: Instance, what: str, advice: Sequence[str]) -> None:
        super().__init__(what, advice=advice)
        self.instance = instance


class ListensElsewhere(InstanceFailed):
    """All web instances listen on one other port than nap expected, and nothing sets the port."""

    def __init__(self, release: Release, port: int) -> None:
        super().__init__(
            f"{release.app} {release.name} {WEB} listens on {port}; nap expected {release.port}",
            advice=how_to_name(release, [port]),
        )
        self.port = port


def announced(etcd: Reader, places: EtcdSettings, app: str, release: str = "") -> list[Announcement]:
    """Return the current announcements of `app`, or of one release (`v3`) of it. Invalid entries are skipped."""
    prefix = places.announcements_of(app) + (f"{release}." if release else "")
    return [found for entry in etcd.below(prefix).entries if (found := _announcement(entry))]


def good(etcd: Reader, places: EtcdSettings, app: str) -> set[str]:
    """Return the healthy instances (`v3.web.1`) of `app`, announced or up."""
    up = {entry.key.rpartition("/")[2] for entry in etcd.below(places.up_of(app)).entries}
    return {each.instance for each in announced(etcd, places, app)} | set(filter(INSTANCE.fullmatch, up))


def serving(etcd: Reader, places: EtcdSettings, release: Release) -> list[Announcement] | None:
    """Return the announcements of `release` if all its instances are healthy and no other instance of the app is; else
    None.

    A release without instances serves nobody: None.
    """
    wanted = {each.key for each in release.instances}
    if not wanted or good(etcd, places, release.app) != wanted:
        return None
    return announced(etcd, places, release.app)


def show(result: str, url: str, addresses: Sequence[Announcement], channel: Channel) -> None:
    """Write the last lines of a successful push: the URL of the app, if it has one, and the address of each
    instance."""
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


def last_words(etcd: "Etcd", places: EtcdSettings, instance: Instance, url: str) -> list[str]:
    """Return the last answers to the checks of a discarded instance, and its last output, oldest line first.

    Empty if the machine does not report in time. `url` is the URL of the app.
    """
    answers = _answers(etcd, places, instance, instance.checks, url)
    key = f"{places.exits_of(instance.release.app)}{instance.key}"
    before = etcd.revision()
    exit_entry = etcd.get(key) or next(etcd.changes([key], before, LAST_WORDS_SECONDS), None)
    report = _exit(exit_entry) if exit_entry else None
    return [*answers, *(_lines(report.output) if report else [])]


def await_announcements(
    etcd: "Etcd", places: EtcdSettings, release: Release, wait: Wait, channel: Channel
) -> list[Announcement]:
    """Wait, watching etcd, until every instance of `release` is healthy; return the announcements.

    Raises `InstanceFailed` as soon as an instance exits, with its last output; `Silent` at the timeout;
    `ListensElsewhere` instead of both if it applies, or as soon as it is certain.
    """
    waiting = {instance.key: instance for instance in release.instances}
    if not waiting:
        return []
    found: dict[str, Announcement | None] = {}

    def starved() -> float:
        return max(_starved(etcd, places, instance) for key, instance in waiting.items() if key not in found)

    exits = f"{places.exits_of(release.app)}{release.name}."
    told_by = {f"{places.checks_of(release.app, key)}listens": key for key, each in waiting.items() if each.is_web}
    listens: dict[str, Listening] = {}
    prefixes = [exits, *(f"{place}{release.name}." for place in _places_of(places, release.app))]
    prefixes.append(f"{places.checks_of(release.app, release.name).removesuffix('/')}.")
    what = f"answer on port {release.port}" if any(each.is_web for each in release.instances) else "be up"
    with channel.waiting(f"waiting for {release.app} {release.name} to {what}"):
        for change in _changes(etcd, prefixes, wait, starved, channel):
            if change.key in told_by and (sockets := listening(change)):
                listens[told_by[change.key]] = sockets
                if sockets.settled:
                    _require_asked_port(release, found, listens, settled=True)
            key = change.key.rpartition("/")[2]
            if key not in waiting or change.value is None:
                continue
            if change.key.startswith(exits):
                if report := _exit(change):
                    check = _checked(waiting[key], report.check)
                    if check and check.asks_port and not check.port:
                        _require_asked_port(release, found, listens)
                    failure = _exited(waiting[key], report, listens.get(key))
                    if check or report.is_complaint:
                        got = _answers(etcd, places, waiting[key], [check] if check else [], wait.url)
                        failure.words = [*got, *failure.words]
                    if check:
                        wait.check_failed(check, str(failure))
                    raise failure
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
            for check in _warned(waiting[key], change):
                shown = plain(check.shown(release.port))
                what = f"its check ({shown}) failed {check.tries}; this check only warns"
                what = f"{release.app} {release.name} {waiting[key].label}: {what}"
                channel.trouble(what)
                for line in _answers(etcd, places, waiting[key], [check], wait.url):
                    channel.detail(line)
                wait.check_failed(check, what)
            if len(found) == len(waiting):
                return [answers for key in waiting if (answers := found[key])]
    _require_asked_port(release, found, listens)
    silent = next(instance for key, instance in waiting.items() if key not in found)
    raise _silent(silent, wait.timeout, _starved(etcd, places, silent), listens.get(silent.key))


def _require_asked_port(
    release: Release, found: Container[str], listens: Mapping[str, Listening], *, settled: bool = False
) -> None:
    """Raise `ListensElsewhere` if nothing sets the port and all web instances listen on one other port; with `settled`,
    only if none of them is still busy starting."""
    webs = [instance.key for instance in release.instances if instance.is_web]
    silent = [listens[key] for key in webs if key in listens and key not in found]
    if release.port_from in {"image", "ports:set"} or len(silent) < len(webs):
        return
    ports = {each.only_other_port(int(release.port)) for each in silent}
    if len(ports) == 1 and 0 not in ports and (not settled or all(each.settled for each in silent)):
        raise ListensElsewhere(release, ports.pop())


def _where(check: Check, release: Release, found: Listening) -> list[str]:
    """Return where an instance listens whose check found a closed port, and what to do, as far as it is known."""
    explanation = explained(release, check.port or int(release.port), found)
    if explanation is None:
        return []
    where, what_to_do = explanation
    return [_sentence(where), f"app.json names port {check.port} for this check." if check.port else what_to_do]


def _answers(etcd: "Etcd", places: EtcdSettings, instance: Instance, checks: Sequence[Check], url: str) -> list[str]:
    """Return requests and answers of the last failed tries of these checks; without checks, those of the
    HEALTHCHECK."""
    place = places.checks_of(instance.release.app, instance.key)
    lines: list[str] = []
    for check in checks:
        number = instance.checks.index(check) + 1
        if answer := _answer(etcd.get(f"{place}{number}-answer")):
            what = f"command {shlex.join(check.command)}"
            lines += [answered(check, url, answer)] if check.path else ended(what, answer)
    if not checks and (answer := _answer(etcd.get(f"{place}0-answer"))):
        lines += ended("its HEALTHCHECK", answer)
    return [line for line in map(plain, lines) if line]


def _answer(entry: Entry | None) -> Answer | None:
    try:
        return msgspec.convert(entry.value, Answer) if entry else None
    except msgspec.ValidationError:  # somebody else wrote it
        return None


def _changes(
    etcd: "Etcd", prefixes: list[str], wait: Wait, starved: Callable[[], float], channel: Channel
) -> Iterator[Entry]:
    """Yield the changes until the timeout, plus the time without a processor, at most twice the timeout."""
    seen = wait.since
    for change in etcd.changes(prefixes, seen, min(wait.timeout, PATIENCE)):
        seen = change.revision
        yield change
    wait.why_not()
    if wait.timeout > PATIENCE:
        for change in etcd.changes(prefixes, seen, wait.timeout - PATIENCE):
            seen = change.revision
            yield change
    allowed = 0.0
    while (more := min(starved(), wait.timeout) - allowed) >= _LEAST_STARVED:
        allowed += more
        channel.detail(
            f"the machine is busy: the app got no processor for {allowed:.0f} s; nap waits {more:.0f} s longer"
        )
        for change in etcd.changes(prefixes, seen, more):
            seen = change.revision
            yield change


def _starved(etcd: "Etcd", places: EtcdSettings, instance: Instance) -> float:
    """Return the seconds that a starting instance has waited for a processor, as its machine last reported."""
    entry = etcd.get(f"{places.checks_of(instance.release.app, instance.key)}starved")
    try:
        return msgspec.convert(entry.value, _Starved).waited / 1e9 if entry else 0.0
    except msgspec.ValidationError:  # somebody else wrote it
        return 0.0


def _places_of(places: EtcdSettings, app: str) -> list[str]:
    """Return the prefixes of the keys that tell healthy instances."""
    return [places.announcements_of(app), places.up_of(app)]


def _announcement(entry: Entry) -> Announcement | None:
    """Return the announcement in an entry; None if the entry is not a valid one."""
    key = entry.key.rpartition("/")[2]
    try:
        value = msgspec.convert(entry.value, _Announced)
    except msgspec.ValidationError:
        return None
    return Announcement(key, value.host, value.port, value.ports) if INSTANCE.fullmatch(key) else None


def _warned(instance: Instance, entry: Entry) -> list[Check]:
    try:
        numbers = msgspec.convert(entry.value, _Warned).warned
    except msgspec.ValidationError:  # somebody else wrote it
        return []
    return [check for number in numbers if (check := _checked(instance, number))]


def _checked(instance: Instance, number: int) -> Check | None:
    """Return the check of the instance with this number; None for 0 or an unknown number."""
    return instance.checks[number - 1] if 0 < number <= len(instance.checks) else None


def _exit(entry: Entry) -> _Exit | None:
    try:
        return msgspec.convert(entry.value, _Exit)
    except msgspec.ValidationError:  # also where the entry was deleted
        return None


def _exited(instance: Instance, report: _Exit, found: Listening | None) -> InstanceFailed:
    release = instance.release
    error = plain(_decoded(report.error).replace("\n", " ").strip())
    words = _lines(report.output)
    name = f"{release.app} {release.name} {instance.label}"
    advice = ["Fix it, commit, and push again; running instances were not changed."]
    if check := _checked(instance, report.check):
        what = f"{name}: its check ({plain(check.shown(release.port))}) failed {check.tries}"
        if check.asks_port and found:
            advice = [*_where(check, release, found), *advice]
    elif error:
        what = f"{name} could not start: {error}" if report.status in _NOT_STARTED else f"{name}: {error}"
    else:
        before = f"it answered on port {release.port}" if instance.is_web else "it was up"
        what = f"{name} exited with status {report.status} before {before}"
        words = words or ["(it printed nothing)"]
    return InstanceFailed(what, words=words, advice=advice)


def _silent(instance: Instance, timeout: float, starved: float, found: Listening | None) -> Silent:
    busy = starved >= _LEAST_STARVED
    seconds = timeout + min(starved, timeout) if busy else timeout
    release = instance.release
    name = f"{release.app} {release.name} {instance.label}"
    explanation = explained(release, int(release.port), found) if found else None
    if release.port_from == "image" and (instance.checks or release.has_healthcheck):
        explanation = None  # they alone decide
    longer = "If it needs longer: git config nap.timeout SECONDS in its repository."
    if explanation:
        where, what_to_do = explanation
        what = f"{name} runs, but did not answer on port {release.port} within {seconds:.0f} s: {where}"
        advice = [what_to_do]
    elif instance.checks:
        what = f"{name} runs, but did not pass its checks within {seconds:.0f} s"
        advice = [
            "Its checks are in app.json (healthchecks); docs/processes.md lists the default checks.",
            longer,
        ]
    elif release.has_healthcheck:
        what = f"{name} runs, but its HEALTHCHECK did not pass within {seconds:.0f} s"
        advice = ["Check that the HEALTHCHECK command of the image succeeds when the app is ready.", longer]
    else:
        what = f"{name} runs, but did not answer on port {release.port} within {seconds:.0f} s"
        advice = [
            f"It must listen on 0.0.0.0 (not 127.0.0.1) and on port {release.port}, the value of PORT.",
            *_other_ports(release),
            longer,
        ]
    if busy:
        what += f", of which it got no processor for {starved:.0f} s"
        advice = [f"The machine is busy, or the CPU limit of the app is too low: resource:limit {release.app}", *advice]
    return Silent(instance, what, advice)


def _other_ports(release: Release) -> list[str]:
    """Return how to choose another port: one that the image exposes, or any."""
    others = [port.removesuffix("/tcp") for port in release.published[1:] if port.endswith("/tcp")]
    if not others:
        return [f"If it listens on another port: ports:set {release.app} PORT, or EXPOSE in the Dockerfile."]
    named = ", ".join(others)
    return [f"The image also exposes {named}: ports:set {release.app} {others[0]}, or ENV PORT in the Dockerfile."]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _lines(printed: bytes) -> list[str]:
    return [line for line in map(plain, _decoded(printed).split("\n")) if line]


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")
