"""Build the image and push it to the registry, through the Docker SDK, with everything said in the channel."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException

from nap_receiver.channel import Channel, plain
from nap_receiver.checkout import Checkout
from nap_receiver.errors import NapError

DEFAULT_PORT = "5000/tcp"
"""Where an app listens whose image exposes nothing (Heroku's and Dokku's custom, shared/peers.md)."""

_LONGEST_LINE = 65536  # characters that a build may print without a line's end

_ENGINE_IDLE_SECONDS = 600  # between two bytes; a RUN step may be silent for long

# What the classic builder says about itself.
_HOUSEKEEPING = re.compile(
    r" ---> |Removing intermediate container |Successfully (built|tagged) |Step \d+/\d+ : LABEL nap\."
)
_EXITED = re.compile(r"returned a non-zero code: (\d+)$")
_DISK_FULL = re.compile(r"no space left on device", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """A pushed image: by digest for the units, its ports, and whether it brings its own health check."""

    digest: str
    """`registry/app@sha256:…`"""
    ports: list[str]
    """`8080/tcp`, …, the one that PORT names first."""
    has_healthcheck: bool


class Engine:
    """A Docker Engine that answers; `url` is empty for the usual place (`DOCKER_HOST`, `/var/run/docker.sock`)."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self._answering():
            options = {"timeout": _ENGINE_IDLE_SECONDS, "version": "auto"}
            self.api = docker.DockerClient(url, **options).api if url else docker.from_env(**options).api

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn whatever the SDK raises when the engine is away into a sentence."""
        try:
            yield
        except APIError:
            raise
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise NapError(
                f"the Docker Engine at {self.url or 'its usual place'} does not answer",
                words=[plain(str(error))[:300]],
                advice="On a single machine `nap status` tells what is down and `nap up` starts it; then push again.",
            ) from error

    def processors(self) -> int:
        """How many processors it has for its containers."""
        try:
            return int(self.api.info()["NCPU"])
        except (OSError, DockerException) as error:
            raise NapError(f"the engine does not tell how many processors it has: {error}") from error

    def build(self, checkout: Checkout, app: str, tag: str, labels: dict[str, str], channel: Channel) -> None:
        """Build `tag` from the checkout, its output going to the channel. Raises `NapError`; then there is no image."""
        step, disk_full = "", False
        lines = _Lines()
        try:
            with self._answering(), channel.waiting("building"):
                for item in self.api.build(
                    fileobj=checkout.tar(),
                    custom_context=True,
                    tag=tag,
                    labels=labels,
                    rm=True,
                    forcerm=True,
                    decode=True,
                ):
                    said = lines.of(_text(item)) if "error" not in item else lines.rest()
                    for line in said:
                        if line.startswith("Step "):
                            step, disk_full = line, False
                        elif _DISK_FULL.search(line):
                            disk_full = True
                        if not _HOUSEKEEPING.match(line):
                            channel.detail(line)
                    if "error" in item:
                        reason = item.get("errorDetail", {}).get("message") or item["error"]
                        raise _build_failed(app, step, reason, disk_full)
        except APIError as error:
            raise _build_failed(app, step, error.explanation or str(error), disk_full) from error

    def push(self, tag: str, app: str, channel: Channel) -> Image:
        """Push `tag`, and say what went. Raises `NapError` when the registry refuses or is away."""
        repository, _, version = tag.rpartition(":")
        registry = repository.partition("/")[0]
        layers: dict[str, str] = {}
        digest = ""
        try:
            with self._answering(), channel.waiting(f"pushing to {registry}"):
                for item in self.api.push(repository, tag=version, stream=True, decode=True):
                    if "error" in item:
                        raise _push_failed(app, registry, item["error"])
                    if "id" in item:
                        layers[item["id"]] = item.get("status", "")
                    digest = item.get("aux", {}).get("Digest", digest)
                about = self.api.inspect_image(tag)
        except APIError as error:
            raise _push_failed(app, registry, error.explanation or str(error)) from error
        if not digest:
            raise _push_failed(app, registry, "the registry named no digest")
        new = sum(status == "Pushed" for status in layers.values())
        channel.step(
            f"Image {repository}@{digest[:19]}… ({_size(about['Size'])}, {new} of {_count(len(layers), 'layer')} new)"
        )
        return Image(f"{repository}@{digest}", _ports(about["Config"]), bool(about["Config"].get("Healthcheck")))


def _build_failed(app: str, step: str, reason: str, disk_full: bool) -> NapError:
    reason = plain(reason.replace("\n", " "))
    at = f" at {step[0].lower()}{step[1:]}" if step else ""
    if disk_full or _DISK_FULL.search(reason):
        return NapError(
            f"{app}: the build ran out of disk space{at}: {reason}",
            advice="Ask the operator to free space where the engine keeps images (docker system df); then push again.",
        )
    if "--mount" in step or "buildkit" in reason.lower():
        return NapError(
            f"{app}: the build failed{at}: {reason}; it needs BuildKit, which builds here do not have",
            advice="Write the step without RUN --mount and other BuildKit syntax, commit, and push again.",
        )
    if status := _EXITED.search(reason):
        reason = f"it exited with status {status[1]}"
    return NapError(
        f"{app}: the build failed{at or ' in the Dockerfile'}: {reason}",
        advice="Mend it, commit, and push again; nothing was started, and what ran before still runs.",
    )


def _push_failed(app: str, registry: str, reason: str) -> NapError:
    return NapError(
        f"{app}: the image was built, but the registry at {registry} did not take it: {plain(reason)}",
        advice="See that the registry runs and lets this engine push (one machine: nap status); then push again.",
    )


@contextmanager
def engine_at(url: str) -> Iterator[Engine]:
    """The engine at `url`, or at its usual place, for the block."""
    engine = Engine(url)
    try:
        yield engine
    finally:
        engine.api.close()


class _Lines:
    """Whole lines out of chunks that end anywhere."""

    def __init__(self) -> None:
        self._rest = ""

    def of(self, chunk: str) -> Iterable[str]:
        *whole, self._rest = (self._rest + chunk).split("\n")
        if len(self._rest) > _LONGEST_LINE:
            whole.append(self._rest)
            self._rest = ""
        return [line for line in map(plain, whole) if line]

    def rest(self) -> Iterable[str]:
        """What was said last, when no line's end came after it."""
        return self.of("\n")


def _text(item: dict[str, Any]) -> str:
    if "stream" in item:
        return str(item["stream"])
    if "status" in item and "progressDetail" not in item:  # a base image being pulled
        return f"{item['status']}\n"
    return ""


def _ports(config: dict[str, Any]) -> list[str]:
    """The exposed ports, that of PORT or else the lowest TCP one first; port 5000 when none is exposed."""
    exposed = sorted(
        config.get("ExposedPorts") or {}, key=lambda port: (port.split("/")[-1] != "tcp", int(port.split("/")[0]))
    )
    if not exposed or not exposed[0].endswith("/tcp"):
        return [DEFAULT_PORT, *exposed]
    named = next((v.partition("=")[2] + "/tcp" for v in config.get("Env") or [] if v.startswith("PORT=")), None)
    if named in exposed:
        exposed.remove(named)
        exposed.insert(0, named)
    return exposed


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
