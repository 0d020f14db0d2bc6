"""Install nap in a gitolite 3: a hook in its repositories, and a trigger that sets the exit status.

Both go where gitolite keeps what is not its own: its LOCAL_CODE ("non-core" and "hooks" in gitolite's documentation,
https://gitolite.com/gitolite/non-core.html and /hooks.html). A block in gitolite's rc file enables the trigger. The
hook is in every repository then, and does nothing where gitolite.conf does not say `option nap = deploy`: that is read
by the trigger, which runs in gitolite-shell, before git and after it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.core.drafts import draft_of, put
from nap_receiver.core.errors import NapError
from nap_receiver.core.installed import script
from nap_receiver.core.paths import State
from nap_receiver.core.templates import TEMPLATES, environment

CONF = """\
    option nap = deploy
    config nap.branch = main                        # if it is not master that deploys
    config receive.advertisePushOptions = true      # for git push -o nap.deploy=no"""
"""What a repository's section of gitolite.conf can say."""

_MARK = "Written by `nap gitolite:install`"
_BLOCK = re.compile(r"^# nap: begin .*?^# nap: end\n", re.MULTILINE | re.DOTALL)
_LAST_LINE = re.compile(r"^1;", re.MULTILINE)
_TRIGGER = "Nap::post_git"
_SHOWN, _SHOWN_WORDS = 5, 10
_AGAIN = "Fix that, then try again."

# As gitolite reads it ("sub init" in its Rc.pm).
_READ_RC = """
    package Gitolite::Rc; our (%rc, %RC); @rc{qw(GL_ADMIN_BASE GL_REPO_BASE)} = ('', '');
    do $ARGV[0] or die $@ || $! || "it does not end with a true value\n";
    not $RC{ENABLE} or ref $RC{ENABLE} eq 'ARRAY' or die "ENABLE is no list\n";
"""


@dataclass(frozen=True)
class Gitolite:
    """The gitolite of this account: its program, its rc file, and its folders."""

    program: str
    rc: Path
    local_code: Path
    repositories: Path
    administration: Path

    @property
    def hook(self) -> Path:
        return self.local_code / "hooks/common/post-receive"

    @property
    def trigger(self) -> Path:
        return self.local_code / "lib/Gitolite/Triggers/Nap.pm"

    def ask(self, *words: str, stdin: str = "") -> str:
        """Return the output of `gitolite …`. Raises `NapError` with its words if it fails."""
        done = _run([self.program, *words], stdin)
        if done.returncode:
            output = (done.stderr + done.stdout).strip().splitlines()
            raise NapError(f"`gitolite {' '.join(words)}` failed", words=output[-10:], advice=_AGAIN)
        return done.stdout.strip()

    def rc_text(self) -> str:
        return self.rc.read_bytes().decode("utf-8", "surrogateescape")

    def has_trigger(self) -> bool:
        """Return whether nap's trigger is enabled."""
        return _TRIGGER in _value(self.program, "POST_GIT").split()

    def saying(self, setting: str) -> list[str]:
        """Return the repositories with a `config` or `option` line of this form in gitolite.conf."""
        words = [self.program, "git-config", "-r", "%", setting]
        output = _run(words, self.ask("list-phy-repos") + "\n").stdout  # with status 1 where there is none
        return sorted({line.partition("\t")[0] for line in output.splitlines()})

    def posts(self) -> dict[str, Path]:
        """Return the path of the post-receive hook of each repository."""
        names = self.ask("list-phy-repos").splitlines()
        return {name: self.repositories / f"{name}.git" / "hooks" / "post-receive" for name in names}


