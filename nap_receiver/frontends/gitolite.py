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
    """A gitolite of this account's: its program, its rc file, and where things lie."""

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
        """What `gitolite …` prints. Raises `NapError` with its words when it fails."""
        done = _run([self.program, *words], stdin)
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines()
            raise NapError(f"`gitolite {' '.join(words)}` failed", words=said[-10:], advice=_AGAIN)
        return done.stdout.strip()

    def rc_text(self) -> str:
        return self.rc.read_bytes().decode("utf-8", "surrogateescape")

    def has_trigger(self) -> bool:
        """Whether nap's trigger is enabled."""
        return _TRIGGER in _value(self.program, "POST_GIT").split()

    def saying(self, setting: str) -> list[str]:
        """The repositories of whose `config` and `option` lines in gitolite.conf one is of this form."""
        words = [self.program, "git-config", "-r", "%", setting]
        said = _run(words, self.ask("list-phy-repos") + "\n").stdout  # with status 1 where there is none
        return sorted({line.partition("\t")[0] for line in said.splitlines()})

    def posts(self) -> dict[str, Path]:
        """Where each repository has, or would have, its post-receive hook."""
        names = self.ask("list-phy-repos").splitlines()
        return {name: self.repositories / f"{name}.git" / "hooks" / "post-receive" for name in names}


def install(state: State) -> list[str]:
    """Have this account's gitolite deploy to the nap of `state`: what was done, a line each.

    All is checked first, and doing it again changes nothing. Raises `NapError`.
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
            f"{gitolite.rc}: what was written before its last `1;` has no effect, and is taken away again",
            advice="See that this line is the end of it, and that ENABLE is a list; then try again.",
        )
    missing = sum(not _leads_to(path, gitolite.hook) for path in gitolite.posts().values())
    gitolite.ask("setup", "--hooks-only")
    if missing:
        done.append(f"{gitolite.repositories}: linked the hook in {missing} repositories")
    return done


def uninstall() -> list[str]:
    """Take all of that away again; what was done, a line each. Apps run on."""
    gitolite = gitolite_of_account()
    text = gitolite.rc_text()
    bare = _BLOCK.sub("", text)
    done = []
    if bare != text:
        with draft_of(gitolite.rc, bare, gitolite.rc.stat().st_mode) as draft:
            _require_readable(draft, gitolite.rc)
            draft.rename(gitolite.rc)
        done.append(f"{gitolite.rc}: put back as it was")
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
    """What keeps pushes from being deployed as they should, a sentence each."""
    gitolite = gitolite_of_account()
    installed = gitolite.has_trigger()
    found = []
    if installed and not state.root.exists():
        found.append(f"{state.root}: no nap is up there yet. Start it: nap up")
    if installed and (driven := gitolite.saying(r"^gitolite-options\.hook\.post-receive")):
        found.append(
            f"gitolite.conf: `option hook.post-receive` is in nap's place in {_some(driven)}; without its hook nap "
            "deploys what is pushed only where that is on the deploy branch, and sees no push options"
        )
    if not installed and (left := gitolite.saying(r"^(nap\.|receive\.advertisePushOptions$)")):
        found.append(
            f"gitolite.conf still has `config` lines of nap's for {_some(left)}; take them out, for without nap in its "
            "rc file gitolite does not compile them"
        )
    return found


def named_by_gitolite(repository: Path) -> dict[str, str]:
    """What this account's gitolite tells a hook in the repository about its name; nothing where it is not gitolite's.

    gitolite writes the file `gl-conf` into each repository that has a `config` or an `option` in gitolite.conf.
    """
    if not (repository / "gl-conf").is_file():
        return {}
    name = repository.relative_to(gitolite_of_account().repositories.resolve())
    return {"GL_REPO": str(name).removesuffix(".git")}


def gitolite_of_account() -> Gitolite:
    """The gitolite that this account serves. Raises `NapError` where there is none."""
    home = Path(os.environ.get("HOME") or Path.home())
    rc = (home / ".gitolite.rc").resolve()
    program = shutil.which("gitolite") or shutil.which("gitolite", path=str(home / "bin"))
    words = shlex.join([str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])
    if not rc.is_file():
        raise NapError(
            f"this account has no gitolite: there is no {home / '.gitolite.rc'}",
            advice=f"Run this as the account that serves gitolite: su - git -c {shlex.quote(words)}",
        )
    if program is None:
        raise NapError("gitolite is not in PATH", advice="Run this with gitolite's folder in PATH.")
    if rc.stat().st_uid != os.geteuid():
        raise NapError(
            f"{rc} belongs to another account",
            advice=f"Run this as that account: su - ACCOUNT -c {shlex.quote(words)}",
        )
    repositories = _run([program, "query-rc", "GL_REPO_BASE"])
    if repositories.returncode:
        said = repositories.stderr.strip().splitlines()
        raise NapError(f"gitolite cannot use {rc}", words=said[-_SHOWN_WORDS:], advice=_AGAIN)
    code = _value(program, "LOCAL_CODE") or home / "local"  # as the block in the rc file says it
    administration = Path(_value(program, "GL_ADMIN_BASE"))
    return Gitolite(program, rc, Path(code), Path(repositories.stdout.strip()), administration)


def _value(program: str, name: str) -> str:
    """What gitolite's rc says of `name`. Of what is not set gitolite says nothing, with the status of a failure."""
    return _run([program, "query-rc", name]).stdout.strip()


