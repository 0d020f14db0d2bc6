"""The engine's images: list, pull and push them, through the Docker SDK.

What a registry says goes to the channel.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException
from docker.utils import parse_repository_tag

from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.errors import NapError
from nap_receiver.engine.container import NETWORK
from nap_receiver.engine.control_group import Driver
from nap_receiver.engine.login import Login
from nap_receiver.model.base_image import Base

_ENGINE_IDLE_SECONDS = 600  # between two bytes; a RUN step may be silent for long

_BODY = re.compile(r"(?<=response body)[:\s].*", re.DOTALL)
_PORT = re.compile(r"([0-9]{1,5})/(tcp|udp|sctp)")


@dataclass(frozen=True)
class LocalImage:
    """An image that the engine has."""

    identity: str
    """`sha256:…`, of its configuration."""
    names: tuple[str, ...]
    """`alpine:3`, `alpine@sha256:…`, …"""
    app: str
    """The app that it was built for; empty for any other image."""
    base: Base


@dataclass(frozen=True)
class Image:
    """A pushed image: its digest, its ports, and whether it has its own HEALTHCHECK."""

    digest: str
    """`registry/app@sha256:…`"""
    ports: list[str]
    """`8080/tcp`, …, the one that PORT names first; that is one of TCP, where the image names any."""
    has_healthcheck: bool
    volumes: list[str]
    """Folders that the image declares as volumes; each container has its own of each."""
    shell_command: str
    """Its own command, where that is a line for its shell and the image has no entry point; else empty."""


class EngineFacts(NamedTuple):
    """Facts about an engine."""

    version: tuple[int, ...]
    """The newest version of its API that it speaks, as (1, 41)."""
    system: str
    """`linux`"""
    architecture: str
    """`amd64`, `arm64`, …"""


class Engine:
    """A client of an engine; `url` is empty for the default (`DOCKER_HOST`, `/var/run/docker.sock`)."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self.answering():
            options = {"timeout": _ENGINE_IDLE_SECONDS, "version": "auto"}
            self.api = docker.DockerClient(url, **options).api if url else docker.from_env(**options).api

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn connection errors of the SDK in the block into `NapError`."""
        try:
            yield
        except APIError:
            raise
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise NapError(
                f"the Docker Engine at {self.url or 'its usual place'} does not answer",
                words=[plain(str(error))[:300]],
                advice="`nap status` shows what is down; on a single machine `nap up` starts it. Then push again.",
            ) from error

    def processors(self) -> int:
        """Return the number of processors for containers."""
        try:
            return int(self.api.info()["NCPU"])
        except (OSError, DockerException) as error:
            raise NapError(f"the engine did not report its number of processors: {error}") from error

    def cgroup_driver(self) -> Driver:
        """Return the cgroup driver."""
        try:
            return "systemd" if self.api.info()["CgroupDriver"] == "systemd" else "cgroupfs"
        except (OSError, DockerException) as error:
            raise NapError(f"the engine did not report its cgroup driver: {error}") from error

    def about(self) -> EngineFacts:
        """Return the facts about this engine."""
        try:
            with self.answering():
                version = self.api.version()
        except APIError as error:
            raise NapError(f"the engine did not report its version: {error.explanation}") from error
        number = tuple(int(part) for part in str(version["ApiVersion"]).split("."))
        return EngineFacts(number, str(version.get("Os", "")), str(version.get("Arch", "")))

    def has_containerd_store(self) -> bool:
        """Return whether images are stored in containerd."""
        try:
            return any("io.containerd.snapshotter" in each for each in dict(self.api.info()["DriverStatus"]).values())
        except (OSError, DockerException) as error:
            raise NapError(f"the engine did not report its storage driver: {error}") from error

    def network(self, bridge: str) -> str:
        """Create the network of apps and builds if it is missing, on which containers cannot reach each other; return
        its interface.

        `bridge` is the name of the interface if the network is created.
        """
        isolated = {"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.name": bridge}
        try:
            with self.answering():
                if not any(each["Name"] == NETWORK for each in self.api.networks(names=[NETWORK])):
                    with suppress(APIError):  # another may make it at the same time, and has the interface's name then
                        self.api.create_network(NETWORK, "bridge", isolated)
                found = self.api.inspect_network(NETWORK)
        except APIError as error:
            raise NapError(f"the engine cannot create the network {NETWORK}: {error.explanation}") from error
        return str((found.get("Options") or {}).get("com.docker.network.bridge.name") or f"br-{found['Id'][:12]}")

    def image(self, name: str) -> LocalImage | None:
        """Return the image that the engine uses for this name or ID; None if it has none."""
        try:
            with self.answering():
                found = self.api.inspect_image(name)
        except APIError as error:
            if error.status_code == 404:
                return None
            raise NapError(f"the engine cannot inspect image {name}: {plain(str(error.explanation))}") from error
        config = found.get("Config") or {}
        variables = dict(each.partition("=")[::2] for each in config.get("Env") or [])
        return LocalImage(
            found["Id"],
            (*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ())),
            (config.get("Labels") or {}).get("nap.app", ""),
            Base(variables, tuple(config.get("OnBuild") or ())),
        )

    def pull(self, name: str, channel: Channel) -> str:
        """Pull a base image, with progress in the channel; return the reason of a failure, or an empty text."""
        repository, tag = parse_repository_tag(name)
        try:
            with self.answering(), channel.waiting(f"pulling {name}"):
                for item in self.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                    if "error" in item:
                        return _without_body(item["error"])
                    for line in text_of(item).splitlines():
                        channel.detail(plain(line))
        except APIError as error:
            return _without_body(error.explanation or str(error))
        return ""

    def take_in(self, files: IO[bytes], name: str, app: str) -> None:
        """Import the files of a tar as an image, for a build of `app` to copy from."""
        repository, tag = parse_repository_tag(name)
        try:
            with self.answering():
                self.api.import_image_from_data(files, repository, tag, [f"LABEL nap.app={app}"])
        except APIError as error:
            raise NapError(
                f"{app}: the engine cannot import the files that ADD downloads: {error.explanation}"
            ) from error

    def forget(self, repository: str, app: str) -> None:
        """Remove the images of this repository that were made for builds of `app`."""
        try:
            with self.answering():
                for image in self.api.images(name=repository, filters={"label": f"nap.app={app}"}):
                    self.api.remove_image(image["Id"], force=True)
        except APIError as error:
            if error.status_code not in {404, 409}:  # it went, or a container of a build uses it
                raise NapError(f"{app}: the engine cannot remove an image: {error.explanation}") from error

    def push(self, tag: str, app: str, channel: Channel, login: Login | None = None) -> Image:
        """Push `tag` and report it; without a `login`, docker's own configuration has the login.

        Raises `NapError` if the registry refuses or does not answer.
        """
        auth = login.of_docker if login else None
        repository, _, version = tag.rpartition(":")
        registry = repository.partition("/")[0]
        layers: dict[str, str] = {}
        digest = ""
        try:
            with self.answering(), channel.waiting(f"pushing to {registry}"):
                for item in self.api.push(repository, tag=version, stream=True, decode=True, auth_config=auth):
                    if "error" in item:
                        raise _push_failed(app, registry, item["error"])
                    if "id" in item:
                        layers[item["id"]] = item.get("status", "")
                    digest = _digest(item, version) or digest
                about = self.api.inspect_image(tag)
        except APIError as error:
            raise _push_failed(app, registry, error.explanation or str(error)) from error
        if not digest:
            raise _push_failed(app, registry, "the registry returned no digest")
        new = sum(status == "Pushed" for status in layers.values())
        channel.step(
            f"Image {repository}@{digest[:19]}… ({_size(about['Size'])}, {new} of {_count(len(layers), 'layer')} new)"
        )
        config = about["Config"]
        return Image(
            f"{repository}@{digest}",
            _ports(config),
            bool(config.get("Healthcheck")),
            sorted(config.get("Volumes") or ()),
            _shell_command(config),
        )


def _digest(item: dict[str, Any], tag: str) -> str:
    """Return the digest in an item of a push's output; empty if it has none.

    Each engine prints it in the last status line. `aux` has it only if images are not stored in containerd, which is
    the default of Docker 29 (moby, daemon/containerd/image_push.go).
    """
    match = re.fullmatch(rf"{re.escape(tag)}: digest: (sha256:[0-9a-f]{{64}}) size: [0-9]+", item.get("status", ""))
    return str(item.get("aux", {}).get("Digest", "")) or (match[1] if match else "")


def _shell_command(config: dict[str, Any]) -> str:
    """Return the line of `CMD line`, which the builder passes to /bin/sh."""
    match config.get("Entrypoint"), config.get("Cmd"):
        case None | [], ["/bin/sh", "-c", str(line)] if line.isprintable():
            return line
    return ""


def _without_body(reason: str) -> str:
    """Return the engine's reason for a failed pull without the body of a response: the body may be from a redirect of
    the registry, which the pusher must not read."""
    return plain(_BODY.sub("", reason).replace("\n", " "))[:300]


def _push_failed(app: str, registry: str, reason: str) -> NapError:
    return NapError(
        f"{app}: the image was built, but could not be pushed to the registry at {registry}: {plain(reason)}",
        advice="Check that the registry runs and accepts pushes (one machine: nap status), then push again.",
    )


@contextmanager
def engine_at(url: str) -> Iterator[Engine]:
    """A client of the engine at `url`, or at the default address, for the block."""
    engine = Engine(url)
    try:
        yield engine
    finally:
        engine.api.close()


def text_of(item: dict[str, Any]) -> str:
    """Return the text of an output item: lines or parts of lines."""
    if "stream" in item:
        return str(item["stream"])
    if "status" in item and "progressDetail" not in item:  # a base image being pulled
        return f"{item['status']}\n"
    return ""


def _ports(config: dict[str, Any]) -> list[str]:
    """Return the exposed ports, first that of PORT or else the lowest TCP port.

    Without an exposed TCP port, that of PORT is added. An image that was not made from a Dockerfile can have invalid
    ports; these are skipped.
    """
    known = filter(None, map(_PORT.fullmatch, config.get("ExposedPorts") or {}))
    ordered = sorted(known, key=lambda match: (match[2] != "tcp", int(match[1])))
    exposed = [match[0] for match in ordered if _is_port(match)]
    named = next((v.partition("=")[2] + "/tcp" for v in config.get("Env") or [] if v.startswith("PORT=")), "")
    if not exposed or not exposed[0].endswith("/tcp"):
        match = _PORT.fullmatch(named)
        return [*([named] if match and _is_port(match) else []), *exposed]
    if named in exposed:
        exposed.remove(named)
        exposed.insert(0, named)
    return exposed


def _is_port(match: re.Match[str]) -> bool:
    return 0 < int(match[1]) < 65536


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
