"""Isolate builds from images of other apps, and from services of the nap machine and its network.

The Dockerfile is checked before the engine gets it, for every builder:

- Each image that it names must be public or one of the app itself. Missing images are pulled first, so that the engine
  builds from the images that were checked.
- nap downloads what ADD would have the engine download (`download`), makes an image of it, and copies from there. It is
  an image and not a file of the build context, because `COPY . .` would copy that too.
"""

import hashlib
import json
import re
import secrets
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from nap_receiver.build.dockerfile import (
    CLASSIC,
    NO_ARGUMENTS,
    Download,
    Frontend,
    NotForBuilds,
    Unreadable,
    escape_of,
    images_and_downloads,
    instructions_of,
    refused,
    syntax_of,
)
from nap_receiver.build.dockerfile_lines import Instruction, with_syntax
from nap_receiver.build.download import Downloaded, NotDownloaded, download
from nap_receiver.core.addresses import ForbiddenAddress, require_elsewhere, resolved
from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import Settings
from nap_receiver.engine.client import Engine, LocalImage
from nap_receiver.git.checkout import DOCKERFILE, Checkout
from nap_receiver.model.base_image import Base

SYNTAX = "docker/dockerfile:1"
"""What reads a Dockerfile that the engine itself is too old for."""

ADDED = "nap-added"
"""What the images are called that hold what ADD downloads, while the build runs."""

