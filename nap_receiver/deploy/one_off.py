"""One-off containers: run once, with the image and configuration of a release, on this machine's engine."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.deadline import deadline
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.process import piped
from nap_receiver.core.settings import Settings
from nap_receiver.engine.container import Body, body_of_one_off, bridge_of, suffix_of
from nap_receiver.engine.login import Login, login_of
from nap_receiver.model.release import Release

if TYPE_CHECKING:
    from nap_receiver.engine.client import Engine

_END = frozenset((signal.SIGHUP, signal.SIGTERM))
_KEYS = (signal.SIGINT, signal.SIGQUIT)  # of a terminal that docker has too: it passes them on to the program
_AGAIN_SECONDS = 0.2
_NO_KEY = b"\xff".decode(errors="surrogateescape")  # no text in UTF-8 has this byte


class OneOff:
    """One one-off container, named by its `label`: `release.1`, `run.4711`."""

    def __init__(
        self,
        release: Release,
        label: str,
        words: Sequence[str],
        variables: Mapping[str, str],
        state: State,
        settings: Settings,
    ) -> None:
        """`words` are the arguments that the container gets, `variables` those that its release is configured with."""
        self._machine = suffix_of(state, settings)
        self.name = ".".join(filter(None, (release.app, release.name, label, self._machine)))
        self._release, self._label, self._words, self._variables = release, label, words, variables
        self._settings, self._login = settings, login_of(state, settings)

    def create(self, *, attended: bool = False, terminal: bool = False) -> list[str]:
        """Create the container; return the command that runs it in the foreground, under `environment`.

        It is removed at its end. An `attended` one reads this process's standard input, and the engine keeps no log of
        its output. Raises `NapError` if the engine refuses.
        """
        docker = shutil.which("docker")
        if docker is None:
            raise NapError("docker is not installed here; one-off commands need it", advice="apt-get install docker.io")
        body = body_of_one_off(self._release, self._label, self._words, self._variables, self._settings)
        if attended:
            body |= {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True, "Tty": terminal}
            body["HostConfig"]["LogConfig"] = {"Type": "none"}
        from nap_receiver.engine.client import engine_at  # its libraries are for those who run something once

        with engine_at(self._settings.engine.url) as engine:
            _create(engine, self.name, body, bridge_of(self._machine), self._login)
        options = ["--interactive", *([f"--detach-keys={_NO_KEY}"] if terminal else [])] if attended else []
        return [docker, "start", "--attach", *options, self.name]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the docker command."""
        ours = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TZ", "TERM"}}
        if url := self._settings.engine.url or os.environ.get("DOCKER_HOST"):
            ours["DOCKER_HOST"] = url
        return ours

    def remove(self) -> None:
        """Remove the container, running or not; does nothing if it does not exist."""
        words = ["docker", "rm", "--force", "--volumes", self.name]
        subprocess.run(words, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _create(engine: "Engine", name: str, body: Body, bridge: str, login: Login | None) -> None:
    """Create a container, and pull its image with `login` and create its network if they are missing."""
    from docker.errors import APIError

    try:
        if engine.image(body["Image"]) is None:
            repository, _, digest = body["Image"].partition("@")
            engine.api.pull(repository, tag=digest, auth_config=login.of_docker if login else None)
        engine.network(bridge)
        engine.api.create_container_from_config(body, name)
    except APIError as error:
        raise NapError(f"{name}: the engine cannot create its container: {error.explanation}") from error


def run_to_its_end(one_off: OneOff, what: str, app: str, seconds: float, channel: Channel) -> None:
    """Run it without standard input, with output in the channel.

    `what` names it in messages. Raises `NapError` if it fails or takes longer than `seconds`; then it is removed.
    """
    process = None
    advice = "Make it faster, or ask the operator to raise deploy.build_timeout."
    try:
        with deadline(seconds, f"{app}: {what}", advice), channel.waiting(f"running {what}"):
            process = subprocess.Popen(
                one_off.create(),
                env=one_off.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            with piped(process.stdout) as printed:
                for line in printed:
                    channel.detail(plain(line.decode("utf-8", "replace").rstrip("\n")))
            status = process.wait()
    except BaseException:
        one_off.remove()
        if process:
            process.kill()
            process.wait()
        raise
    if status:
        raise NapError(f"{app}: {what} exited with status {status}")


def run_attended(one_off: OneOff, hint: str = "") -> int:
    """Run it with this process's standard input and output, and with its terminal if there is one; return its exit
    status.

    Without a terminal, and without input at the start, the user may wait for a prompt that no program prints: `hint`,
    on standard error, says how to get a terminal. The container is removed at its end, if nobody reads its output, or
    if this process is stopped. Raises `NapError` in the last case.
    """
    heard: list[int] = []
    # Python calls a handler between two of its own steps; its wakeup descriptor ends a poll that has just begun, too.
    woken, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for each in (*_END, *_KEYS):
        signal.signal(each, lambda number, frame: heard.append(number))
    terminal = os.isatty(0) and os.isatty(1)
    words = one_off.create(attended=True, terminal=terminal)
    if hint and not terminal and not _has_input(0):
        print(f" !     {hint}", file=sys.stderr, flush=True)
    process = subprocess.Popen(words, env=one_off.environment)
    poller = select.poll()
    poller.register(os.pidfd_open(process.pid), select.POLLIN)
    poller.register(woken, select.POLLIN)
    poller.register(1, 0)  # a program may be silent for ever, so no write would tell
    while poller.poll() == [(woken, select.POLLIN)] and not _END.intersection(heard):
        os.read(woken, 4096)
    cut_short = process.poll() is None
    if cut_short:
        process.terminate()
    while process.poll() is None:
        one_off.remove()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_AGAIN_SECONDS)
    if cut_short or heard:
        time.sleep(_AGAIN_SECONDS)  # the engine may still make what it was asked for
    one_off.remove()  # always: at SIGTERM, docker may end with status 0 and leave the container running
    if ending := [each for each in heard if each in _END]:
        raise NapError(f"the command was stopped from outside ({signal.Signals(ending[0]).name})")
    if cut_short:
        return 128 + signal.SIGPIPE
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _has_input(descriptor: int) -> bool:
    """Return whether there is input or end of file now."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))