def install(state: State) -> list[str]:
    """Make this account's gitolite deploy to the nap of `state`; return what was done, one line each.

    Everything is checked before any change; a second call changes nothing. Raises `NapError`.
    """
    gitolite = gitolite_of_account()
    _require_use_of(state)
    bare = _BLOCK.sub("", gitolite.rc_text())
    templates = environment(TEMPLATES / "gitolite")
    trigger = templates.get_template("Nap.pm.j2").render(state=str(state.root), program=script("nap-gitolite-trigger"))
    receive = templates.get_template("post-receive.j2").render(hook=script("nap-hook"))
    rc = _with_block(bare, templates.get_template("rc.j2").render())
    for path in (gitolite.trigger, gitolite.hook):
        _require_ours(path)
    _require_no_other_hooks(gitolite)
    with draft_of(gitolite.rc, rc, gitolite.rc.stat().st_mode) as draft:
        _require_readable(draft, gitolite.rc)
        done = [*_put(gitolite.trigger, trigger, 0o644), *_put(gitolite.hook, receive, 0o755)]
        if rc != gitolite.rc_text():
            draft.rename(gitolite.rc)
            done.append(f"{gitolite.rc}: enabled the trigger")
    if not gitolite.has_trigger():
        uninstall()
        raise NapError(
            f"{gitolite.rc}: the lines that nap added before the last `1;` had no effect and were removed",
            advice="Check that this is the last line, and that ENABLE is a list; then try again.",
        )
    missing = sum(not _leads_to(path, gitolite.hook) for path in gitolite.posts().values())
    gitolite.ask("setup", "--hooks-only")
    if missing:
        done.append(f"{gitolite.repositories}: linked the hook in {missing} repositories")
    return done


def uninstall() -> list[str]:
    """Remove nap from this gitolite; return what was done, one line each. Apps keep running."""
    gitolite = gitolite_of_account()
    text = gitolite.rc_text()
    bare = _BLOCK.sub("", text)
    done = []
    if bare != text:
        with draft_of(gitolite.rc, bare, gitolite.rc.stat().st_mode) as draft:
            _require_readable(draft, gitolite.rc)
            draft.rename(gitolite.rc)
        done.append(f"{gitolite.rc}: restored")
    for path in (gitolite.trigger, gitolite.hook):
        if _is_ours(path):
            path.unlink()
            _remove_empty(path.parent, gitolite.local_code)
            done.append(f"{path}: removed")
    links = [path for path in gitolite.posts().values() if _leads_to(path, gitolite.hook)]
    if not gitolite.hook.exists():
        for link in links:
            link.unlink()
        if links:
            done.append(f"{gitolite.repositories}: removed the hook from {len(links)} repositories")
    return done


def troubles(state: State) -> list[str]:
    """Return what keeps pushes from being deployed, one sentence each."""
    gitolite = gitolite_of_account()
    installed = gitolite.has_trigger()
    found = []
    if installed and not state.root.exists():
        found.append(f"nap is not running at {state.root}. Start it: nap up")
    if installed and (driven := gitolite.saying(r"^gitolite-options\.hook\.post-receive")):
        found.append(
            f"gitolite.conf: `option hook.post-receive` replaces nap's hook in {_some(driven)}; without its hook nap "
            "deploys only pushes to the deploy branch, and sees no push options"
        )
    if not installed and (left := gitolite.saying(r"^(nap\.|receive\.advertisePushOptions$)")):
        found.append(
            f"gitolite.conf still has nap's `config` lines for {_some(left)}; remove them, because gitolite does not "
            "compile them without nap in its rc file"
        )
    return found


def named_by_gitolite(repository: Path) -> dict[str, str]:
    """Return the variables with which this account's gitolite names the repository to hooks; empty if it is not
    gitolite's.

    gitolite writes the file `gl-conf` into each repository that has a `config` or an `option` in gitolite.conf.
    """
    if not (repository / "gl-conf").is_file():
        return {}
    name = repository.relative_to(gitolite_of_account().repositories.resolve())
    return {"GL_REPO": str(name).removesuffix(".git")}