# github.com/distribution/reference, reference.go
_HOST = r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<path>(?:{_HOST}/)?{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
_LONGEST_NAME = 512
_HUB = "docker.io"
_HTTPS_PORT = 443


@contextmanager
def confined(
    checkout: Checkout,
    app: str,
    engine: Engine,
    settings: Settings,
    channel: Channel,
    frontend: Frontend = CLASSIC,
    arguments: Mapping[str, str] = NO_ARGUMENTS,
) -> Iterator[list[Instruction]]:
    """Check the Dockerfile, and replace its downloads by copies, for the block; yield its original instructions.

    Raises `NapError` if the Dockerfile breaks a rule, if that is not known before the build, or if it needs more than
    the `frontend` has and nap can get.
    """
    text = checkout.manifests[DOCKERFILE]
    escape = escape_of(text)
    instructions = instructions_of(text, app, settings.build.dockerfile_size)
    bases = _Bases(app, engine, settings, channel)
    syntax = _syntax(text, instructions, frontend, bases, app, channel)
    try:
        downloads = list(images_and_downloads(instructions, escape, bases.use, arguments, frontend.platform))
    except NotForBuilds as error:
        raise refused(app, str(error), "Remove it") from error
    except Unreadable as error:
        raise refused(
            app,
            f"{error} is not known before the build, so nap cannot check it",
            "Write the name of the image or the URL literally",
        ) from error
    if frontend.is_replaceable and syntax != syntax_of(text):
        checkout.manifests[DOCKERFILE] = _with_syntax(text, syntax)
    if not downloads:
        yield instructions
        return
    name = f"{ADDED}:{secrets.token_hex(16)}"
    engine.forget(ADDED, app)  # what a build left that was killed
    with tempfile.TemporaryFile() as files:
        _download(downloads, files, app, settings, channel)
        engine.take_in(files, name, app)
    try:
        rewritten = copying(text, downloads, name, escape)
        checkout.manifests[DOCKERFILE] = _with_syntax(rewritten, syntax) if frontend.is_replaceable else rewritten
        yield instructions
    finally:
        engine.forget(ADDED, app)


def _syntax(
    text: bytes, instructions: list[Instruction], frontend: Frontend, bases: "_Bases", app: str, channel: Channel
) -> str:
    """Return the image that must read the Dockerfile; empty if the builder itself can."""
    asked = syntax_of(text)
    lacking = [(each.lines[0], lacks) for each in instructions if (lacks := frontend.lacks(each))]
    if lacking and not frontend.is_replaceable:
        line, what = lacking[0]
        why = f"line {line}: {what} needs BuildKit, and this nap builds without it"
        raise refused(app, why, "Remove it, or ask the operator to enable BuildKit (build.engine)")
    if not frontend.is_replaceable or not (asked or lacking):
        return ""
    image = asked or SYNTAX
    try:
        bases.use(image, 1)
    except NapError as error:
        why = str(error).partition("line 1: ")[2]
        if lacking:
            line, what = lacking[0]
            raise refused(
                app,
                f"line {line}: this engine is too old for {what}, "
                f"and {image}, which supports it, cannot be pulled: {why}",
                "Remove it, or ask the operator for a newer engine",
            ) from error
        channel.trouble(f"# syntax={asked} is ignored: {why}")
        return ""
    return image


def _with_syntax(text: bytes, syntax: str) -> bytes:
    return with_syntax(text.decode("utf-8", "surrogateescape"), syntax).encode("utf-8", "surrogateescape")


class _Bases:
    """The images that a Dockerfile refers to, each checked once."""

    def __init__(self, app: str, engine: Engine, settings: Settings, channel: Channel) -> None:
        self._app, self._engine, self._settings, self._channel = app, engine, settings, channel
        self._known: dict[str, Base] = {}

    def use(self, name: str, line: int) -> Base:
        """Return what the build inherits from this image, after pulling it if necessary. Raises `NapError` if it is not
        allowed."""
        if name not in self._known:
            self._known[name] = self._permitted(name, f"line {line}: ").base
        return self._known[name]

    def _permitted(self, name: str, where: str) -> LocalImage:
        found = _IMAGE.fullmatch(name) if len(name) <= _LONGEST_NAME else None
        if not found:
            raise refused(self._app, f"{where}{name[:80]} is not a valid image name", "Correct it")
        host = host_of(name)
        repository = found["path"].partition("/")[2]
        registry = str(self._settings.registry.address)
        is_own = host.lower() == registry.lower() and repository == self._app
        if host.lower() == registry.lower() and not is_own:
            raise self._of_another(name, where)
        image = self._engine.image(name)
        if image is None or not is_named(name, image):
            self._pull(name, host, where)
            image = self._engine.image(name)
        if image is None or not is_named(name, image):
            raise refused(self._app, f"{where}the engine has no image named {name}", "Correct it")
        # Whatever it is called, and wherever it came from: nap labels what it builds.
        if image.app not in {"", self._app} and not is_own:
            raise self._of_another(name, where)
        return image

    def _pull(self, name: str, host: str, where: str) -> None:
        try:
            if host != _HUB:
                self._require_registry(host)
        except ForbiddenAddress as error:
            raise refused(
                self._app,
                f"{where}{name} cannot be pulled: {error}",
                "Use an image from another registry, or ask the operator to allow this one (build.private_networks)",
            ) from error
        if reason := self._engine.pull(name, self._channel):
            raise refused(
                self._app, f"{where}{name} cannot be pulled: {reason}", "Correct its name, or use a public image"
            )

    def _require_registry(self, host: str) -> None:
        """Raise `ForbiddenAddress` for a registry on the nap machine; `registry.address` has its own rule."""
        name, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "")
        try:
            addresses = resolved(name.strip("[]"), int(port or _HTTPS_PORT))
        except (OSError, OverflowError):
            return  # the engine, perhaps behind a proxy, will say
        for address in addresses:
            require_elsewhere(address, self._settings.build.private_networks.networks)

    def _of_another(self, name: str, where: str) -> NapError:
        return refused(
            self._app,
            f"{where}{name} is an image of another app",
            f"Use an image of {self._app} or a public image",
        )


def host_of(name: str) -> str:
    """Return the registry of an image name: the part before the first slash, if that is a host name."""
    first, slash, _ = name.partition("/")
    is_host = slash and (any(sign in first for sign in ".:") or first == "localhost" or first != first.lower())
    return first if is_host else _HUB


