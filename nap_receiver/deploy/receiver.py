"""The steps of a deploy, from the pushed commit to the printed address. Read `receive` from top to bottom.

The step before, which of the pushed refs deploys, is `push_handler.answer_push`: most pushes end there and do not
import this module.
"""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nap_receiver.build.asked import Build
from nap_receiver.build.builder import builder_of
from nap_receiver.build.confine import confined
from nap_receiver.build.dockerfile import arguments_of
from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.deadline import deadline
from nap_receiver.core.errors import NapError, some
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.deploy.already_running import runs_already
from nap_receiver.deploy.image_pruning import keep_recent, registry_in_use, require_space
from nap_receiver.deploy.rollout import POSTDEPLOY, App, Deploy, release, run_command, under_way
from nap_receiver.engine.client import Engine, Image, engine_at
from nap_receiver.engine.container import bridge_of, suffix_of
from nap_receiver.engine.login import login_of
from nap_receiver.git.checkout import DOCKERFILE, MANIFESTS, Checkout, check_out
from nap_receiver.git.push import Deployment, commit_of
from nap_receiver.model.bounds import require_instances, require_process_types, require_variables
from nap_receiver.model.manifest import Manifest, manifest_of
from nap_receiver.model.release import DEFAULT_PORT, Release
from nap_receiver.store.listening import how_to_name
from nap_receiver.store.lock import Superseded


def receive(asked: Deployment, state: State, settings: Settings, channel: Channel) -> None:
    """Make the pushed commit a running, announced release.

    Raises `NapError` if that fails; then the release before still serves, and nothing of the new one is left.
    """
    commit = asked.commit[:7]
    app = App(asked.app, asked.repository, asked.pusher, state, settings, channel)
    with under_way(app, commit, f"deploying {commit}", supersedes=True) as deploy:
        current = deploy.ledger.current()
        if runs_already(asked, deploy.ledger, deploy.etcd, settings, channel, moved=True):
            return
        require_newest(asked, current)
        with ExitStack() as reading:
            checkout = reading.enter_context(check_out_in_time(asked, settings))
            manifest = read_manifest(checkout, deploy)
            variables = variables_for(manifest, deploy)
            before = current.formation if current else {}
            formation = formation_for(manifest, current, deploy)
            require_process_types(asked.app, len(formation), len(before), settings.limits)
            require_instances(asked.app, before, formation, settings.limits)
            placement = deploy.scheduler.place(asked.app, asked.repository, formation)
            engine = reading.enter_context(engine_at(settings.engine.url))
            require_space(deploy, engine)
            engine.network(bridge_of(suffix_of(app.state, settings)))
            with registry_in_use(app):
                image = build_and_push(asked, checkout, engine, app)
        warn_of_volumes(image, channel)
        draft = Release(
            app=asked.app,
            commit=asked.commit,
            image=image.digest,
            ports=published(image, settings, channel),
            names_port=names_port(image),
            set_port=current.set_port if current else deploy.ledger.first_port(),
            found_port=found_before(image, current, channel),
            has_healthcheck=image.has_healthcheck,
            formation=formation,
            config=deploy.ledger.configured(variables),
            commands={process: line or image.shell_command for process, line in manifest.commands.items()},
            release_command=manifest.release_command,
            predeploy=manifest.before_each,
            checks=manifest.checks,
            limits=current.limits if current else deploy.ledger.first_limits(),
            protocol=current.protocol if current else deploy.ledger.first_protocol(),
            by=asked.pusher,
            why=f"Deploy {commit}",
        )
        live = release(draft, placement, deploy)
        keep_recent(deploy)
        if manifest.after_each:
            run_postdeploy("scripts.dokku.postdeploy", manifest.after_each, live, deploy)
        if manifest.postdeploy and not current:
            run_postdeploy("scripts.postdeploy", manifest.postdeploy, live, deploy)


def require_newest(asked: Deployment, current: Release | None) -> None:
    """Raise `Superseded` if a newer push is already live."""
    tip = commit_of(asked.repository, asked.branch)
    if current and tip != asked.commit and tip == current.commit:
        raise Superseded(asked.commit[:7], f"{current.by}'s push of {current.commit[:7]}")


def warn_of_volumes(image: Image, channel: Channel) -> None:
    """Warn about data in folders that the image declares as volumes."""
    if image.volumes:
        where = plain(some(image.volumes))
        channel.trouble(f"the image has VOLUME {where}: each deploy and restart deletes what the app wrote there")
        channel.detail("Keep data that must stay outside the app: in a database, or in a store of files.")


def published(image: Image, settings: Settings, channel: Channel) -> list[str]:
    """Return the ports of the image that are published, at most as many as the settings allow; warn about the others.

    Without a TCP port in the image, the default port comes first.
    """
    most = settings.container.ports
    ports = image.ports if names_port(image) else [f"{DEFAULT_PORT}/tcp", *image.ports]
    if left_out := ports[most:]:
        channel.trouble(f"only {most} ports are published (container.ports), without {some(left_out)}")
    return ports[:most]


def names_port(image: Image) -> bool:
    """Return whether the image names a TCP port, which may be the web port."""
    return image.ports[:1] != [] and image.ports[0].endswith("/tcp")


