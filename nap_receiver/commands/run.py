"""One-off commands."""

import os
import sys

import click

from nap_receiver.commands.table import Caller, app_argument, command, guests, nap, records_of
from nap_receiver.errors import NapError


@command("run", right="push")
@app_argument
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND...")
def run_once(caller: Caller, app: str, words: tuple[str, ...]) -> None:
    """Run COMMAND in a container of its own, of the release of APP that serves: run shop ls -la.

    Instead of COMMAND, a process type of the Procfile stands for what it says there. The exit status is the command's.
    """
    from nap_receiver.one_off import OneOff, run_attended
    from nap_receiver.release import in_shell
    from nap_receiver.settings import load

    if words[:1] == ("--",):
        words = words[1:]
    if not words:
        raise click.UsageError(f"What is to run is missing, such as: run {app} ls -la")
    current = records_of(caller, app).current()
    if current is None:
        raise NapError(f"{app} was never deployed", advice="Push it first: git push nap master")
    named = in_shell(current.commands.get(words[0], "")) if len(words) == 1 else []
    one_off = OneOff(current, f"run.{os.getpid()}", named or words, caller.state, load(caller.state).settings)
    sys.exit(run_attended(one_off))


for group in (nap, guests):
    group.commands["run"].allow_interspersed_args = False  # options after the app are the command's
