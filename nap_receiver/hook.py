"""Where a push enters: git's post-receive hook, the updates on stdin, the pusher behind stdout (githooks(5))."""

import getpass
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dulwich.repo import Repo

from nap_receiver.channel import Channel
from nap_receiver.errors import NapError
from nap_receiver.push import Deployment, Push, app_name, deploying, read_updates, repository_setting
from nap_receiver.settings import load
from nap_receiver.state import State, state_at


def main() -> int:
    """Deploy what was pushed. 0 when that went well or nothing had to be; git ignores it, the gate does not."""
    repository = Path(os.environ.get("GIT_DIR", ".")).resolve()
    updates = read_updates(sys.stdin.buffer)
    state = _state(repository)

    def story(channel: Channel) -> None:
        push = Push(app_name(repository, state, os.environ), repository, updates, _pusher())
        if asked := deploying(push, channel):
            deploy(asked, state, channel)

    good = tell(1, story)
    if verdict := os.environ.get("NAP_VERDICT"):
        Path(verdict).write_text("good" if good else "failed", encoding="ascii")
    return 0 if good else 1


def deploy(asked: Deployment, state: State, channel: Channel) -> None:
    """Run the story, under the settings in force."""
    settings = load(state).settings
    from nap_receiver.receiver import receive  # half a second of libraries, which only a deploy needs

    receive(asked, state, settings, channel)


def tell(descriptor: int, story: Callable[[Channel], None]) -> bool:
    """Run `story` with a channel to `descriptor`; whether it ended well. A failure is told in the channel's style."""
    signal.signal(signal.SIGTERM, _stop)
    with Channel(descriptor) as channel:
        try:
            story(channel)
        except NapError as error:
            channel.failure(error)
        except Exception as error:  # noqa: BLE001 -- a bug of nap's must not show the pusher a traceback
            channel.log_only(traceback.format_exc())
            channel.failure(
                NapError(
                    f"nap itself failed ({type(error).__name__}: {error}); what ran before still runs",
                    advice="Ask the operator to look into the deploy log; pushing again may help.",
                )
            )
        else:
            return True
    return False


def _stop(signum: int, frame: FrameType | None) -> None:
    raise NapError("the deploy was stopped from outside; what ran before still runs", advice="Push again to deploy.")


def _state(repository: Path) -> State:
    """Which nap this repository belongs to: `NAP_STATE`, `nap.state` of its git config, or this machine's."""
    with Repo(str(repository)) as opened:
        return state_at(os.environ.get("NAP_STATE") or repository_setting(opened, "state"))


def _pusher() -> str:
    return os.environ.get("NAP_USER") or os.environ.get("GL_USER") or getpass.getuser()


if __name__ == "__main__":
    sys.exit(main())
