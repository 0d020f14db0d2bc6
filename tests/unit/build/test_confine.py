"""Which images and addresses a build may be led to."""

import ipaddress
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import IO

import pytest

from nap_receiver.build.confine import confined, copying, host_of, is_named
from nap_receiver.build.dockerfile import (
    CLASSIC,
    DOCKERFILE_1_2,
    NEWEST,
    Frontend,
    images_and_downloads,
    instructions_of,
)
from nap_receiver.build.download import NotDownloaded, download
from nap_receiver.core.addresses import ForbiddenAddress, require_elsewhere, require_public, resolved
from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import BuildSettings, Networks, RegistrySettings, Settings
from nap_receiver.engine.client import Engine, LocalImage
from nap_receiver.git.checkout import DOCKERFILE, Checkout
from nap_receiver.model.base_image import Base

ID = "sha256:" + "3fa2" * 16
DIGEST = "sha256:" + "ab" * 32
LOOPBACK = Settings(build=BuildSettings(private_networks=Networks("127.0.0.0/8"), download_size=1000))


class Known(Engine):
    """An engine that has some images, and can pull others; what it was asked to pull and took in."""

    def __init__(self, *images: LocalImage, elsewhere: tuple[LocalImage, ...] = ()) -> None:
        self.images, self.elsewhere = list(images), elsewhere
        self.pulled: list[str] = []
        self.taken_in: list[dict[str, bytes]] = []
        self.forgotten = 0

    def image(self, name: str) -> LocalImage | None:
        name = name.removeprefix("docker.io/library/")
        whole = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        by_name = [each for each in self.images if whole in each.names]
        by_id = [each for each in self.images if each.identity.removeprefix("sha256:").startswith(name)]
        return next(iter([*by_name, *by_id]), None)

    def pull(self, name: str, channel: Channel) -> str:
        self.pulled.append(name)
        found = [each for each in self.elsewhere if name in each.names]
        self.images += found
        return "" if found else "not found"

    def take_in(self, files: IO[bytes], name: str, app: str) -> None:
        with tarfile.open(fileobj=files) as tar:
            members = [(each, tar.extractfile(each)) for each in tar]
            self.taken_in.append({each.name: content.read() for each, content in members if content})

    def forget(self, repository: str, app: str) -> None:
        self.forgotten += 1


def local(*names: str, app: str = "", identity: str = ID, base: Base | None = None) -> LocalImage:
    return LocalImage(identity, names, app, base or Base())


PYTHON = local("python:3", "python@" + DIGEST)
MINE = local("127.0.0.1:15000/shop:1", app="shop")
OTHERS = local("127.0.0.1:15000/other:1", app="other")


@contextmanager
def channel() -> Iterator[Channel]:
    with tempfile.TemporaryFile() as file, Channel(file.fileno()) as channel:
        yield channel


def built(dockerfile: str, engine: Engine, settings: Settings | None = None, frontend: Frontend = CLASSIC) -> str:
    """The Dockerfile that the engine would get."""
    checkout = Checkout("1" * 40, 0, manifests={DOCKERFILE: dockerfile.encode()})
    with channel() as told, confined(checkout, "shop", engine, settings or Settings(), told, frontend):
        return checkout.manifests[DOCKERFILE].decode()


@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM python:3",
        "ARG V=3\nFROM python:$V",
        f"FROM python@{DIGEST}",
        "FROM docker.io/library/python:3",
        "FROM 127.0.0.1:15000/shop:1",
        "FROM python:3\nCOPY --from=127.0.0.1:15000/shop:1 /a /b",
        "FROM scratch\nADD a.tar /",
    ],
)
def test_what_anybody_may_use_and_what_is_the_apps_own_is_built_unchanged(dockerfile: str) -> None:
    engine = Known(PYTHON, MINE, OTHERS)
    assert built(dockerfile, engine) == dockerfile
    assert (engine.pulled, engine.taken_in) == ([], [])


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1:15000/other:1",
        "127.0.0.1:15000/other",
        "127.0.0.1:15000/shop/other:1",
        "127.0.0.1:15000/other@" + DIGEST,
        "${X:-127.0.0.1:15000/other:1}",
        "cached/other:1",  # the same image by a name that somebody gave it
    ],
)
@pytest.mark.parametrize("how", ["FROM {}", "FROM scratch\nCOPY --from={} / /", "FROM {} AS a\nFROM a"])
def test_another_apps_image_is_refused(name: str, how: str) -> None:
    if "$" in name and "--from" in how:
        return  # no builder expands it there
    engine = Known(PYTHON, OTHERS, local("cached/other:1", app="other"))
    with pytest.raises(NapError, match=r"line \d: .* is an image of another app"):
        built(how.format(name), engine)
    assert engine.pulled == []


