"""nap's wheel, installed into an empty virtual environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import fresh_nap
from tests.nap import HTTPD, ROOT, Nap, Pusher, answer

_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*words: str) -> str:
    done = subprocess.run(words, cwd="/", text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def built(source: Path, folder: Path) -> Path:
    """The wheel of `source`, a checkout or an sdist, built as `make install` builds it: with what is installed here."""
    run(*_PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("nap-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def prefix(wheel: Path, short_folder: Path) -> Iterator[Path]:
    """A virtual environment with the wheel. nap's libraries are those of this one, where nap itself is not found."""
    folder = short_folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    run(*_PIP, "--python", str(folder / "bin/python"), "install", "--no-index", "--no-deps", str(wheel))
    (packages,) = folder.glob("lib/python3*/site-packages")
    # Python reads no .pth files in a folder that a .pth file names, so the checkout stays hidden (`site`).
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def packed(prefix: Path, nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap that the wheel's command brings up, on the engine of the shared one."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"  # where Caddy is
    packed = fresh_nap(short_folder / "packed", NAP_ENGINE_URL=nap.engine_url, NAP_DEPLOY_DRAIN="0", PATH=path)
    packed.command = prefix / "bin/nap"
    packed.run("up")
    yield packed
    packed.run("down")


def test_sdist_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("nap-*.tar.gz")
    assert built(sdist, tmp_path).read_bytes() == wheel.read_bytes()


def test_wheel_has_templates_the_hook_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        mode = archive.getinfo("nap_receiver/hooks/post-receive").external_attr >> 16
    assert mode & 0o111 == 0o111
    data = [path for path in (ROOT / "unit_templates").rglob("*") if path.is_file()]
    assert {f"nap_receiver/{path.relative_to(ROOT)}" for path in data} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("nap_receiver/", "nap-"))]


def test_command_and_data_are_found_in_the_virtual_environment(prefix: Path) -> None:
    assert run(str(prefix / "bin/nap"), "--version") == f"nap {version('nap')}\n"
    code = "from nap_receiver.core import templates; print(templates.__file__, templates.TEMPLATES, templates.HOOKS)"
    for place in run(str(prefix / "bin/python"), "-P", "-c", code).split():
        assert Path(place).is_relative_to(prefix)
        assert Path(place).exists()


def test_push_deploys_with_the_gate_and_the_router_of_the_wheel(packed: Nap, prefix: Path, tmp_path: Path) -> None:
    assert packed.run("status").returncode == 0
    pusher = Pusher(packed, "packed", tmp_path)
    packed.run("keys:remove", pusher.user)  # the test wrote that line
    packed.run("keys:add", pusher.user, stdin=(tmp_path / "key.pub").read_text())
    pusher.commit(Dockerfile=HTTPD, index_html="from a wheel")
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert answer(pushed.url) == "from a wheel"
    configuration = [*packed.state.run.glob("*.conf"), packed.state.git_configuration]
    written = "".join(path.read_text() for path in configuration)
    for place in ("unit_templates", "hooks", ".venv/bin/nap", ".venv/bin/python"):
        assert f"{ROOT}/{place}" not in written
    assert f"{prefix}/bin/nap-router" in written
    assert f'command="{prefix}/bin/nap-gate ' in (packed.state.ssh / "authorized_keys").read_text()


def test_hooks_of_the_wheel_deploy(packed: Nap, prefix: Path, tmp_path: Path) -> None:
    pusher = Pusher(packed, "hooked", tmp_path)
    elsewhere = tmp_path / "hooked.git"
    pusher.git("init", "--quiet", "--bare", str(elsewhere))
    packed.run("hook:install", str(elsewhere))
    hook = elsewhere / "hooks/post-receive"
    assert f"{prefix}/bin/nap-hook" in hook.read_text()
    pusher.commit(Dockerfile=HTTPD, index_html="written")
    assert answer(pusher.push(str(elsewhere), "HEAD:refs/heads/master").url) == "written"
    hook.unlink()
    (linked,) = prefix.glob("lib/python3*/site-packages/nap_receiver/hooks/post-receive")
    hook.symlink_to(linked)
    pusher.commit(index_html="linked")
    assert answer(pusher.push(str(elsewhere), "HEAD:refs/heads/master").url) == "linked"
