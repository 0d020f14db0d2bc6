"""Without the login of nap's own registry, nobody gets an image."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from nap_receiver.engine.login import login_of
from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pusher, answer, eventually


@contextmanager
def watched(password: str) -> Iterator[list[str]]:
    """What arguments and environments of processes have the password in them, looked at for as long as the block."""
    found: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            for folder in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        text = (folder / name).read_bytes()
                        if password.encode() in text:
                            found.append(f"{name}: {text!r}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def refusal(nap: Nap, *words: str, stdin: str = "") -> str:
    """What a docker command of the nap machine says that fails, run by somebody who has no login."""
    environment = os.environ | {"DOCKER_HOST": nap.engine_url, "DOCKER_CONFIG": "/nonexistent", "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        ["docker", *words], env=environment, input=stdin, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_the_engine_gets_an_image_back_with_the_login_alone(nap: Nap, pusher: Pusher) -> None:
    login = login_of(nap.state, nap.settings)
    assert login
    with watched(login.password) as found:
        commit = pusher.commit(Dockerfile=HTTPD, index_html="here")
        pushed(pusher)
        assert pusher.ssh_command("config:set", pusher.app, "A=1").returncode == 0
        assert pusher.ssh_command("ps:stop", pusher.app).returncode == 0
        eventually(lambda: not nap.containers(pusher.app), 20, "it is stopped")
        image = f"{nap.settings.registry.address}/{pusher.app}:{commit}"
        nap.docker("rmi", "--force", image)  # a stopped container is kept
        no_login = "no basic auth credentials"
        assert no_login in refusal(nap, "pull", image)
        assert no_login in refusal(nap, "build", "-", stdin=f"FROM {image}\n")
        assert no_login in refusal(nap, "build", "-", stdin=f"FROM nap/busybox\nCOPY --from={image} /www /www\n")
        catalogue = f"http://{nap.settings.registry.address}/v2/_catalog"
        assert "401 Unauthorized" in refusal(nap, "build", "-", stdin=f"FROM nap/busybox\nADD {catalogue} /\n")
        assert pusher.ssh_command("ps:start", pusher.app).returncode == 0
        (announced,) = pusher.announcements().values()
        assert isinstance(announced, dict)
        assert answer(f"http://127.0.0.1:{announced['port']}") == "here"
    assert not found

    keeper = nap.state.registry_login / "config.json"
    encoded = msgspec.json.decode(keeper.read_bytes())["auths"][str(nap.settings.registry.address)]["auth"].encode()
    for folder, folders, names in os.walk(nap.state.root):
        folders[:] = [each for each in folders if each != "engine"]  # where pipes are, and the images' files
        for path in (Path(folder, name) for name in names):
            if path.is_file():
                text = path.read_bytes()
                assert login.password.encode() not in text, path
                assert encoded not in text or path == keeper, path
