"""Secrets go through all of nap, and are where they belong alone: no argument list, no environment, no other file."""

import json
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.engine.login import login_of
from tests.conftest import free_address, fresh_nap
from tests.issued import Issued, issued
from tests.nap import Nap, Pusher
from tests.secret_marks import Marks, Seen, files_with, marked, watch

DOCKERFILE = f"""\
FROM nap/busybox
ARG TOKEN={marked("argumentofbuild")}
ENV BAKED={marked("baked")}
RUN test -n "$TOKEN"
COPY . /www
EXPOSE 8080
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
"""
PROCFILE = 'web: exec httpd -f -p 8080 -h /www\nrelease: test "$ARGUMENT" && test "$INPUT"\n'
APP_JSON = json.dumps({"scripts": {"postdeploy": 'test "$ARGUMENT" && test "$INPUT"'}})

IN_BUILD = {"argumentofbuild", "baked"}


def key_mark(certificate: Issued) -> bytes:
    """A line of the key that nothing else has."""
    return certificate.key_pem().splitlines()[2]


@pytest.fixture(scope="module")
def told(short_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Told"]:
    """All of it done once, under watch."""
    certificate = issued("", ["www.secrets.test"])
    marks = Marks({"key": key_mark(certificate)})
    nap = fresh_nap(short_folder / "secrets", NAP_ROUTER_HTTPS=free_address())
    folder = tmp_path_factory.mktemp("pusher")
    since = time.time()
    with watch(marks) as seen:
        nap.run("up")
        login = login_of(nap.state, nap.settings)
        assert login
        marks.others["password"] = login.password.encode()
        nap.import_busybox()
        pusher = Pusher(nap, "secrets", folder)
        pusher.commit(Dockerfile=DOCKERFILE, Procfile=PROCFILE, app_json=APP_JSON)
        assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
        given(pusher, "config:set", "secrets", "INPUT", stdin=marked("input").encode())
        given(pusher, "config:set", "secrets", f"ARGUMENT={marked('argument')}")
        pushed = pusher.push()
        assert pushed.status == 0, pushed.text
        given(pusher, "config:set", "secrets", "OTHER=1")
        given(pusher, "run", "secrets", "true")
        nap.run("domains:add", "secrets", "www.secrets.test")
        given(pusher, "certs:add", "secrets", stdin=certificate.pem + certificate.key_pem())
        nap.run("doctor")
    yield Told(nap, marks, seen, since)
    nap.run("down")


class Told:
    """What was seen, and where to look further."""

    def __init__(self, nap: Nap, marks: Marks, seen: set[Seen], since: float) -> None:
        self.nap, self.marks, self.seen, self.since = nap, marks, seen, since


def given(pusher: Pusher, *words: str, stdin: bytes = b"") -> None:
    done = subprocess.run(pusher.ssh_words(*words), input=stdin, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_a_secret_in_a_process_is_seen() -> None:
    marks = Marks()
    with watch(marks) as seen:
        words = [sys.executable, "-c", "import time; time.sleep(0.3)", marked("control")]
        subprocess.run(words, env={"SECRET": marked("environmental")}, check=True)
    assert {(each.secret, each.where) for each in seen} == {("control", "arguments"), ("environmental", "environment")}


def test_no_secret_is_in_arguments_or_an_environment_of_a_process(told: Told) -> None:
    of_ssh = {each for each in told.seen if each.words.startswith("ssh ")}
    assert {(each.secret, each.where) for each in of_ssh} == {("argument", "arguments")}, "the pusher's own machine"
    gates = {each for each in told.seen if "/nap-gate " in each.words}
    assert {(each.secret, each.where) for each in gates} <= {("argument", "environment")}, "what sshd was asked"
    assert told.seen - of_ssh - gates == set()


def test_secrets_are_in_files_of_what_keeps_them_alone(told: Told) -> None:
    root = told.nap.state.root
    engines = {root / "engine", root / "run/engine"}
    found = files_with(told.marks, [root], told.since, [*engines])
    kept: dict[str, set[str]] = {}
    for path, names in found.items():
        kept.setdefault(path.relative_to(root).parts[0], set()).update(names)
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
    assert kept == {
        "etcd": {"argument", "input", "in base64", "key"},  # what config and certs gave
        "front": {"key"},  # with which Caddy starts again
        "run": {"password"},  # of the registry
        "registry": IN_BUILD,  # the image's own configuration
        "logs": {"argumentofbuild"},  # the step that uses it, as the build shows it
    }


def test_secrets_are_in_no_file_outside(told: Told) -> None:
    places = [Path(tempfile.gettempdir()), Path.home(), Path("/run"), Path("/var/log")]
    # What tests have there: their naps, and what they push.
    tests = [places[0] / "nap-*", places[0] / "pytest-of-*"]
    assert files_with(told.marks, places, told.since, tests, "-size", "-4M") == {}


def test_images_have_what_their_dockerfile_says_alone(told: Told) -> None:
    images = set(told.nap.docker("images", "--quiet", "--no-trunc").split())
    said = "".join(told.nap.docker(*words, image) for image in images for words in (["inspect"], HISTORY))
    assert told.marks.within(said.encode()) == IN_BUILD


HISTORY = ["history", "--no-trunc"]


def test_the_engine_tells_of_variables_in_the_instances_environment_alone(told: Told) -> None:
    for container in told.nap.docker("ps", "--all", "--quiet").split():
        (about,) = json.loads(told.nap.docker("inspect", container))
        variables = about["Config"].pop("Env")
        assert told.marks.within(json.dumps(variables).encode()) == {"argument", "input", "baked"}
        assert told.marks.within(json.dumps(about).encode()) == set()
