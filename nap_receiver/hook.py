"""Where a push enters: git's post-receive hook, the updates on stdin, the pusher behind stdout (githooks(5))."""

import getpass
import os
import sys
from pathlib import Path

from dulwich.repo import Repo

from nap_receiver.app import app_name
from nap_receiver.channel import Channel, tell
from nap_receiver.push import Deployment, Push, deploying, read_updates, repository_setting
from nap_receiver.settings import load
from nap_receiver.state import State, state_at


def main() -> int:
    """Deploy what was pushed. 0 when that went well or nothing had to be; git ignores it, the gate does not."""
    repository = Path(os.environ.get("GIT_DIR", ".")).resolve()
    updates = read_updates(sys.stdin.buffer)
    state = _state(repository)

    verdict = os.environ.get("NAP_VERDICT", os.devnull)
    Path(verdict).write_text("deploying", encoding="ascii")

    def story(channel: Channel) -> None:
        push = Push(app_name(repository, state, os.environ), repository, updates, _pusher())
        asked, fates_of_others = deploying(push)
        for fate in fates_of_others:
            channel.detail(fate)
        if asked:
            deploy(asked, state, channel)

    good = tell(1, story)
    Path(verdict).write_text("good" if good else "failed", encoding="ascii")
    return 0 if good else 1


def deploy(asked: Deployment, state: State, channel: Channel) -> None:
    """Run the story, under the settings in force."""
    settings = load(state).settings
    from nap_receiver.receiver import receive  # half a second of libraries, which only a deploy needs

    receive(asked, state, settings, channel)


def _state(repository: Path) -> State:
    """Which nap this repository belongs to: `NAP_STATE`, `nap.state` of its git config, or this machine's."""
    with Repo(str(repository)) as opened:
        return state_at(os.environ.get("NAP_STATE") or repository_setting(opened, "state"))


def _pusher() -> str:
    return os.environ.get("NAP_USER") or os.environ.get("GL_USER") or getpass.getuser()


if __name__ == "__main__":
    sys.exit(main())