def test_another_apps_image_is_refused_that_comes_from_another_registry_or_through_a_trigger() -> None:
    elsewhere = local("evil.example/x:1", app="other")
    with pytest.raises(NapError, match="another app"):
        built("FROM evil.example/x:1", Known(elsewhere=(elsewhere,)))
    base = local("base:1", base=Base(triggers=("COPY --from=127.0.0.1:15000/other:1 / /",)))
    with pytest.raises(NapError, match=r"line 1: .* another app"):
        built("FROM base:1", Known(base, OTHERS))


def test_what_somebody_pushed_to_the_registry_by_hand_stays_usable_by_its_other_name() -> None:
    engine = Known(local("python:3", "127.0.0.1:15000/by-hand:1"))
    assert built("FROM python:3", engine) == "FROM python:3"


@pytest.mark.parametrize("name", ["3fa2", "3fa23fa23fa2", "3fa2" * 16, ID, "sha256:3fa2"])
def test_an_image_is_not_found_by_its_id(name: str) -> None:
    for how in ("FROM {}", "FROM scratch\nCOPY --from={} / /"):
        with pytest.raises(NapError, match=r"cannot be pulled: not found|is not a valid image name"):
            built(how.format(name), Known(OTHERS, PYTHON))


def test_a_name_that_looks_like_an_id_is_pulled() -> None:
    engine = Known(OTHERS, elsewhere=(local("3fa2:latest", "3fa2"),))
    assert built("FROM 3fa2", engine) == "FROM 3fa2"
    assert engine.pulled == ["3fa2"]


@pytest.mark.parametrize("name", ["$X", "a b", "../containers/json", "a/B", "a" * 600, "-"])
def test_what_is_no_images_name_is_refused(name: str) -> None:
    with pytest.raises(NapError, match="is not a valid image name"):
        built(f"FROM scratch\nCOPY --from='{name}' / /", Known())


@pytest.mark.parametrize(
    "host", ["127.0.0.1:5000", "127.1:5000", "localhost", "0x7f.1:5000", "169.254.169.254", "[::1]:80"]
)
def test_a_registry_on_the_machine_itself_is_not_pulled_from(host: str) -> None:
    engine = Known()
    with pytest.raises(NapError, match=r"cannot be pulled: .*(nap machine itself|metadata)"):
        built(f"FROM {host}/x", engine)
    assert engine.pulled == []


def test_a_private_registry_is_pulled_from_and_one_on_the_machine_where_the_operator_allows_it() -> None:
    image = local("10.1.2.3:5000/x", "10.1.2.3:5000/x:latest", "127.0.0.1:5000/x", "127.0.0.1:5000/x:latest")
    for name, settings in (("10.1.2.3:5000/x", Settings()), ("127.0.0.1:5000/x", LOOPBACK)):
        engine = Known(elsewhere=(image,))
        assert built(f"FROM {name}", engine, settings) == f"FROM {name}"
        assert engine.pulled == [name]


def test_what_cannot_be_known_before_the_build_is_refused() -> None:
    for text in ("FROM a:$TARGETARCH", "FROM python:3\nADD $TARGETARCH /", "FROM python:3\nADD https://h/${A#b} /"):
        with pytest.raises(NapError, match=r"line \d: .* is not known before the build"):
            built(text, Known(PYTHON))


def test_the_registry_is_that_of_the_settings() -> None:
    settings = Settings(registry=RegistrySettings("reg.example:5000"))  # type: ignore[arg-type]
    image = local("reg.example:5000/other:1")
    with pytest.raises(NapError, match="another app"):
        built("FROM REG.example:5000/other:1", Known(image), settings)


