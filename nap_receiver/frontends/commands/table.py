"""The table of all commands: on nap's host, and over ssh for commands with a right.

A command is a function of its caller. The modules beside this one add theirs when they are imported, and a module is
imported when a command of its name is called: `ps` has `ps:scale`.
"""

import copy
import getpass
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nap_receiver.auth.access import Access, access_of, no_such, require_right
from nap_receiver.auth.privileges import become_owner
from nap_receiver.core.channel import tell
from nap_receiver.core.paths import State, default_root, state_at
from nap_receiver.frontends import commands
from nap_receiver.git.repository import repository_called
from nap_receiver.model.app import checked_app_name

if TYPE_CHECKING:
    from nap_receiver.deploy.rollout import App
    from nap_receiver.model.release import Release
    from nap_receiver.store.ledger import Records


@dataclass(frozen=True)
class Caller:
    """Who calls a command, and on which nap: on its machine the operator, over ssh a user with a key."""

    state: State
    user: str
    root: str | None = None
    """The state directory, where it was named."""
    is_operator: bool = True

    @property
    def again(self) -> str:
        """The option to add to another command so that it uses the same nap."""
        return f" --state {self.root}" if self.root else ""


ANYBODY = "anybody"
"""The right that everybody has whom the gate lets in."""


def import_commands(module: str | None = None) -> None:
    """Import the commands of this module, if it exists; without a name, all commands."""
    for each in sorted(path.stem for path in Path(__file__).parent.glob("*.py")):
        if module in {each, None}:
            importlib.import_module(f"{commands.__name__}.{each}")


class _Group(click.Group):
    """A group of commands that are imported when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        import_commands()
        return super().list_commands(context)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        import_commands(name.partition(":")[0])
        if name not in self.commands:
            import_commands()
        return super().get_command(context, name)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nap", message="nap %(version)s")
def nap() -> None:
    """Deploy apps with git push."""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, add_help_option=False)
def guests() -> None:
    """Commands over ssh. git push, git fetch and git archive work too."""


def command(name: str, right: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; with a right, users who have that right to APP may call it over ssh."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def called(root: str | None = None, **words: Any) -> None:
            caller = click.get_current_context().obj
            if caller is None:
                caller = Caller(state_at(root), os.environ.get("NAP_USER") or getpass.getuser(), root)
                become_owner(caller.state)
            elif right is None:
                raise click.UsageError(f"{name} is not a command over ssh")
            elif right != ANYBODY:
                require_right(words["app"], access_of(words["app"], caller.state), caller.user, right)
            function(caller, **words)

        called.__doc__ = function.__doc__
        called.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        made = click.command(name, short_help=_first_sentence(function))(called)
        if right:
            guest = copy.copy(made)
            guest.params = list(made.params)
            guests.add_command(guest)
        about = f"State directory. Default: NAP_STATE, else {default_root()}"
        made.params.append(click.Option(["--state", "root"], metavar="DIR", help=about))
        nap.add_command(made)
        return function

    return register


def _first_sentence(function: Callable[..., None]) -> str:
    """Return the description in the list of commands; click would cut it at the line end."""
    first, end, _ = " ".join((function.__doc__ or "").split()).partition(". ")
    return first + end.rstrip()


def _app(context: click.Context, parameter: click.Parameter, value: str) -> str:
    return checked_app_name(value)


app_argument = click.argument("app", callback=_app)


def require_app(caller: Caller, app: str) -> Access:
    """Return the access to an app. Raises `NapError` if the app does not exist."""
    access = access_of(app, caller.state)
    if access is None:
        raise no_such(app)
    return access


def change_app(caller: Caller, name: str, change: "Callable[[App], None]") -> None:
    """Change an app, with output on standard output; exit status 1 if it fails.

    Raises `NapError` if the app does not exist.
    """
    from nap_receiver.core.settings import load
    from nap_receiver.deploy.rollout import App  # a quarter of a second of libraries

    repository, state = repository_called(require_app(caller, name).repository, caller.state), caller.state
    if not tell(1, lambda channel: change(App(name, repository, caller.user, state, load(state).settings, channel))):
        sys.exit(1)


def records_of(caller: Caller, app: str) -> "Records":
    """Return the releases of an existing app, and its healthy instances, at one moment."""
    if caller.is_operator:  # of another one's right it is known that there is such an app
        require_app(caller, app)
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcdctl import Kept
    from nap_receiver.store.ledger import Records

    places = load(caller.state).settings.etcd
    root = places.root_of(app)
    first = tuple(f"{root}/{what}" for what in ("config", "formation", "limits", "port", "protocol"))
    ledger = (f"{root}/current", *first, f"{root}/releases/", f"{root}/outcomes/")
    return Records(Kept(caller.state, [*ledger, places.announcements_of(app), places.up_of(app)]), places, app)


def at_rest(release: "Release", process: str = "") -> tuple[str, str] | None:
    """Return why nothing of a release, or of this process type, runs, and how to start it, one sentence each."""
    rest = release.at_rest(process)
    if rest is None:
        return None
    why, how = rest
    if release.stopped:
        return f"{release.app} is {why}", f"To start it again: {how}"
    return f"{release.app} has no {process or 'instance'}: it is {why}", f"To start one: {how}"


def release_number(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a release number: `v3` or `3`."""
    if value is None:
        return None
    if not re.fullmatch(r"v?[0-9]{1,8}", value):
        raise click.UsageError(f"expected a release such as v3, got {value[:40]!a}")
    return int(value.removeprefix("v"))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of objects, one a line.")


def show_listing(rows: Iterable[Sequence[object]], *headers: str, as_json: bool = False) -> None:
    """Print rows below their headers, aligned; as JSON, a list of objects with the headers as names."""
    if as_json:
        import json

        lines = [json.dumps(dict(zip(headers, row, strict=True)), ensure_ascii=False) for row in rows]
        click.echo("[" + ",\n".join(lines) + "]")
        return
    from tabulate import tabulate  # a thirtieth of a second that most commands have no need of

    click.echo(tabulate(rows, headers=headers, disable_numparse=True))
