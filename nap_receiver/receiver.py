"""The story of a deploy, from the pushed commit to the printed address. Read `receive` from top to bottom.

Its first step, which of the pushed refs deploys, is `answer.answer_push`: most pushes end there, and need none of this.
"""

import shlex

from nap_receiver.channel import Channel
from nap_receiver.checkout import Checkout, check_out
from nap_receiver.deadline import deadline
from nap_receiver.discovery import serving, show
from nap_receiver.domains import url_of
from nap_receiver.errors import NapError
from nap_receiver.image import Engine, Image, engine_at
from nap_receiver.lock import Superseded
from nap_receiver.manifest import Manifest, manifest_of
from nap_receiver.one_off import OneOff, run_to_its_end
from nap_receiver.push import Deployment, commit_of, some
from nap_receiver.release import Release, in_shell
from nap_receiver.retention import keep_recent, registry_in_use, require_space
from nap_receiver.rollout import App, Deploy, release, under_way
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
        if current and current.commit == asked.commit:
            there = serving(deploy.etcd, settings.etcd, current)
            if there is not None:
                url = url_of(current.app, settings)
                show(f"{current.app} {current.name} already runs {commit}", url, there, channel)
                return
        require_newest(asked, current)
        checkout = check_out(asked.repository, asked.commit, asked.app)
        manifest = read_manifest(checkout, deploy)
        variables = variables_for(manifest, deploy)
        formation = manifest.formation(current.formation if current else {})
        placement = deploy.scheduler.place(asked.app, asked.repository, formation)
        with engine_at(settings.engine.url) as engine:
            require_space(deploy, engine)
            with registry_in_use(app):
                image = build_and_push(asked, checkout, engine, settings, channel)
        draft = Release(
            app=asked.app,
            commit=asked.commit,
            image=image.digest,
            ports=image.ports,
            has_healthcheck=image.has_healthcheck,
            formation=formation,
            config=deploy.ledger.configured(variables),
            commands=manifest.commands,
            release_command=manifest.release_command,
            checks=manifest.checks,
            limits=current.limits if current else {},
            by=asked.pusher,
            why=f"Deploy {commit}",
        )
        release(draft, placement, deploy)
        keep_recent(deploy)
        if manifest.postdeploy and not current:
            run_postdeploy(manifest.postdeploy, deploy)


def require_newest(asked: Deployment, current: Release | None) -> None:
    """Raise `Superseded` where, of two pushes at once, the newer was quicker and serves already."""
    tip = commit_of(asked.repository, asked.branch)
    if current and tip != asked.commit and tip == current.commit:
        raise Superseded(asked.commit[:7], f"{current.by}'s push of {current.commit[:7]}")


def read_manifest(checkout: Checkout, deploy: Deploy) -> Manifest:
    """What the commit says of the app beside its image; what means nothing here is told."""
    manifest = manifest_of(deploy.app.name, checkout.manifests)
    if manifest.ignored:
        deploy.channel.trouble(f"app.json: {some(manifest.ignored)}: not nap's, and without effect here")
    return manifest


def variables_for(manifest: Manifest, deploy: Deploy) -> dict[str, str]:
    """The variables that are set, and those that app.json has a value for. Raises `NapError` where one is missing."""
    there = deploy.ledger.configuration(deploy.ledger.config_in_force())
    return there | manifest.unset(deploy.app.name, there)


def run_postdeploy(command: str, deploy: Deploy) -> None:
    """Run what app.json names for once, after the first release of the app that is live."""
    current = deploy.ledger.current()
    assert current
    app, settings = deploy.app, deploy.settings
    app.channel.step(f"Running scripts.postdeploy: {command}")
    one_off = OneOff(current, "postdeploy.1", in_shell(command), app.state, settings)
    try:
        run_to_its_end(one_off, "scripts.postdeploy", app.name, settings.deploy.build_timeout, app.channel)
    except NapError as error:
        advice = [
            f"{app.name} {current.name} is live all the same. To try it again:",
            f"run {app.name} sh -c {shlex.quote(command)}",
        ]
        raise NapError(str(error), advice=advice) from error


def build_and_push(
    asked: Deployment, checkout: Checkout, engine: Engine, settings: Settings, channel: Channel
) -> Image:
    """The commit's image, in the registry."""
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
