"""The `nap` commands: one table of them, for nap's host and, those that say which right they need, over ssh.

A command is a function of its caller. To add one is to write it here.
"""

import copy
import getpass
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from nap_receiver.access import RIGHTS, access_of, require_right
from nap_receiver.account import become_owner
from nap_receiver.app import checked_app_name
from nap_receiver.build_log import builds, follow, is_over, log_of
from nap_receiver.channel import Channel, plain, tell
from nap_receiver.errors import NapError
from nap_receiver.repository import name_of, repository_called, repository_of
from nap_receiver.state import State, default_root, state_at

if TYPE_CHECKING:
    from nap_receiver.machine import Standing

_MOST_INSTANCES = 100
_PROCESS_TYPE = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_LONGEST_COMPLAINT = 300
_CANCEL_SECONDS = 60.0


@dataclass(frozen=True)
class Caller:
    """Who calls a command, and of which nap: on its host anyone who can, over ssh a user with a key."""

    state: State
    user: str
    root: str | None = None
    """The state directory, where it was named."""

    @property
    def again(self) -> str:
        """What to add to another command, so that it means the same nap."""
        return f" --state {self.root}" if self.root else ""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def nap() -> None:
    """git push to a running, announced app."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, add_help_option=False)
def guests() -> None:
    """What nap does for you: besides git push, git fetch and git archive, these commands."""


def command(name: str, right: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of this name; with a right, one that users who have it for the APP may call over ssh."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def called(root: str | None = None, **words: Any) -> None:
            caller = click.get_current_context().obj
            if caller is None:
                caller = Caller(state_at(root), os.environ.get("NAP_USER") or getpass.getuser(), root)
                become_owner(caller.state)
            elif right:
                require_right(words["app"], access_of(words["app"], caller.state), caller.user, right)
            function(caller, **words)

        called.__doc__ = function.__doc__
        called.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        made = click.command(name)(called)
        if right:
            guest = copy.copy(made)
            guest.params = list(made.params)
            guests.add_command(guest)
        about = f"The state directory. [NAP_STATE, else {default_root()}]"
        made.params.append(click.Option(["--state", "root"], metavar="DIR", help=about))
        nap.add_command(made)
        return function

    return register


def _app(context: click.Context, parameter: click.Parameter, value: str) -> str:
    return checked_app_name(value)


app_argument = click.argument("app", callback=_app)


def over_ssh(words: list[str], state: State, user: str) -> int:
    """Call a command for `user`; ssh's exit status: 2 for one that is not understood. Raises `NapError`."""
    if words[0] in {"help", "--help", "-h"}:
        words = [*words[1:2], "--help"] if len(words) > 1 else []
        if not words:
            click.echo(guests.get_help(click.Context(guests, info_name="ssh HOST")))
            return 0
    try:
        return int(guests.main(words, "ssh HOST", standalone_mode=False, obj=Caller(state, user)) or 0)
    except click.UsageError as error:
        complaint = plain(error.format_message().replace("\n", " "))
        click.echo(f" !     {complaint[:_LONGEST_COMPLAINT]}", err=True)
        click.echo(" !     What there is: ssh HOST help", err=True)
        return 2


def main() -> None:
    """Run the command; a failure is told in a few lines on standard error, with exit status 1."""
    try:
        nap(prog_name="nap")
    except NapError as error:
        for line in error.words:
            click.echo(f"       {line}", err=True)
        for line in (str(error), *error.advice):
            click.echo(f" !     {line}", err=True)
        sys.exit(1)


@command("up")
def up(caller: Caller) -> None:
    """Start the single-machine nap and wait until all of it answers."""
    from nap_receiver import keys, machine

    settings = machine.up(caller.state)
    click.echo(_standings(machine.status(caller.state)))
    click.echo(f"\nnap is up. Its state is in {caller.state.root}")
    if not keys.keys(caller.state):
        click.echo(f"Let someone in:   nap keys:add YOU < ~/.ssh/id_ed25519.pub{caller.again}")
    click.echo(f"In your app:      git remote add nap {machine.remote_url(settings, 'APP')}")
    click.echo("                  git push nap master")


