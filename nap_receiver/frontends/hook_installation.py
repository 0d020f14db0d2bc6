"""Install nap's hook in a bare repository of another git server."""

import getpass
import os
import subprocess
from pathlib import Path

from nap_receiver.core.drafts import put
from nap_receiver.core.errors import NapError
from nap_receiver.core.installed import script
from nap_receiver.core.paths import State
from nap_receiver.core.templates import TEMPLATES, environment
from nap_receiver.git.git import git
from nap_receiver.git.push import repository_settings
from nap_receiver.model.app import app_name

_MARKS = ("Written by `nap hook:install`", "# nap's post-receive hook.")
"""Lines of a hook that this module may replace: the second is in `hooks/post-receive`, which people linked in 0.1."""


def install_hook(repository: Path, state: State) -> list[str]:
    """Have pushes into `repository` deploy to the nap of `state`; what was done, a line each.

    A second call changes nothing. Raises `NapError`, before any change, where `repository` is no bare repository, where
    another hook is there, and where this account may not write.
    """
    _require_bare(repository)
    if repository.is_relative_to(state.repositories):
        raise NapError(f"{repository} receives pushes through nap's gate, which needs no hook")
    app_name(repository, state, {})
    hook = _place(repository)
    if (hook.exists() or hook.is_symlink()) and not _is_ours(hook):
        raise NapError(
            f"{hook} is another hook, and is left as it is",
            advice=f"Move it away, or have it run {script('nap-hook')} with the same standard input.",
        )
    template = environment(TEMPLATES / "git").get_template("post-receive.j2")
    done = []
    try:
        if not hook.parent.is_dir():
            hook.parent.mkdir()
            hook.parent.chmod(repository.stat().st_mode & 0o777)
        if put(hook, template.render(hook=script("nap-hook")), 0o755):
            done.append(f"{hook}: written")
    except OSError as error:
        advice = f"Run this as the account that receives the pushes, which is to be {getpass.getuser()}."
        raise NapError(f"{hook} cannot be written: {error.strerror}", advice=advice) from error
    if repository_settings(repository).get("state") != str(state.root):
        _git(repository, "config", "nap.state", str(state.root))
        done.append(f"{repository / 'config'}: nap.state is {state.root}")
    return done


def troubles(repository: Path, state: State) -> list[str]:
    """What keeps the hook from deploying, a sentence each."""
    if not state.root.exists():
        return [f"{state.root}: no nap is up there yet. Start it: nap up"]
    if repository.stat().st_uid != os.geteuid():
        account = getpass.getuser()
        return [f"only pushes that the account {account} receives are deployed, and {repository} is another account's"]
    return []


def _require_bare(repository: Path) -> None:
    command = git("rev-parse", "--is-bare-repository", repository=repository)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stdout.strip() != "true":
        raise NapError(f"{repository} is no bare repository", advice="Name one: nap hook:install /path/to/app.git")


def _place(repository: Path) -> Path:
    """Where git looks for the hook. Raises `NapError` where `core.hooksPath` has it look outside the repository."""
    folder = Path(_git(repository, "rev-parse", "--path-format=absolute", "--git-path", "hooks")).resolve()
    if not folder.is_relative_to(repository):
        raise NapError(
            f"git takes the hooks of {repository} from {folder}, as core.hooksPath says",
            advice=f"Have the post-receive there run {script('nap-hook')}, or unset core.hooksPath.",
        )
    return folder / "post-receive"


def _is_ours(hook: Path) -> bool:
    return hook.is_file() and any(mark in hook.read_text(encoding="utf-8", errors="replace") for mark in _MARKS)


def _git(repository: Path, *words: str) -> str:
    """What git prints in `repository`, where a relative `core.hooksPath` begins. Raises `NapError` with its words."""
    command = git(*words, repository=repository)
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise NapError(f"`git {words[0]}` failed in {repository}", words=said, advice="Repair that, then try again.")
    return done.stdout.strip()