def gitolite_of_account() -> Gitolite:
    """Return the gitolite of this account. Raises `NapError` if there is none."""
    home = Path(os.environ.get("HOME") or Path.home())
    rc = (home / ".gitolite.rc").resolve()
    program = shutil.which("gitolite") or shutil.which("gitolite", path=str(home / "bin"))
    words = shlex.join([str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])
    if not rc.is_file():
        raise NapError(
            f"this account has no gitolite: {home / '.gitolite.rc'} does not exist",
            advice=f"Run this as the account that serves gitolite: su - git -c {shlex.quote(words)}",
        )
    if program is None:
        raise NapError("gitolite is not in PATH", advice="Add gitolite's folder to PATH.")
    if rc.stat().st_uid != os.geteuid():
        raise NapError(
            f"{rc} belongs to another account",
            advice=f"Run this as that account: su - ACCOUNT -c {shlex.quote(words)}",
        )
    repositories = _run([program, "query-rc", "GL_REPO_BASE"])
    if repositories.returncode:
        output = repositories.stderr.strip().splitlines()
        raise NapError(f"gitolite cannot use {rc}", words=output[-_SHOWN_WORDS:], advice=_AGAIN)
    code = _value(program, "LOCAL_CODE") or home / "local"  # as the block in the rc file says it
    administration = Path(_value(program, "GL_ADMIN_BASE"))
    return Gitolite(program, rc, Path(code), Path(repositories.stdout.strip()), administration)


def _value(program: str, name: str) -> str:
    """Return the value of `name` in gitolite's rc file; empty if it is not set."""
    return _run([program, "query-rc", name]).stdout.strip()


def _with_block(rc: str, block: str) -> str:
    """Return `rc` with `block` before the last `1;`, its true value (perldoc -f do)."""
    ends = [found.start() for found in _LAST_LINE.finditer(rc)]
    if not ends:
        raise NapError("gitolite's rc file has no line `1;` at its end", advice="Add one, then try again.")
    return rc[: ends[-1]] + block + rc[ends[-1] :]


def _require_use_of(state: State) -> None:
    if state.root.exists() and not os.access(state.root, os.W_OK | os.X_OK):
        raise NapError(
            f"this account would deploy, but cannot write to {state.root}",
            advice=[
                "Use a separate nap: nap gitolite:install --state DIR",
                "To make one: nap up, as this account. It needs no root, only access to the engine.",
            ],
        )


def _require_ours(path: Path) -> None:
    if (path.exists() or path.is_symlink()) and not _is_ours(path):
        raise NapError(
            f"{path} already exists and is not nap's", advice="Nothing was changed. Move it away, or merge both."
        )


def _require_no_other_hooks(gitolite: Gitolite) -> None:
    """Raise `NapError` for other hooks: gitolite would unlink them ("ln_sf" in its Common.pm)."""
    _require_ours(gitolite.administration / "hooks/common/post-receive")
    others = [
        name
        for name, path in gitolite.posts().items()
        if path.exists() and not (_leads_to(path, gitolite.hook) or _is_driver(path))
    ]
    if others:
        raise NapError(
            f"there is already a post-receive hook in {_some(others)}",
            advice="Nothing was changed. gitolite would replace it by nap's, so move it away first.",
        )


def _is_ours(path: Path) -> bool:
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")


def _leads_to(link: Path, hook: Path) -> bool:
    return link.is_symlink() and link.readlink() == hook


def _is_driver(path: Path) -> bool:
    """Return whether this is the driver of gitolite's repo-specific-hooks."""
    return path.is_symlink() and path.readlink().name == "multi-hook-driver"


def _require_readable(draft: Path, rc: Path) -> None:
    done = _run(["perl", "-e", _READ_RC, str(draft)])
    if done.returncode:
        raise NapError(
            f"{rc} would be invalid after the change, so it was not changed", words=done.stderr.strip().splitlines()
        )


def _put(path: Path, text: str, mode: int) -> list[str]:
    """Write `text` to `path`; return what was done."""
    return [f"{path}: written"] if put(path, text, mode) else []


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove `folder` and its parents up to and including `top`, as long as they are empty."""
    with suppress(OSError):
        while folder.is_relative_to(top):
            folder.rmdir()
            folder = folder.parent


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _run(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, encoding="utf-8", errors="surrogateescape"
    )
