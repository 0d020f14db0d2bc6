"""Which of an app's releases keep their images, and can be gone back to."""

from collections.abc import Sequence
from dataclasses import dataclass

from nap_receiver.errors import NapError
from nap_receiver.release import Outcome, Release


@dataclass(frozen=True)
class Sorted:
    """An app's releases, sorted by whether their images stay."""

    images: frozenset[str]
    """The images that stay."""
    going: list[Release]
    """Releases whose images need not, the oldest first."""
    spared: list[Release]
    """Releases that are as old, but whose images stay for now."""


def sort_out(history: Sequence[tuple[Release, Outcome | None]], keep: int, running: Sequence[str] = ()) -> Sorted:
    """Which images stay: those of the last `keep` releases that were live and of what came between them, of what runs
    or may be about to (`running` are units), and the one that a rollback goes back to, unless `keep` is 1."""
    live = [release for release, outcome in history if outcome and outcome.state == "live"]
    since = live[-keep:][0].number if live else 0
    before = [release.number for release in live if release.image != live[-1].image][-1:] if keep > 1 else []
    needed = {int(unit.split(".")[1].removeprefix("v")) for unit in running} | set(before)
    old = [(release, outcome) for release, outcome in history if release.number < since]
    spared = [release for release, outcome in old if outcome is None or release.number in needed]
    images = frozenset(r.image for r, _ in history if r.number >= since) | {release.image for release in spared}
    return Sorted(images, [release for release, _ in old if release not in spared], spared)


def require_kept(release: Release, history: Sequence[tuple[Release, Outcome | None]], keep: int) -> None:
    """Raise `NapError` where the release's image is not among those that stay."""
    if release.image not in sort_out(history, keep).images:
        raise NapError(
            f"{release.app} {release.name} is too old to go back to: the images of the last {keep} releases are kept",
            advice=f"Push its commit {release.commit[:7]} again, or go back to a later one: releases {release.app}",
        )
