"""git's post-receive hook: reads the updates from stdin, and prints to the pusher on stdout (githooks(5))."""

import getpass
import os
import sys
from pathlib import Path
from typing import NoReturn

from nap_receiver.auth.privileges import require_owner
from nap_receiver.core.channel import Channel, tell
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import run
from nap_receiver.deploy.push_handler import answer_push
from nap_receiver.git.push import Push, read_push_options, read_updates, repository_settings
from nap_receiver.model.app import app_name

RECEIVED_BY_ANOTHER = "Nothing was deployed. That account must receive the push; or push to nap's own gate."


def main() -> int:
    """Deploy the push. Returns 0 on success or if nothing deploys; git itself ignores it."""
    keep_private()
    repository = Path(os.environ.get("GIT_DIR", ".")).resolve()
    updates, options = read_updates(sys.stdin.buffer), read_push_options(os.environ)
    verdict = Path(os.environ.get("NAP_VERDICT", os.devnull))
    verdict.write_text("deploying", encoding="ascii")

    def story(channel: Channel) -> None:
        state = state_of(repository)
        require_owner(state, RECEIVED_BY_ANOTHER)
        app = app_name(repository, state, os.environ)
        answer_push(Push(app, repository, updates, pusher(), options), state, channel)

    good = tell(1, story)
    verdict.write_text("good" if good else "failed", encoding="ascii")
    return 0 if good else 1


def state_of(repository: Path) -> State:
    """Return the nap of this repository: `NAP_STATE`, `nap.state` of its git config, or this machine's."""
    return state_at(os.environ.get("NAP_STATE") or repository_settings(repository).get("state"))


def pusher() -> str:
    """Return the user who pushes: gitolite's name for it, else the account of this process."""
    return os.environ.get("GL_USER") or getpass.getuser()


def program() -> NoReturn:
    """Run the `nap-hook` program."""
    run(main)
