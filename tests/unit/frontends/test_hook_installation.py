"""`nap hook:install`: nap's hook in a bare repository of another git server."""

import subprocess
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.installed import script
from nap_receiver.core.paths import State, state_at
from nap_receiver.frontends.hook_installation import install_hook, troubles
from tests.nap import COMMAND, ROOT


@pytest.fixture
def state(tmp_path: Path) -> State:
    (tmp_path / "state").mkdir()
    return state_at(tmp_path / "state")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A bare repository as git makes it, with its sample hooks."""
    return bare(tmp_path / "shop.git")


def bare(place: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--bare", str(place)], check=True)
    return place


def config(repository: Path, *words: str) -> str:
    command = ["git", f"--git-dir={repository}", "config", *words]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files below `folder`, with mode and content."""
    return {path: (path.stat().st_mode, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_hook_runs_the_console_script_and_a_second_call_changes_nothing(shop: Path, state: State) -> None:
    hook = shop / "hooks/post-receive"
    assert install_hook(shop, state) == [f"{hook}: written", f"{shop}/config: nap.state is {state.root}"]
    assert hook.read_text().count(script("nap-hook")) == 2
    assert hook.stat().st_mode & 0o777 == 0o755
    assert config(shop, "nap.state") == str(state.root)
    before = files(shop)
    assert install_hook(shop, state) == []
    assert files(shop) == before


def test_hooks_folder_that_is_missing_is_as_open_as_the_repository(shop: Path, state: State) -> None:
    for sample in (shop / "hooks").iterdir():
        sample.unlink()
    (shop / "hooks").rmdir()
    shop.chmod(0o750)
    install_hook(shop, state)
    assert (shop / "hooks").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("linked", ["this checkout's", "an older one's"])
def test_link_to_the_hook_of_a_checkout_becomes_a_file(shop: Path, state: State, tmp_path: Path, linked: str) -> None:
    target = ROOT / "hooks/post-receive"
    if linked == "an older one's":
        target = tmp_path / "post-receive"
        target.write_text("#!/bin/sh\n# nap's post-receive hook. Link it into the hooks/ of any bare repository:\n")
    before = target.read_text()
    hook = shop / "hooks/post-receive"
    hook.symlink_to(target)
    assert install_hook(shop, state)[0] == f"{hook}: written"
    assert not hook.is_symlink()
    assert target.read_text() == before
    assert install_hook(shop, state) == []


@pytest.mark.parametrize("kind", ["a script", "a link that leads nowhere", "a folder"])
def test_another_hook_is_left_as_it_is(shop: Path, state: State, tmp_path: Path, kind: str) -> None:
    hook = shop / "hooks/post-receive"
    if kind == "a script":
        hook.write_text("#!/bin/sh\nmail\n")
    elif kind == "a folder":
        hook.mkdir()
    else:
        hook.symlink_to(tmp_path / "nowhere")
    before = files(shop)
    with pytest.raises(NapError, match=f"another hook exists: {hook}"):
        install_hook(shop, state)
    assert files(shop) == before


def test_folder_that_is_no_bare_repository_is_refused(state: State, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "tree")], check=True)
    for place in (tmp_path / "missing.git", tmp_path, tmp_path / "tree", tmp_path / "tree/.git"):
        with pytest.raises(NapError, match=f"{place} is not a bare git repository"):
            install_hook(place, state)


def test_repository_of_the_gate_needs_no_hook(state: State) -> None:
    with pytest.raises(NapError, match="belongs to nap's gate"):
        install_hook(bare(state.repositories / "shop.git"), state)


def test_hooks_outside_the_repository_are_left_alone(shop: Path, state: State, tmp_path: Path) -> None:
    config(shop, "core.hooksPath", str(tmp_path / "all"))
    with pytest.raises(NapError, match=f"core.hooksPath of {shop} is {tmp_path}/all"):
        install_hook(shop, state)
    config(shop, "core.hooksPath", "own")
    assert install_hook(shop, state)[0] == f"{shop}/own/post-receive: written"


def test_name_that_no_app_can_have_is_refused(state: State, tmp_path: Path) -> None:
    repository = bare(tmp_path / "My_Shop.git")
    with pytest.raises(NapError, match="cannot be an app's name"):
        install_hook(repository, state)
    assert not (repository / "hooks/post-receive").exists()


def test_nap_that_was_never_up_is_reported(shop: Path, tmp_path: Path) -> None:
    assert troubles(shop, state_at(tmp_path / "none")) == [f"nap is not running at {tmp_path}/none. Start it: nap up"]


def test_command_says_what_comes_next(shop: Path, state: State) -> None:
    def called(place: Path) -> subprocess.CompletedProcess[str]:
        words = [str(COMMAND), "hook:install", str(place), "--state", str(state.root)]
        return subprocess.run(words, text=True, capture_output=True, check=False)

    first, second, refused = called(shop), called(shop), called(Path("/"))
    assert "Its deploy branch deploys the app shop." in first.stdout
    assert second.stdout.startswith("The hook is already installed.\n")
    advice = " !     Give one: nap hook:install /path/to/app.git\n"
    assert (refused.returncode, refused.stderr) == (1, f" !     / is not a bare git repository\n{advice}")


@pytest.mark.parametrize("missing", ["the console script", "the virtual environment of a checkout"])
def test_hook_without_its_nap_says_so(shop: Path, state: State, tmp_path: Path, missing: str) -> None:
    if missing == "the console script":
        install_hook(shop, state)
        hook = shop / "hooks/post-receive"
        hook.write_text(hook.read_text().replace(script("nap-hook"), "/nowhere/nap-hook"))
    else:
        hook = tmp_path / "hooks/post-receive"
        hook.parent.mkdir()
        hook.write_text((ROOT / "hooks/post-receive").read_text())
        hook.chmod(0o755)
    done = subprocess.run([str(hook)], cwd=shop, stdin=subprocess.DEVNULL, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stdout.startswith(" !     nap is not installed ")
    assert "nothing was deployed" in done.stdout
