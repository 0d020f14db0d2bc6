"""Which releases of an app keep their images, so that `rollback` can use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from nap_receiver.core.errors import NapError
from nap_receiver.model.release import Outcome, Release


@dataclass(frozen=True)
class Sorted:
    """The releases of an app, sorted by whether their images stay."""

    images: frozenset[str]
    """The images that stay."""
    going: list[Release]
    """Releases whose images need not, the oldest first."""
    spared: list[Release]
    """Releases that are as old, but whose images stay for now."""


def sort_out(history: Sequence[tuple[Release, Outcome | None]], keep: int, running: Sequence[str] = ()) -> Sorted:
    """Choose the images that stay: those of the last `keep` releases that were live and of all releases between them;
    those of `running` units or of units that may start; and that of the target of a rollback, unless `keep` is 1."""
    live = live_among(history)
    since = live[-keep:][0].number if live else 0
    needed = {int(unit.split(".")[1].removeprefix("v")) for unit in running}
    if live and keep > 1:
        needed |= {release.number for release in _for_a_rollback(live, keep)}
    old = [(release, outcome) for release, outcome in history if release.number < since]
    spared = [release for release, outcome in old if outcome is None or release.number in needed]
    images = frozenset(r.image for r, _ in history if r.number >= since) | {release.image for release in spared}
    return Sorted(images, [release for release, _ in old if release not in spared], spared)


def out_of_ledger(
    history: Sequence[tuple[Release, Outcome | None]], most: int, keep: int, running: Sequence[str] = ()
) -> list[Release]:
    """Return the releases whose records can be removed if `most` may stay, oldest first.

    The last `most` stay, and whatever `sort_out` keeps because it was live, runs, or is what a rollback goes back to.
    """
    found, live = sort_out(history, keep, running), live_among(history)
    staying = {each.number for each in (*found.spared, *live[-keep:])}
    staying |= {release.number for release, _ in history[max(0, len(history) - most) :]}
    return [release for release, _ in history if release.number not in staying]


def live_among(history: Sequence[tuple[Release, Outcome | None]]) -> list[Release]:
    """Return the releases that are or were live, oldest first."""
    return [release for release, outcome in history if outcome and outcome.state == "live"]


def before(live: Sequence[Release]) -> Release | None:
    """Return the target of a rollback of the last of these releases: the latest one with other code or configuration.

    One that is itself a rollback counts as the one that it is again: two rollbacks go back twice, not there and back.
    """
    current = live[-1]
    place = current.rollback_to or current.number
    earlier = [each for each in live if each.number < place and not each.is_same_as(current)]
    return earlier[-1] if earlier else None


def _for_a_rollback(live: Sequence[Release], keep: int) -> list[Release]:
    """Return the releases that a rollback needs, however often the app was scaled or restarted since.

    The latter only where it was still kept when the app went back: what has gone does not come again.
    """
    current, further = live[-1], before(live)
    others = [each for each in live if not each.is_same_as(current)]
    since = takewhile(lambda each: each.is_same_as(current) and each.rollback_to == current.rollback_to, reversed(live))
    then = live[: len(live) - len(list(since))]
    return [*others[-1:], *(each for each in then[-keep:] if each is further)]


def require_kept(release: Release, history: Sequence[tuple[Release, Outcome | None]], keep: int) -> None:
    """Raise `NapError` if the image of the release is not kept."""
    if release.image not in sort_out(history, keep).images:
        raise NapError(
            f"{release.app} {release.name} is too old to go back to: the images of the last {keep} releases are kept",
            advice=f"Push its commit {release.commit[:7]} again, or go back to a later one: releases {release.app}",
        )
