"""The story of a deploy, from the pushed commit to the printed address. Read `receive` from top to bottom.

Its first step, which of the pushed refs deploys, is `answer.answer_push`: most pushes end there, and need none of this.
"""

from nap_receiver.channel import Channel
from nap_receiver.checkout import check_out
from nap_receiver.deadline import deadline
from nap_receiver.discovery import serving, show
from nap_receiver.image import Engine, Image, engine_at
from nap_receiver.lock import Superseded
from nap_receiver.push import Deployment, commit_of, some
from nap_receiver.release import Release
from nap_receiver.retention import keep_recent, registry_in_use, require_space
from nap_receiver.rollout import App, release, under_way
from nap_receiver.settings import Settings
from nap_receiver.state import State


def receive(asked: Deployment, state: State, settings: Settings, channel: Channel) -> None:
    """Make the pushed commit a running, announced release.

    Raises `NapError` when that fails; then the release before still serves, and nothing of the new one is left.
    """
    commit = asked.commit[:7]
    app = App(asked.app, asked.repository, asked.pusher, state, settings, channel)
    with under_way(app, commit, f"deploying {commit}", supersedes=True) as deploy:
        current = deploy.ledger.current()
        if current and current.commit == asked.commit and (there := serving(deploy.etcd, settings.etcd, current)):
            show(f"{current.app} {current.name} already runs {commit}", there, channel)
            return
        require_newest(asked, current)
        formation = current.formation if current else {"web": 1}
        placement = deploy.scheduler.place(asked.app, asked.repository, formation)
        with engine_at(settings.engine.url) as engine:
            require_space(deploy, engine)
            with registry_in_use(app):
                image = build_and_push(asked, engine, settings, channel)
        config = current.config if current else deploy.ledger.first_config()
        draft = Release(
            app=asked.app,
            commit=asked.commit,
            image=image.digest,
            ports=image.ports,
            has_healthcheck=image.has_healthcheck,
            formation=formation,
            config=config,
            by=asked.pusher,
            why=f"Deploy {commit}",
        )
        release(draft, placement, deploy)
        keep_recent(deploy)


def require_newest(asked: Deployment, current: Release | None) -> None:
    """Raise `Superseded` where, of two pushes at once, the newer was quicker and serves already."""
    tip = commit_of(asked.repository, asked.branch)
    if current and tip != asked.commit and tip == current.commit:
        raise Superseded(asked.commit[:7], f"{current.by}'s push of {current.commit[:7]}")


def build_and_push(asked: Deployment, engine: Engine, settings: Settings, channel: Channel) -> Image:
    """The commit's image, in the registry."""
    checkout = check_out(asked.repository, asked.commit, asked.app)
    channel.step(f"{asked.app}: building {asked.commit[:7]} from {asked.branch}")
    if checkout.submodules:
        channel.trouble(f"submodules are not fetched and arrive empty: {some(checkout.submodules)}")
    tag = f"{settings.registry.address}/{asked.app}:{asked.commit}"
    labels = {"nap.app": asked.app}  # a step of the build for each
    advice = "Make the build faster, or ask the operator to raise deploy.build_timeout; then push again."
    with deadline(settings.deploy.build_timeout, f"{asked.app}: building and pushing the image", advice):
        engine.build(checkout, asked.app, tag, labels, channel)
        if checkout.lfs_pointers:
            channel.trouble(f"Git LFS files are not fetched and arrived as pointers: {some(checkout.lfs_pointers)}")
        return engine.push(tag, asked.app, channel)
