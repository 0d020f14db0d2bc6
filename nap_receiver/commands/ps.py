"""The processes of an app."""

import re
import sys

import click

from nap_receiver.access import access_of
from nap_receiver.channel import Channel, tell
from nap_receiver.commands.table import Caller, app_argument, command, no_such
from nap_receiver.errors import NapError
from nap_receiver.repository import repository_called

_MOST_INSTANCES = 100
_PROCESS_TYPE = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@command("ps:scale", right="push")
@app_argument
@click.argument("counts", nargs=-1, required=True, metavar="PROCESS=COUNT...")
def scale_processes(caller: Caller, app: str, counts: tuple[str, ...]) -> None:
    """Run COUNT instances of each PROCESS of APP: ps:scale shop web=3"""
    formation = _formation(counts)
    access = access_of(app, caller.state)
    if access is None:
        raise no_such(app)
    repository = repository_called(access.repository, caller.state)

    def story(channel: Channel) -> None:
        from nap_receiver.receiver import scale  # half a second of libraries
        from nap_receiver.settings import load

        scale(app, repository, formation, caller.user, caller.state, load(caller.state).settings, channel)

    if not tell(1, story):
        sys.exit(1)


def _formation(counts: tuple[str, ...]) -> dict[str, int]:
    formation = {}
    for count in counts:
        process, _, number = count.partition("=")
        fits = _PROCESS_TYPE.fullmatch(process) and re.fullmatch("[0-9]{1,9}", number)
        if not fits or not 1 <= int(number) <= _MOST_INSTANCES:
            raise NapError(f'expected PROCESS=COUNT with a count from 1 to {_MOST_INSTANCES}, got "{count[:80]}"')
        formation[process] = int(number)
    return formation
