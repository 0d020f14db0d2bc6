"""A container that runs once, of a release's image and with its configuration, on this machine's engine."""

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from nap_receiver.channel import Channel, plain
from nap_receiver.deadline import deadline
from nap_receiver.errors import NapError
from nap_receiver.kept import environment_of
from nap_receiver.release import Release
from nap_receiver.settings import Settings
from nap_receiver.state import State
from nap_receiver.units import TEMPLATES

_END = (signal.SIGHUP, signal.SIGTERM)
_KEYS = (signal.SIGINT, signal.SIGQUIT)  # of a terminal that docker has too: it passes them on to the program
_AGAIN_SECONDS = 0.2
_NO_KEY = b"\xff".decode(errors="surrogateescape")  # no text in UTF-8 has this byte


class OneOff:
    """One such container, by its `label`: `release.1`, `run.4711`."""

    def __init__(self, release: Release, label: str, words: Sequence[str], state: State, settings: Settings) -> None:
        """`words` are the arguments that the container gets."""
        machine = f".{state.name}" if settings.scheduler == "local" else ""
        self.name = f"{release.app}.{release.name}.{label}{machine}"
        self._release, self._label, self._words = release, label, words
        self._settings = settings

    def command(self, *options: str) -> list[str]:
        """What runs it in the foreground and removes it afterwards, under `environment`, with options of docker's."""
        release, limits = self._release, self._release.limits_of(self._label.partition(".")[0])
        docker = shutil.which("docker")
        if docker is None:
            raise NapError(
                "docker is not installed here, and runs one-off commands", advice="apt-get install docker.io"
            )
        arguments = [
            "run",
            "--rm",
            "--init",
            "--no-healthcheck",
            f"--name={self.name}",
            *options,
            *([f"--memory={limits.memory}"] if limits.memory else []),
            *([f"--cpus={limits.cpus}"] if limits.cpus else []),
            f"--label=nap.app={release.app}",
            f"--label=nap.release={release.number}",
            f"--label=nap.commit={release.commit}",
            f"--label=nap.instance={self._label}",
            f"--env=PORT={release.port}",
            f"--env=GIT_REV={release.commit}",
            f"--env=NAP_APP={release.app}",
            f"--env=NAP_RELEASE={release.name}",
            f"--env=NAP_PROCESS={self._label}",
            release.image,
            *self._words,
        ]
        if release.config:
            return ["/bin/sh", str(TEMPLATES / "configure.sh"), *arguments]
        return [docker, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """What the command needs to know of engine and etcd."""
        release, etcd = self._release, self._settings.etcd
        ours = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TZ", "TERM"}}
        if url := self._settings.engine.url or os.environ.get("DOCKER_HOST"):
            ours["DOCKER_HOST"] = url
        if not release.config:
            return ours
        return ours | {
            **environment_of(etcd),
            "NAP_CONFIG_KEY": etcd.config_of(release.app, release.config),
            "NAP_IMAGE": release.image,
        }

    def remove(self) -> None:
        """Have it gone, whatever it does; nothing where there is none."""
        words = ["docker", "rm", "--force", self.name]
        subprocess.run(words, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def run_to_its_end(one_off: OneOff, what: str, app: str, seconds: float, channel: Channel) -> None:
    """Run it with nothing on its standard input, what it prints going to the channel.

    `what` names it in messages. Raises `NapError` where it fails or takes longer than `seconds`; then it is gone too.
    """
    process = subprocess.Popen(
        one_off.command(),
        env=one_off.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout
    try:
        advice = "Make it faster, or ask the operator to raise deploy.build_timeout."
        with deadline(seconds, f"{app}: {what}", advice), process.stdout, channel.waiting(f"running {what}"):
            for line in process.stdout:
                channel.detail(plain(line.decode("utf-8", "replace").rstrip("\n")))
            status = process.wait()
    except BaseException:
        one_off.remove()
        process.kill()
        process.wait()
        raise
    if status:
        raise NapError(f"{app}: {what} exited with status {status}")


def run_attended(one_off: OneOff) -> int:
    """Run it with this process's standard input and output, and with their terminal if they are one; its exit status.

    It is gone afterwards, whether it has ended, nobody reads its output any more, or this process is told to end.
    Raises `NapError` for the last.
    """
    heard: list[int] = []
    told_to_end = os.eventfd(0)

    def hear(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)
        if signum in _END:
            os.eventfd_write(told_to_end, 1)

    for each in (*_END, *_KEYS):
        signal.signal(each, hear)
    terminal = ["--tty", f"--detach-keys={_NO_KEY}"] if os.isatty(0) and os.isatty(1) else []
    # The engine keeps no log of it: what it prints is for this reader alone.
    words = one_off.command("--interactive", "--log-driver=none", *terminal)
    process = subprocess.Popen(words, env=one_off.environment)
    poller = select.poll()
    poller.register(os.pidfd_open(process.pid), select.POLLIN)
    poller.register(told_to_end, select.POLLIN)
    poller.register(1, 0)  # a program may be silent for ever, so no write would tell
    poller.poll()
    cut_short = process.poll() is None
    if cut_short:
        process.terminate()  # or what it has yet to do, such as pulling the image, comes first
    while process.poll() is None:
        one_off.remove()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_AGAIN_SECONDS)
    if cut_short or heard:
        time.sleep(_AGAIN_SECONDS)  # the engine may still make what it was asked for
    if process.returncode:
        one_off.remove()
    if ending := [each for each in heard if each in _END]:
        raise NapError(f"the command was stopped from outside ({signal.Signals(ending[0]).name})")
    if cut_short:
        return 128 + signal.SIGPIPE
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
