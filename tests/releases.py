"""Releases, and histories of releases written in short."""

from typing import Any

from nap_receiver.model.release import Outcome, Release

RELEASE = Release(
    app="team-shop",
    number=3,
    commit="1a2b3c4d" * 5,
    image=f"10.0.0.1:5000/team-shop@sha256:{'ab' * 32}",
    ports=["8080/tcp", "9090/tcp"],
    has_healthcheck=False,
    formation={"web": 1},
    by="ann",
    at=0,
    why="push",
)

LIVE, FAILED = Outcome("live"), Outcome("failed", "why")


def history(*releases: tuple[str, Outcome | None]) -> list[tuple[Release, Outcome | None]]:
    """Releases of these images; `a+1` is image a with configuration 1, `a<2` the same as v2 again."""
    return [(_release(number, text), outcome) for number, (text, outcome) in enumerate(releases, 1)]


def _release(number: int, text: str) -> Release:
    about: dict[str, Any] = {"app": "x", "commit": "", "ports": [], "has_healthcheck": False, "formation": {"web": 1}}
    what, _, again = text.partition("<")
    image, _, config = what.partition("+")
    return Release(
        image=image, number=number, by="", why="", config=int(config or 0), rollback_to=int(again or 0), **about
    )


def live(words: str) -> list[tuple[Release, Outcome | None]]:
    """The same, each of which was live."""
    return history(*((text, LIVE) for text in words.split()))
