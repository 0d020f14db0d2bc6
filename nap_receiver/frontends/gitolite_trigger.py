"""Run after git by gitolite's trigger: set how the push ends if the hook did not report success."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from nap_receiver.auth.privileges import require_owner
from nap_receiver.core.channel import Channel, tell
from nap_receiver.core.errors import NapError
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import run
from nap_receiver.deploy.push_handler import answer_what_is_there
from nap_receiver.frontends.hook import RECEIVED_BY_ANOTHER, pusher, state_of
from nap_receiver.model.app import app_name


def main() -> int:
    """`nap-gitolite-trigger VERDICT REPOSITORY`, with the text that the hook wrote; return the exit status of the push.

    The verdict is empty after a push that changed nothing. Standard output would be git's protocol, so messages go to
    standard error, which ssh passes on.
    """
    keep_private()
    verdict, path = sys.argv[1:]
    repository = Path(path).resolve()

    def story(channel: Channel) -> None:
        if verdict == "failed":  # and the hook has said why
            raise NapError("Not deployed, although the commits have arrived.")
        if verdict:
            raise NapError("the deploy was killed; running instances were not changed", advice="Push again to deploy.")
        state = state_of(repository)
        require_owner(state, RECEIVED_BY_ANOTHER)
        answer_what_is_there(app_name(repository, state, os.environ), repository, pusher(), state, channel)

    return 0 if tell(2, story) else 1


def program() -> NoReturn:
    """Run the `nap-gitolite-trigger` program."""
    run(main)
