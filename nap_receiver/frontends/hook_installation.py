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
    """Make pushes to `repository` deploy to the nap of `state`; return what was done, one line each.

    A second call changes nothing. Raises `NapError`, before any change, if `repository` is not a bare repository, if
    another hook exists, and if this account cannot write.
    """
    _require_bare(repository)
    if repository.is_relative_to(state.repositories):
        raise NapError(f"{repository} belongs to nap's gate and needs no hook")
    app_name(repository, state, {})
    hook = _place(repository)
    if (hook.exists() or hook.is_symlink()) and not _is_ours(hook):
        raise NapError(
            f"another hook exists: {hook}",
            advice=f"Move it away, or call {script('nap-hook')} in it with the same standard input.",
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
        advice = f"Pushes must be received by {getpass.getuser()}: give this account write access, then try again."
        raise NapError(f"{hook} cannot be written: {error.strerror}", advice=advice) from error
    if repository_settings(repository).get("state") != str(state.root):
        _git(repository, "config", "nap.state", str(state.root))
        done.append(f"{repository / 'config'}: nap.state is {state.root}")
    return done


def troubles(repository: Path, state: State) -> list[str]:
    """Return what keeps the hook from deploying, one sentence each."""
    if not state.root.exists():
        return [f"nap is not running at {state.root}. Start it: nap up"]
    if repository.stat().st_uid != os.geteuid():
        account = getpass.getuser()
        return [f"nap deploys only pushes that account {account} receives, but {repository} belongs to another account"]
    return []


def _require_bare(repository: Path) -> None:
    command = git("rev-parse", "--is-bare-repository", repository=repository)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stdout.strip() != "true":
        raise NapError(
            f"{repository} is not a bare git repository", advice="Give one: nap hook:install /path/to/app.git"
        )


def _place(repository: Path) -> Path:
    """Return the path of git's hook. Raises `NapError` if `core.hooksPath` is outside the repository."""
    folder = Path(_git(repository, "rev-parse", "--path-format=absolute", "--git-path", "hooks")).resolve()
    if not folder.is_relative_to(repository):
        raise NapError(
            f"core.hooksPath of {repository} is {folder}, outside the repository",
            advice=f"Call {script('nap-hook')} in post-receive of that folder, or unset core.hooksPath.",
        )
    return folder / "post-receive"


def _is_ours(hook: Path) -> bool:
    return hook.is_file() and any(mark in hook.read_text(encoding="utf-8", errors="replace") for mark in _MARKS)


def _git(repository: Path, *words: str) -> str:
    """Return the output of git in `repository`, where a relative `core.hooksPath` begins. Raises `NapError` with its
    words."""
    command = git(*words, repository=repository)
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        output = done.stderr.strip().splitlines()
        raise NapError(
            f"`git {words[0]}` failed in {repository}", words=output, advice="Fix the repository, then try again."
        )
    return done.stdout.strip()
