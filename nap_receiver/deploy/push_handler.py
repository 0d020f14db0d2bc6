"""Answer a push: deploy one ref, report the others, or print the address of the running release."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from nap_receiver.core.channel import STEP, Channel, tell
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import piped, run
from nap_receiver.git.push import (
    Deployment,
    Push,
    RefUpdate,
    commit_of,
    deploy_branch,
    deploying,
    point_head_at,
    push_options,
)
from nap_receiver.git.repository import name_of

_SHOWN_OPTIONS = 10


def answer_push(push: Push, state: State, channel: Channel) -> None:
    """Deploy the ref that deploys, if there is one, and report the other refs. Raises `NapError`."""
    options = push_options(push.options)
    for option in options.unknown[:_SHOWN_OPTIONS]:
        known = "nap.deploy, nap.wait, nap.branch"
        channel.trouble(f'push option "{option[:80]}" is unknown and ignored; known: {known}')
    if len(options.unknown) > _SHOWN_OPTIONS:
        channel.trouble(f"{len(options.unknown) - _SHOWN_OPTIONS} more push options are unknown and ignored")
    usual = usual_branch(push.repository, state, push.updates)
    branch = options.branch or usual
    asked, fates = deploying(push, branch)
    for fate in fates:
        channel.detail(fate)
    if not asked:
        if options.branch:
            channel.detail(f"branch {branch} did not change: nothing to deploy")
    elif not options.deploy:
        channel.detail(
            f"branch {branch} kept, not deployed, as nap.deploy=no asks. To deploy it: git push nap {branch}"
        )
    elif options.wait:
        deploy(asked, state, channel, moved=any(update.moved for update in push.updates))
    else:
        deploy_later(asked, state, channel)


def usual_branch(repository: Path, state: State, updates: Iterable[RefUpdate] = ()) -> str:
    """Return the deploy branch, and point HEAD at it in nap's own repositories; elsewhere HEAD belongs to their
    owner."""
    branch = deploy_branch(repository, updates)
    if repository.is_relative_to(state.repositories):
        point_head_at(repository, branch)
    return branch


def answer_what_is_there(app: str, repository: Path, pusher: str, state: State, channel: Channel) -> None:
    """Answer a push that changed nothing: print the address of what runs, or try the deploy again."""
    branch = usual_branch(repository, state)
    if commit := commit_of(repository, branch):
        deploy(Deployment(app, repository, branch, commit, pusher), state, channel, moved=False)
    else:
        channel.detail(f"{app} deploys {branch}, which does not exist yet: git push nap {branch}")


def deploy(asked: Deployment, state: State, channel: Channel, *, moved: bool = True) -> None:
    """Deploy with the settings in force.

    If the branch has not `moved`, it is deployed only if its commit was not live yet, or was not rolled back.
    """
    from nap_receiver.auth.access import Access, claim  # libraries that a push that deploys nothing has no need of
    from nap_receiver.core.settings import load
    from nap_receiver.deploy.already_running import runs_already
    from nap_receiver.store.etcd import connect
    from nap_receiver.store.ledger import Ledger
    from nap_receiver.store.lock import whose_turn

    settings = load(state).settings
    with connect(settings.etcd) as etcd:
        ledger = Ledger(etcd, settings.etcd, asked.app)
        claim(etcd, settings.etcd.access_of(asked.app), Access(name_of(asked.repository, state)))
        is_free = whose_turn(etcd, ledger.root) is None  # else what runs may be another release in a moment
        if is_free and runs_already(asked, ledger, etcd, settings, channel, moved=moved):
            return
    from nap_receiver.deploy.receiver import receive  # and these, only a deploy

    receive(asked, state, settings, channel)


def deploy_later(asked: Deployment, state: State, channel: Channel) -> None:
    """Start the deploy in a separate process. Returns when it has begun, and passes on its output if it ended at
    once."""
    words = [str(state.root), asked.app, str(asked.repository), asked.branch, asked.commit, asked.pusher]
    later = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    with piped(later.stdout) as output:
        first = output.readline()
        if first.startswith(STEP):
            channel.result(f"{asked.app}: the deploy of {asked.commit[:7]} has started and continues in the background")
            channel.detail(f"To follow it: ssh HOST builds:output {asked.app} -t (HOST as in your remote's URL)")
            return
        for line in (first, *output):
            channel.pass_on(line)
    if later.wait():
        raise NapError(f"{asked.commit[:7]} is not deployed")


def main() -> int:
    """Deploy without a listening pusher: `python -m … STATE APP REPOSITORY BRANCH COMMIT PUSHER`."""
    keep_private()
    root, app, repository, branch, commit, pusher = sys.argv[1:]
    asked = Deployment(app, Path(repository), branch, commit, pusher)
    return 0 if tell(1, lambda channel: deploy(asked, state_at(root), channel)) else 1


if __name__ == "__main__":
    run(main)