def is_named(name: str, image: LocalImage) -> bool:
    """Return whether the engine found the image by this name; the engine also accepts the beginning of an ID."""
    found = _IMAGE.fullmatch(name)
    if not found:
        return False
    path = re.sub(r"^((index\.)?docker\.io/)(library/(?=[^/]+$))?", "", found["path"])
    path = re.sub(r"^library/(?=[^/]+$)", "", path)
    return (f"{path}@{found['digest']}" if found["digest"] else f"{path}:{found['tag'] or 'latest'}") in image.names


def _download(downloads: list[Download], into: IO[bytes], app: str, settings: Settings, channel: Channel) -> None:
    """Download all URLs into a tar: the file of the nth URL into the folder n."""
    left, number = settings.build.download_size, 0
    with tarfile.open(fileobj=into, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for each in downloads:
            for url in each.urls:
                with tempfile.TemporaryFile() as file:
                    got = _downloaded(url, file, left, each, app, settings, channel)
                    header = tarfile.TarInfo(f"{number}/{_file_name(got, each, app)}")
                    header.size, header.mtime, header.mode = got.size, got.modified, 0o600
                    file.seek(0)
                    tar.addfile(header, file)
                left, number = left - got.size, number + 1
    into.seek(0)


def _downloaded(
    url: str, into: IO[bytes], most: int, each: Download, app: str, settings: Settings, channel: Channel
) -> Downloaded:
    where, advice = f"line {each.instruction.lines[0]}: ADD {url[:200]}: ", "Correct it"
    if not url.startswith(("http://", "https://")) or re.search(r"\.git(#.*)?$", url):
        raise refused(app, f"{where}ADD of a git repository is not supported", "Clone it in a RUN step")
    try:
        with channel.waiting(f"downloading {url[:200]}"):
            got = download(url, into, settings.build.private_networks.networks, most)
    except NotDownloaded as error:
        if isinstance(error.__cause__, ForbiddenAddress):
            advice = "Use a public address, or ask the operator to allow this one (build.private_networks)"
        raise refused(app, f"{where}{error}", advice) from error
    channel.detail(f"Downloaded {url[:200]} ({got.size} bytes)")
    digest = hashlib.sha256()
    into.seek(0)
    while piece := into.read(1 << 20):
        digest.update(piece)
    for asked in each.instruction.values_of("checksum"):
        if asked != f"sha256:{digest.hexdigest()}":
            raise refused(app, f"{where}the file has checksum sha256:{digest.hexdigest()}, not {asked[:80]}", advice)
    return got


def _file_name(got: Downloaded, each: Download, app: str) -> str:
    if not each.destination.endswith("/"):
        return "file"
    if not got.name:
        where = f"line {each.instruction.lines[0]}: "
        raise refused(app, f"{where}the URL does not end in a file name", "Name the file in the destination")
    return got.name


def copying(text: bytes, downloads: list[Download], image: str, escape: str) -> bytes:
    """Return the Dockerfile with COPY from `image` instead of each ADD that downloads."""
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    number, changed = 0, {}
    for each in downloads:
        folders = range(number, number + len(each.urls))
        number = folders.stop
        flags = [flag for flag in each.instruction.flags if not flag.startswith("--checksum=")]
        files = [f"/{folder}/{'*' if each.destination.endswith('/') else 'file'}" for folder in folders]
        written = []
        if each.files:
            written.append(_written("ADD", flags, [*each.files, each.destination], escape))
        written.append(_written("COPY", [f"--from={image}", *flags], [*files, each.destination], escape))
        first, last = each.instruction.lines
        changed[first] = written
        changed |= {line: [] for line in range(first + 1, last + 1)}
    whole = [new for number, line in enumerate(lines, 1) for new in changed.get(number, [line])]
    return "\n".join(whole).encode("utf-8", "surrogateescape")


def _written(name: str, flags: list[str], words: list[str], escape: str) -> str:
    """Format an instruction whose words are literal."""
    literal = [re.sub(rf"([$\"'{re.escape(escape)}])", lambda sign: escape + sign[1], word) for word in words]
    quoted = [re.sub(rf"([\s\"'{re.escape(escape)}])", lambda sign: escape + sign[1], flag) for flag in flags]
    return " ".join([name, *quoted, json.dumps(literal)])