@command("down")
def down(caller: Caller) -> None:
    """Stop the single-machine nap and the apps it runs; `nap up` brings them back."""
    from nap_receiver import machine

    click.echo("nap is down." if machine.down(caller.state) else "nap was not up.")


@command("status")
def status(caller: Caller) -> None:
    """Show nap's programs; exit status 1 unless all of them answer."""
    from nap_receiver import machine

    standings = machine.status(caller.state)
    if not standings:
        raise NapError("nap is down", advice=f"Start it: nap up{caller.again}")
    click.echo(_standings(standings))
    if not all(standing.answers for standing in standings):
        sys.exit(1)


@command("settings")
def settings(caller: Caller) -> None:
    """Show the settings in force, and where each value came from."""
    from nap_receiver.settings import fields, load

    loaded = load(caller.state)
    rows = [(field.key, loaded.value(field) or '""', loaded.sources[field.key]) for field in fields()]
    click.echo(_table(rows, "setting", "value", "from"))


@command("keys")
def list_keys(caller: Caller) -> None:
    """List who may come in, by key."""
    from nap_receiver import keys

    click.echo(_table([(key.user, key.fingerprint) for key in keys.keys(caller.state)], "user", "key"))


@command("keys:add")
@click.argument("user")
def add_key(caller: Caller, user: str) -> None:
    """Let USER in with the public key on standard input."""
    from nap_receiver import keys

    text = sys.stdin.buffer.read(keys.LONGEST_BYTES + 1).decode("utf-8", "replace")
    key = keys.add_key(caller.state, user, text)
    click.echo(f"{user} may come in with {key.fingerprint}")


@command("keys:remove")
@click.argument("user")
@click.argument("fingerprint", required=False)
def remove_key(caller: Caller, user: str, fingerprint: str | None) -> None:
    """Let USER in no longer, or not with the key of this FINGERPRINT."""
    from nap_receiver import keys

    click.echo(f"{user}: {keys.remove_keys(caller.state, user, fingerprint)} removed")


@command("access", right="read")
@app_argument
def list_access(caller: Caller, app: str) -> None:
    """List who may do what with APP."""
    access = access_of(app, caller.state)
    if access is None:
        raise _no_such(app)
    click.echo(_table(access.users.items(), "user", "right"))


@command("access:add", right="owner")
@app_argument
@click.argument("user")
@click.argument("right", type=click.Choice(RIGHTS), default="push")
def add_access(caller: Caller, app: str, user: str, right: str) -> None:
    """Let USER read, push to, or own APP. Who may push may also read; an owner may both, and say who else may."""
    _set_right(caller, app, user, right)
    click.echo(f"{user} has the right to {app}: {right}")


@command("access:remove", right="owner")
@app_argument
@click.argument("user")
def remove_access(caller: Caller, app: str, user: str) -> None:
    """Let USER do nothing with APP any more."""
    _set_right(caller, app, user, None)
    click.echo(f"{user} has no right to {app} any more")


@command("builds", right="read")
@app_argument
def list_builds(caller: Caller, app: str) -> None:
    """List the builds of APP whose log is on this host, the oldest first."""
    rows = [
        (name, "over" if is_over(log_of(caller.state, app, name)) else "goes on") for name in builds(caller.state, app)
    ]
    click.echo(_table(rows, "build", "state"))


@command("builds:output", right="read")
@app_argument
@click.argument("build", required=False)
@click.option("-t", "--tail", is_flag=True, help="Stay until the build has ended.")
def show_build(caller: Caller, app: str, build: str | None, tail: bool) -> None:
    """Show all that BUILD said, from its start; the last build unless one is named."""
    log = log_of(caller.state, app, build)
    with suppress(BrokenPipeError):  # whoever reads it has seen enough
        if not tail:
            click.echo(log.read_text(encoding="utf-8", errors="replace"), nl=False)
            return
        with follow(log) as lines:
            for line in lines:
                click.echo(line)