def test_a_host_is_told_from_a_path_as_the_engine_does_it() -> None:
    names = ["a", "a/b", "a.b/c", "a:1/c", "localhost/c", "A/c", "a:1"]
    hub = "docker.io"
    assert [host_of(name) for name in names] == [hub, hub, "a.b", "a:1", "localhost", "A", hub]
    assert is_named("library/python:3", PYTHON)
    assert is_named(f"python:4@{DIGEST}", PYTHON)
    assert not is_named("python", PYTHON)
    assert not is_named("no name", PYTHON)


class Files(BaseHTTPRequestHandler):
    """A server of some files and redirects."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        body = b"x" * 2000 if self.path == "/large" else f"this is {self.path}".encode()
        self.send_response(404 if self.path == "/none" else 200)
        self.send_header("Last-Modified", "Thu, 01 Jan 1970 00:00:07 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_add_of_a_url_becomes_a_copy_of_what_nap_downloaded(files: str) -> None:
    engine = Known(PYTHON)
    digest = "45ac51f86a5ab5ba7e9e33d9c0b0f9f9e3a6b2b1a4c4c0c6a9b9f3f7c1d2e3f4"
    add = f"ADD --chown=1:2 here.txt {files}/a-$V.tar \\\n  {files}/b /d/"
    text = f"FROM python:3\nENV V=1\n{add}\nADD {files}/c /e\nRUN x"
    rewritten = built(text, engine, LOOPBACK).split("\n")
    image = rewritten[3].partition("--from=")[2].partition(" ")[0]
    assert rewritten == [
        "FROM python:3",
        "ENV V=1",
        'ADD --chown=1:2 ["here.txt", "/d/"]',
        f'COPY --from={image} --chown=1:2 ["/0/*", "/1/*", "/d/"]',
        f'COPY --from={image} ["/2/file", "/e"]',
        "RUN x",
    ]
    assert engine.taken_in == [{"0/a-1.tar": b"this is /a-1.tar", "1/b": b"this is /b", "2/file": b"this is /c"}]
    assert engine.forgotten == 2
    with pytest.raises(NapError, match="the file has checksum sha256:"):
        built(f"FROM python:3\nADD --checksum=sha256:{digest} {files}/c /e", Known(PYTHON), LOOPBACK)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{}/none", "the server answers 404 Not Found"),
        ("{}/large", "build.download_size allows"),
        ("{}/to/http://169.254.169.254/latest", "link-local"),
        ("{}/to/http://10.0.0.1/", "private network"),
        ("{}/to/file:///etc/passwd", "not allowed"),
        ("{}/to/ftp://h/x", "unknown url type"),
        ("{}/to/{}/to/http://[::1]:1/", "nap machine itself"),
        ("{}/", "does not end in a file name"),
        ("git@h.example:a.git", "ADD of a git repository is not supported"),
        ("https://h.example/a.git#main", "ADD of a git repository is not supported"),
        ("ssh://h.example/a", "ADD of a git repository is not supported"),
    ],
)
def test_a_download_that_fails_or_leads_astray_says_why(files: str, source: str, reason: str) -> None:
    with pytest.raises(NapError, match=f"shop: the build failed in the Dockerfile: line 2: .*{reason}"):
        built(f"FROM python:3\nADD {source.format(files, files)} /d/", Known(PYTHON), LOOPBACK)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0177.1", "0x7f000001", "2130706433", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_without_the_operators_leave_nothing_is_downloaded_from_loopback(files: str, host: str) -> None:
    url = files.replace("127.0.0.1", host)
    with tempfile.TemporaryFile() as into, pytest.raises(NotDownloaded, match="nap machine itself"):
        download(url, into, [], 1000)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::",
        "::10.0.0.1",
    ],
)
def test_private_addresses_are_no_place_to_download_from(address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        require_public(ipaddress.ip_address(address))
    require_public(ipaddress.ip_address(address), [ipaddress.ip_network(address)])


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "2002:7f00:1::",
    ],
)
def test_addresses_of_the_machine_and_its_link_are_forbidden_for_all_that_the_engine_does(address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        require_elsewhere(ipaddress.ip_address(address))


def test_public_addresses_are_taken() -> None:
    for address in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::93.184.215.14"):
        require_public(ipaddress.ip_address(address))
    assert resolved("0x7f.1", 80) == [ipaddress.ip_address("127.0.0.1")]
    with pytest.raises(OSError, match="is not a host name"):
        resolved("a" * 64 + "\0", 80)


def test_rewriting_keeps_what_a_word_says_and_all_other_lines() -> None:
    text = """\
