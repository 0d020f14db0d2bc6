"""`releases` and `rollback`."""

import time
from collections.abc import Iterator

import click
import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import (
    Caller,
    app_argument,
    change_app,
    command,
    json_option,
    records_of,
    release_number,
    show_listing,
)
from nap_receiver.model.release import EVERY, Outcome, Release

_REASON_CHARACTERS = 60


@command("releases", right="read")
@app_argument
@json_option
def list_releases(caller: Caller, app: str, as_json: bool) -> None:
    """List the releases of APP, newest first, with the reason of each failure."""
    records = records_of(caller, app)
    current, history = records.current(), records.history()
    rows = []
    for each, outcome in reversed(history):
        reason = outcome.reason if outcome else ""
        if not as_json:
            reason = _in_short(reason, each)
        rows.append((each.name, _standing(each, outcome, current), each.why, each.by, _when(each.at), reason))
    show_listing(rows, "release", "state", "why", "by", "at", "reason", as_json=as_json)


@command("releases:info", right="read")
@app_argument
@click.argument("release", required=False, callback=release_number)
@json_option
def show_release(caller: Caller, app: str, release: int | None, as_json: bool) -> None:
    """Show the details of RELEASE (v3). Default: the current release."""
    records = records_of(caller, app)
    current, history = records.current(), records.history()
    number = release or (current.number if current else 0)
    found = [(each, outcome) for each, outcome in history if each.number == number]
    if not found:
        which = f"release v{release}" if release else "current release"
        raise NapError(f"{app} has no {which}", advice=f"To list the releases: releases {app}")
    each, outcome = found[0]
    facts = {
        "release": each.name,
        "state": _standing(each, outcome, current),
        "reason": outcome.reason if outcome else "",
        "why": each.why,
        "by": each.by,
        "at": _when(each.at),
        "commit": each.commit,
        "image": each.image,
        "processes": " ".join(f"{process}={n}" for process, n in each.formation.items()),
        "stopped": "yes" if each.stopped else "",
        "protocol": each.protocol,
        "limits": ", ".join(_limits(each)),
        "variables": ", ".join(records.configuration(each.config)),
    }
    if as_json:
        click.echo(msgspec.json.encode(facts).decode())
        return
    width = max(map(len, facts))
    for name, fact in facts.items():
        if fact:
            click.echo(f"{name:{width}}  {fact}")


@command("rollback", right="push")
@app_argument
@click.argument("release", required=False, callback=release_number)
def roll_back(caller: Caller, app: str, release: int | None) -> None:
    """Deploy the code and variables of RELEASE (v3) again, as a new release. Default: undo the last change."""
    from nap_receiver.deploy import operations

    change_app(caller, app, lambda target: operations.rollback(target, release))


def _standing(release: Release, outcome: Outcome | None, current: Release | None) -> str:
    if current and release.number == current.number:
        return "current"
    return outcome.state if outcome else "unfinished"


def _in_short(reason: str, release: Release) -> str:
    """The reason of a failure without what else its row says, cut to fit there; `releases:info` has all of it."""
    from textwrap import shorten

    named = reason.removeprefix(f"{release.app} {release.name} ").removeprefix(f"{release.app}: ")
    return shorten(named, _REASON_CHARACTERS, placeholder="…")


def _limits(release: Release) -> Iterator[str]:
    """What an instance of each process type may use that has a limit: `web memory=512m cpu=0.5`."""
    from nap_receiver.frontends.commands.resource import shown

    for process in release.formation | release.limits:
        memory, cpu = shown(release.limits_of(process))
        parts = [*([f"memory={memory}"] if memory else []), *([f"cpu={cpu}"] if cpu else [])]
        if parts and process != EVERY:
            yield " ".join([process, *parts])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
