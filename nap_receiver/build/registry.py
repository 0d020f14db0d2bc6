"""The HTTP API of the registry (OCI Distribution Specification), for calls that the engine does not have."""

import base64
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import requests

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import serves
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine.login import login_of

_REQUEST_SECONDS = 5
_GONE = {202, 404}
_FORBIDDEN = {401, 403, 405}
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)


class Unwilling(NapError):
    """The registry does not allow deletes."""


class _Named(msgspec.Struct):
    digest: str


class ImageManifest(msgspec.Struct):
    """The parts of an image or of an index of images (OCI Image Format Specification, manifest.md)."""

    manifests: list[_Named] = []
    layers: list[_Named] = []
    config: _Named | None = None


def manifest_in(content: bytes) -> ImageManifest:
    """Parse a manifest. Raises `NapError` if it is not valid."""
    try:
        return msgspec.json.decode(content, type=ImageManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise NapError(f"the registry sent a manifest that is not valid: {error}") from error


class Registry:
    """A client of one registry; use `registry_of`."""

    def __init__(self, address: str, session: requests.Session, schemes: list[str]) -> None:
        self.address = address
        self._session, self._schemes = session, schemes

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request and return the response; without TLS if the registry has none. Raises `NapError` without a
        response."""
        while True:
            try:
                url = f"{self._schemes[0]}://{self.address}/v2/{path}"
                return self._session.request(method, url, timeout=_REQUEST_SECONDS, **options)
            except requests.exceptions.SSLError as error:
                if not self._schemes[1:]:
                    raise NapError(f"the registry at {self.address} does not answer over TLS: {error}") from error
                self._schemes = self._schemes[1:]
            except requests.RequestException as error:
                raise NapError(f"the registry at {self.address} does not answer") from error

    def delete(self, image: str) -> None:
        """Delete the manifest of an image (`registry/app@sha256:…`) and its tags, if the image is in this registry.

        Raises `Unwilling` if the registry does not allow deletes, and `NapError` if the delete fails.
        """
        address, _, named = image.partition("/")
        if address != self.address:  # of a time when the setting was another
            return
        repository, _, digest = named.partition("@")
        reply = self.ask("DELETE", f"{repository}/manifests/{digest}")
        if reply.status_code not in _GONE:
            kind = Unwilling if reply.status_code in _FORBIDDEN else NapError
            raise kind(f"the registry at {self.address} answers {reply.status_code} {reply.reason}")

    def copy(self, image: str, app: str) -> str:
        """Copy an image (`registry/old@sha256:…`) to the repository of `app`; return its new name.

        Only manifests are sent: layers are mounted. For a missing image, only the name is returned.
        """
        address, _, named = image.partition("/")
        repository, _, digest = named.partition("@")
        if address == self.address:
            self._copy_manifest(repository, app, digest)
        return f"{self.address}/{app}@{digest}"

    def _copy_manifest(self, source: str, target: str, digest: str) -> None:
        found = self.ask("GET", f"{source}/manifests/{digest}", headers={"Accept": ", ".join(_MANIFESTS)})
        if found.status_code == requests.codes.not_found:
            return
        self._require(found, requests.codes.ok)
        manifest = manifest_in(found.content)
        for each in manifest.manifests:
            self._copy_manifest(source, target, each.digest)
        for blob in {each.digest for each in [manifest.config, *manifest.layers] if each}:
            mounted = self.ask("POST", f"{target}/blobs/uploads/", params={"mount": blob, "from": source})
            self._require(mounted, requests.codes.created)
        kind = {"Content-Type": found.headers["Content-Type"]}
        put = self.ask("PUT", f"{target}/manifests/{digest}", data=found.content, headers=kind)
        self._require(put, requests.codes.created)

    def _require(self, reply: requests.Response, status: int) -> None:
        if reply.status_code != status:
            raise NapError(
                f"the registry at {self.address} answers {reply.status_code} {reply.reason} to "
                f"{reply.request.method} {reply.request.path_url}"
            )


@contextmanager
def registry_of(state: State, settings: Settings) -> Iterator[Registry]:
    """A client of the settings' registry, for the block; it logs in to nap's own."""
    schemes = ["http"] if settings.is_single_machine else ["https", "http"]
    with requests.Session() as session:
        session.trust_env = False  # the engine goes there without these proxies and passwords too
        if login := login_of(state, settings):
            session.auth = (login.user, login.password)
        yield Registry(settings.registry.address, session, schemes)


def registry_answers(state: State, settings: Settings) -> bool:
    """Return whether nap's own registry answers within 2 s, with its login."""
    request = urllib.request.Request(f"http://{settings.registry.address}/v2/")
    if login := login_of(state, settings):
        encoded = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return serves(request)
