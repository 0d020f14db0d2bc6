"""`run`: one-off commands."""

import os
import sys

import click

from nap_receiver.frontends.commands.table import Caller, app_argument, command, guests, nap, records_of


@command("run", right="push")
@app_argument
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND...")
def run_once(caller: Caller, app: str, words: tuple[str, ...]) -> None:
    """Run COMMAND in a new container of the current release of APP: run shop ls -la.

    COMMAND can be a process type of the Procfile. The exit status is that of the command.
    """
    from nap_receiver.core.settings import load
    from nap_receiver.deploy.one_off import OneOff, run_attended
    from nap_receiver.model.command import in_shell
    from nap_receiver.model.release import never_deployed

    if words[:1] == ("--",):
        words = words[1:]
    if not words:
        raise click.UsageError(f"Give a command, such as: run {app} ls -la")
    records = records_of(caller, app)
    current = records.current()
    if current is None:
        raise never_deployed(app)
    named = in_shell(current.commands.get(words[0], "")) if len(words) == 1 else []
    variables, settings = records.configuration(current.config), load(caller.state).settings
    one_off = OneOff(current, f"run.{os.getpid()}", named or words, variables, caller.state, settings)
    hint = "" if caller.is_operator else f"No terminal. For a shell or a prompt: ssh -t HOST run {app} …"
    sys.exit(run_attended(one_off, hint))


for group in (nap, guests):
    group.commands["run"].allow_interspersed_args = False  # options after the app are the command's