def _with_block(rc: str, block: str) -> str:
    """`rc` with `block` before the last `1;`, its true value (perldoc -f do)."""
    ends = [found.start() for found in _LAST_LINE.finditer(rc)]
    if not ends:
        raise NapError("gitolite's rc file has no line `1;` at its end", advice="Add one, then try again.")
    return rc[: ends[-1]] + block + rc[ends[-1] :]


def _require_use_of(state: State) -> None:
    if state.root.exists() and not os.access(state.root, os.W_OK | os.X_OK):
        raise NapError(
            f"{state.root}: this account, which would deploy, may not write to it",
            advice=[
                "Name a nap of its own: nap gitolite:install --state DIR",
                "`nap up` as this account makes one; it needs no root, only the right to use the engine.",
            ],
        )


def _require_ours(path: Path) -> None:
    if (path.exists() or path.is_symlink()) and not _is_ours(path):
        raise NapError(f"{path} already exists and is not nap's", advice="Nothing was changed. Move it, or join both.")


def _require_no_other_hooks(gitolite: Gitolite) -> None:
    """gitolite would unlink what is in the hook's place ("ln_sf" in its Common.pm)."""
    _require_ours(gitolite.administration / "hooks/common/post-receive")
    others = [
        name
        for name, path in gitolite.posts().items()
        if path.exists() and not (_leads_to(path, gitolite.hook) or _is_driver(path))
    ]
    if others:
        raise NapError(
            f"there is a post-receive hook already in {_some(others)}",
            advice="Nothing was changed. gitolite would replace it by nap's, so move it away first.",
        )


def _is_ours(path: Path) -> bool:
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")


def _leads_to(link: Path, hook: Path) -> bool:
    return link.is_symlink() and link.readlink() == hook


def _is_driver(path: Path) -> bool:
    """Whether gitolite's repo-specific-hooks put its driver there."""
    return path.is_symlink() and path.readlink().name == "multi-hook-driver"


def _require_readable(draft: Path, rc: Path) -> None:
    done = _run(["perl", "-e", _READ_RC, str(draft)])
    if done.returncode:
        raise NapError(f"{rc} would not work any more, and is left as it is", words=done.stderr.strip().splitlines())


def _put(path: Path, text: str, mode: int) -> list[str]:
    """Have `path` hold `text`; what was done."""
    return [f"{path}: written"] if put(path, text, mode) else []


def _remove_empty(folder: Path, top: Path) -> None:
    """`folder` and those above it, up to `top` and with it, as far as they are empty."""
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