def found_before(image: Image, current: Release | None, channel: Channel) -> int:
    """Return the port that nap found for the app's last release, if this image names none either; else 0."""
    if current is None or current.set_port or not current.found_port or names_port(image):
        return 0
    channel.trouble(f"The image names no port: nap uses {current.found_port}, the port of {current.name}.")
    channel.detail(f"To keep it: {how_to_name(current, [current.found_port])}")
    return current.found_port


@contextmanager
def check_out_in_time(asked: Deployment, settings: Settings) -> Iterator[Checkout]:
    """Check out the commit's tree for the block, within the time of a build."""
    advice = "Take files out of the commit, or ask the operator to raise deploy.build_timeout; then push again."
    with ExitStack() as reading:
        with deadline(settings.deploy.build_timeout, f"{asked.app}: reading the commit", advice):
            checkout = reading.enter_context(check_out(asked.repository, asked.commit, asked.app, settings.commit))
        yield checkout


def read_manifest(checkout: Checkout, deploy: Deploy) -> Manifest:
    """Parse the commit's Procfile and app.json; warn about ignored keys."""
    for name in checkout.misnamed:
        right = next(each for each in MANIFESTS if each.lower() == name.lower())
        deploy.channel.trouble(
            f"{name} is ignored; its name must be {right}: git mv {name} {right}, commit, and push again"
        )
    manifest = manifest_of(deploy.app.name, checkout.manifests)
    if manifest.ignored:
        deploy.channel.trouble(f"app.json: nap ignores {some(manifest.ignored)}")
    if manifest.before_each:
        deploy.channel.trouble("app.json: files that scripts.dokku.predeploy changes are not kept; a RUN step's are")
    for warning in manifest.warnings:
        deploy.channel.trouble(warning)
    return manifest


def variables_for(manifest: Manifest, deploy: Deploy) -> dict[str, str]:
    """Return the set variables and app.json's values. Raises `NapError` if a required one is missing."""
    configured = deploy.ledger.configuration(deploy.ledger.config_in_force())
    variables = configured | manifest.unset(deploy.app.name, configured)
    require_variables(deploy.app.name, configured, variables, deploy.settings.limits)
    return variables


def formation_for(manifest: Manifest, current: Release | None, deploy: Deploy) -> dict[str, int]:
    """Return the number of instances by process type; warn about counts for types that this commit lacks."""
    if current:
        return manifest.formation(current.formation)
    chosen = deploy.ledger.first_formation()
    if lacking := sorted(chosen.keys() - manifest.commands.keys()):
        has = some(list(manifest.commands))
        deploy.channel.trouble(f"ps:scale named {some(lacking)}: this commit has no such process type; it has: {has}")
    return manifest.formation(chosen)


def run_postdeploy(what: str, command: str, live: Release, deploy: Deploy) -> None:
    """Run a postdeploy command of app.json after the release is live."""
    if deploy.scheduler.runs_on == "nothing":
        return
    app = deploy.app
    app.channel.step(f"Running {what}: {command}")
    try:
        run_command(live, POSTDEPLOY, command, what, deploy)
    except NapError as error:
        advice = [
            f"{app.name} {live.name} is live all the same. To try it again:",
            f"run {app.name} sh -c {shlex.quote(command)}",
        ]
        raise NapError(str(error), advice=advice) from error


def warn_of_files(checkout: Checkout, channel: Channel) -> None:
    """Warn about files of the build context that will not work as their author expects."""
    if checkout.lfs_pointers:
        channel.trouble(f"Git LFS files are not fetched and arrived as pointers: {checkout.lfs_pointers}")
    if scripts := checkout.windows_scripts:
        channel.trouble(f"scripts with Windows line ends or a byte order mark, which do not start on Linux: {scripts}")
        channel.detail("To convert them: echo '*.sh text eol=lf' >> .gitattributes && git add --renormalize .")


def build_and_push(asked: Deployment, checkout: Checkout, engine: Engine, app: App) -> Image:
    """Build the commit's image and push it to the registry."""
    settings, channel = app.settings, app.channel
    channel.step(f"{app.name}: building {asked.commit[:7]} from {asked.branch}")
    if checkout.submodules:
        channel.trouble(f"submodules are not fetched and arrive empty: {checkout.submodules}")
    builder = builder_of(engine, app.state, settings)
    arguments = {"GIT_REV": asked.commit, "NAP_APP": app.name}
    source = checkout.manifests[DOCKERFILE].decode("utf-8", "replace")
    tag = f"{settings.registry.address}/{app.name}:{asked.commit}"
    advice = "Make the build faster, or ask the operator to raise deploy.build_timeout; then push again."
    with deadline(settings.deploy.build_timeout, f"{app.name}: building and pushing the image", advice):
        try:
            with confined(checkout, app.name, engine, settings, channel, builder.frontend, arguments) as instructions:
                wanted = {name: arguments[name] for name in arguments_of(instructions) & arguments.keys()}
                build = Build(app.name, tag, checkout, settings.build, wanted, source, instructions)
                builder.build(build, channel)
        finally:
            warn_of_files(checkout, channel)
        return engine.push(tag, app.name, channel, login_of(app.state, settings))
