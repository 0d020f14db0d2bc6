"""An ssh session at the gate: which commands it lets through.

git's own programs, on repositories whose access the user has, and nap's commands on the same terms; nothing else. A
push into a new name creates its app (`creation`). Because git ignores how post-receive ends, the deploy runs here, and
the pusher's git ends with its verdict; and because a push of what is already there runs no hook, it is the gate that
answers it.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from nap_receiver.auth.access import Access, access_of, require_right, require_same_repository
from nap_receiver.auth.keys import keys
from nap_receiver.core.bounded import bounded
from nap_receiver.core.channel import Channel, tell
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.deploy.creation import created
from nap_receiver.deploy.push_handler import answer_push, answer_what_is_there, usual_branch
from nap_receiver.frontends.gate import leave, needs_terminal
from nap_receiver.git.git import git
from nap_receiver.git.push import Push
from nap_receiver.git.receive_pack import Transfer, bounds_of
from nap_receiver.git.repository import (
    OBJECT_FORMATS,
    collect_garbage,
    create,
    discard_incoming,
    in_use,
    name_of,
    object_format_of,
    repository_at,
)
from nap_receiver.model.app import app_name

_GIT_READS = {"git-upload-pack", "git-upload-archive"}
_GIT_WRITES = "git-receive-pack"

_HOW = ("To deploy an app: git push ssh://…/APP master", "To list the commands: ssh HOST help")


def main() -> int:
    """Serve the session in this process, which sshd started: as `gate.main`."""
    keep_private()
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    if needs_terminal(asked):
        signal.signal(signal.SIGINT, leave)
    elif served_by := os.fork():
        signal.signal(signal.SIGINT, leave)
        status = os.waitstatus_to_exitcode(os.waitpid(served_by, 0)[1])
        return status if status >= 0 else tell_killed(-status)
    else:
        os.setsid()  # so that neither Ctrl-C nor the end of the connection reaches a deploy
    root, user = sys.argv[1:]
    return serve(state_at(root), user)


def serve(state: State, user: str) -> int:
    """Do what `SSH_ORIGINAL_COMMAND` asks, for `user`; ssh's exit status."""
    asked = os.environ.pop("SSH_ORIGINAL_COMMAND", "")
    _unshare_terminal()
    protocol = os.environ.pop("GIT_PROTOCOL", "")
    if re.fullmatch(r"version=\d", protocol):
        os.environ["GIT_PROTOCOL"] = protocol
    status = 1

    def story(channel: Channel) -> None:
        nonlocal status
        if user not in {key.user for key in keys(state)}:
            raise NapError(f"the key of {user} was removed", advice="Ask the operator to add it again: nap keys:add.")
        status = _let_through(asked, state, user, channel)

    return status if tell(2, story) else 1


def tell_killed(number: int) -> int:
    """Tell the user that this signal killed the process that served the session; the exit status."""
    with Channel(2) as channel:
        reason = f"the deploy was killed (signal {number}); running instances were not changed"
        channel.failure(NapError(reason, advice="Push again to deploy."))
    return 1


def _unshare_terminal() -> None:
    """Open the terminal again for standard error, so that the channel does not make the other descriptors
    non-blocking."""
    if os.isatty(2):
        opened = os.open(os.ttyname(2), os.O_RDWR | os.O_NOCTTY)
        os.dup2(opened, 2)
        os.close(opened)


def _let_through(asked: str, state: State, user: str, channel: Channel) -> int:
    try:
        words = shlex.split(asked)
    except ValueError as error:
        channel.failure(NapError(f"that command cannot be read: {str(error).lower()}", advice=_HOW))
        return 2  # as for what else is not understood
    if words[:1] == ["git"] and len(words) > 1:
        words[:2] = [f"git-{words[1]}"]
    if words and words[0] in {*_GIT_READS, _GIT_WRITES}:
        if os.isatty(0):
            raise NapError("git needs a connection without a terminal", advice="Leave out ssh's -t or RequestTTY.")
        if len(words) != 2:
            raise NapError(f"{words[0]} takes exactly one argument, a repository", advice=_HOW)
        repository = repository_at(words[1], state)
        app = app_name(repository, state, {})
        if words[0] in _GIT_READS:
            return _send(words[0], app, repository, state, user)
        return _receive(app, repository, state, user, channel)
    if not words:
        raise NapError(
            f"Hello {user}. This is nap: it takes git pushes and nap's commands, and has no shell", advice=_HOW
        )
    from nap_receiver.frontends.cli import over_ssh  # what git does not need

    return over_ssh(words, state, user)


def _send(program: str, app: str, repository: Path, state: State, user: str) -> int:
    """Let `user` fetch."""
    require_right(app, access_of(app, state), user, "read")
    if not repository.is_dir():
        raise NapError(f"{app} has no repository on this host", advice="A `git push` to it creates it.")
    usual_branch(repository, state)  # HEAD may be of before, or the operator have chosen another branch
    environment = _environment(state)
    words = git(program.removeprefix("git-"), str(repository))
    memory = bounds_of(repository, environment).memory
    return abs(subprocess.run(bounded(words, memory=memory), env=environment, check=False).returncode)


def _receive(app: str, repository: Path, state: State, user: str, channel: Channel) -> int:
    """Let `user` push, and answer the push; return the exit status."""
    access = access_of(app, state)
    name = name_of(repository, state)
    if access is None:
        with created(app, Access(name, {user: "owner"}), repository, state, user) as access:
            require_right(app, access, user, "push")  # somebody else may have created it just now
            return _push(app, repository, state, user, channel)
    require_right(app, require_same_repository(app, access, name), user, "push")
    create(repository)
    return _push(app, repository, state, user, channel)


def _push(app: str, repository: Path, state: State, user: str, channel: Channel) -> int:
    environment = _environment(state)
    with in_use(repository):
        transfer = Transfer(repository, environment)
        received = transfer.received()
        failures: list[str] = []
        if received:
            push = Push(app, repository, received.updates, user, received.options)
            tell(transfer.descriptor, lambda channel: answer_push(push, state, channel), failures.append)
        status = transfer.end("".join(failures))
    if transfer.was_ended:
        discard_incoming(repository)
    if received:
        collect_garbage(repository, environment, bounds_of(repository, environment).memory)
        return status or int(bool(failures))
    if status == 0 and transfer.was_empty:
        answer_what_is_there(app, repository, user, state, channel)
        return 0
    if transfer.was_broken_off:
        raise _other_objects(app, repository)
    return status or 1


def _other_objects(app: str, repository: Path) -> NapError:
    """Return the error for a push that git ended before it sent anything: git's own message is not clear.

    A push begins with the refs of the repository, so the pusher's object format is not known before.
    """
    ours = object_format_of(repository)
    (other,) = {*OBJECT_FORMATS} - {ours}
    return NapError(
        f"git ended before it sent anything: {app} has {ours} objects; your repository may have {other} objects "
        "(git rev-parse --show-object-format)",
        advice=f"To create an app for them: apps:create NAME --object-format {other}",
    )


def _environment(state: State) -> dict[str, str]:
    """Return the environment for git and its hook."""
    ours = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TZ", "GIT_PROTOCOL"}}
    return ours | {"GIT_CONFIG_SYSTEM": str(state.git_configuration)}