@command("builds:cancel", right="push")
@app_argument
def cancel_build(caller: Caller, app: str) -> None:
    """Stop the deploy of APP that goes on; what ran before still runs."""
    from nap_receiver.etcd import connect
    from nap_receiver.lock import cancel
    from nap_receiver.release import Ledger
    from nap_receiver.settings import load

    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        ledger = Ledger(etcd, places, app)
        before = ledger.current()
        stopped = cancel(etcd, ledger.root, caller.user, _CANCEL_SECONDS)
        now = ledger.current()
    if stopped is None:
        raise NapError(f"nothing is being deployed to {app}", advice=f"What was: builds {app}")
    if now and now != before:
        raise NapError(f"{app} {now.name} was live before it could be cancelled")
    click.echo(f"{app}: cancelled {stopped.who}'s deploy of {stopped.what}")


@command("ps:scale", right="push")
@app_argument
@click.argument("counts", nargs=-1, required=True, metavar="PROCESS=COUNT...")
def scale_processes(caller: Caller, app: str, counts: tuple[str, ...]) -> None:
    """Run COUNT instances of each PROCESS of APP: ps:scale shop web=3"""
    formation = _formation(counts)
    access = access_of(app, caller.state)
    if access is None:
        raise _no_such(app)
    repository = repository_called(access.repository, caller.state)

    def story(channel: Channel) -> None:
        from nap_receiver.receiver import scale  # half a second of libraries
        from nap_receiver.settings import load

        scale(app, repository, formation, caller.user, caller.state, load(caller.state).settings, channel)

    if not tell(1, story):
        sys.exit(1)


@command("gitolite:install")
def install_in_gitolite(caller: Caller) -> None:
    """Have the gitolite of this account deploy what gitolite.conf tells it to."""
    from nap_receiver import gitolite

    for line in gitolite.install(caller.state) or ["All of it was there already."]:
        click.echo(line)
    click.echo(f"\nTo have a repository deploy, say so in its part of gitolite.conf:\n\n{gitolite.CONF}")
    _show_troubles(caller.state)


@command("gitolite:uninstall")
def uninstall_from_gitolite(caller: Caller) -> None:
    """Take nap out of the gitolite of this account; apps run on."""
    from nap_receiver import gitolite

    for line in gitolite.uninstall() or ["Nothing of nap's was there."]:
        click.echo(line)
    _show_troubles(caller.state)


def _show_troubles(state: State) -> None:
    from nap_receiver import gitolite

    for line in gitolite.troubles(state):
        click.echo(f" !     {line}", err=True)


def _set_right(caller: Caller, app: str, user: str, right: str | None) -> None:
    from nap_receiver.access import Access, claim, set_right
    from nap_receiver.etcd import connect
    from nap_receiver.keys import checked_user
    from nap_receiver.settings import load

    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        root = places.root_of(app)
        if right and (repository := repository_of(app, caller.state)):
            claim(etcd, root, Access(name_of(repository, caller.state)))  # where nobody has; over ssh, somebody does
        set_right(etcd, root, checked_user(user), right)


def _no_such(app: str) -> NapError:
    return NapError(f"there is no app {app} here", advice="A first `git push` creates it.")


def _formation(counts: tuple[str, ...]) -> dict[str, int]:
    formation = {}
    for count in counts:
        process, _, number = count.partition("=")
        fits = _PROCESS_TYPE.fullmatch(process) and re.fullmatch("[0-9]{1,9}", number)
        if not fits or not 1 <= int(number) <= _MOST_INSTANCES:
            raise NapError(f'expected PROCESS=COUNT with a count from 1 to {_MOST_INSTANCES}, got "{count[:80]}"')
        formation[process] = int(number)
    return formation


def _standings(standings: "list[Standing]") -> str:
    rows = [(s.program, s.state, "yes" if s.answers else "no", s.pid or "", s.address) for s in standings]
    return _table(rows, "program", "state", "answers", "process", "address")


def _table(rows: Iterable[Sequence[object]], *headers: str) -> str:
    from tabulate import tabulate  # a thirtieth of a second that most commands have no need of

    return str(tabulate(rows, headers=headers, disable_numparse=True))