# escape=`
FROM a
ENV Q=`$V
ADD --chown="a b" ["it`'s", "http://h/$Q", "/d d/"]
# \xe9
"""
    raw = text.encode("latin-1")
    downloads = list(images_and_downloads(instructions_of(raw, "shop", 1000), "`", lambda name, line: Base()))
    assert downloads[0].sources == ("it's", "http://h/$V")
    assert copying(raw, downloads, "i:1", "`").decode("latin-1").split("\n") == [
        *text.split("\n")[:3],
        """ADD --chown=a` b ["it`'s", "/d d/"]""",
        'COPY --from=i:1 --chown=a` b ["/0/*", "/d d/"]',
        *text.split("\n")[4:],
    ]


SYNTAX = local("docker/dockerfile:1")
LINK = "FROM python:3\nCOPY --link a b\n"
HEREDOC = "FROM python:3\nRUN <<E\nls\nE\n"


@pytest.mark.parametrize(
    ("dockerfile", "frontend", "wanted"),
    [
        ("# syntax=docker/dockerfile:1\nFROM python:3\n", NEWEST, "# syntax=docker/dockerfile:1\nFROM python:3\n"),
        ("# syntax=docker/dockerfile:1.4\nFROM python:3\n", NEWEST, "FROM python:3\n"),
        (HEREDOC, NEWEST, HEREDOC),
        (HEREDOC, DOCKERFILE_1_2, "# syntax=docker/dockerfile:1\n" + HEREDOC),
        (
            "FROM python:3\nCOPY --link a b\n",
            DOCKERFILE_1_2,
            "# syntax=docker/dockerfile:1\nFROM python:3\nCOPY --link a b\n",
        ),
        ("# syntax=docker/dockerfile:1.4\nFROM python:3\n", CLASSIC, "# syntax=docker/dockerfile:1.4\nFROM python:3\n"),
    ],
)
def test_what_reads_the_dockerfile_is_what_it_asks_for_or_needs_and_can_be_had(
    dockerfile: str, frontend: Frontend, wanted: str
) -> None:
    assert built(dockerfile, Known(PYTHON, elsewhere=(SYNTAX,)), frontend=frontend) == wanted


def test_what_nobody_can_read_is_refused_before_the_build() -> None:
    with pytest.raises(NapError, match=r"line 2: this engine is too old for a here-document, and docker/dockerfile:1"):
        built(HEREDOC, Known(PYTHON), frontend=DOCKERFILE_1_2)
    with pytest.raises(NapError, match=r"line 2: a here-document needs BuildKit, and this nap builds without it"):
        built(HEREDOC, Known(PYTHON, elsewhere=(SYNTAX,)))


def test_another_apps_image_is_no_syntax_and_reaches_no_here_document() -> None:
    theirs = local("docker/dockerfile:9", app="other")
    assert (
        built("# syntax=docker/dockerfile:9\nFROM python:3\n", Known(PYTHON, theirs), frontend=NEWEST)
        == "FROM python:3\n"
    )
    hidden = "FROM python:3\nRUN <<E\nE\nFROM 127.0.0.1:15000/other:1\nRUN <<E\nE\n"
    with pytest.raises(NapError, match=r"line 4: .* is an image of another app"):
        built(hidden, Known(PYTHON, OTHERS), frontend=NEWEST)


def test_a_download_and_a_syntax_are_put_in_together(files: str) -> None:
    engine = Known(PYTHON, elsewhere=(SYNTAX,))
    text = f"FROM python:3\nADD {files}/a /a\nRUN <<E\nls\nE\n"
    lines = built(text, engine, LOOPBACK, DOCKERFILE_1_2).split("\n")
    assert lines[0] == "# syntax=docker/dockerfile:1"
    assert lines[2].startswith("COPY --from=nap-added:")
    assert lines[3:] == ["RUN <<E", "ls", "E", ""]
