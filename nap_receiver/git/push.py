"""A push: which refs moved, and which one of them deploys."""

import itertools
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.privacy import umask_of
from nap_receiver.git.git import git

_BRANCH = "refs/heads/"
_SHOWN_REFS = 10

_UPDATE = re.compile(r"([0-9a-f]{40,64}) ([0-9a-f]{40,64}) (.+)", re.DOTALL)
_KEPT = {"refs/tags/": "tag", "refs/notes/": "notes"}


@dataclass(frozen=True)
class RefUpdate:
    """One line of post-receive's input (githooks(5)): object names before and after, in hexadecimal, and the ref."""

    old: str
    new: str
    ref: str

    @property
    def deletes(self) -> bool:
        return not self.new.strip("0")

    @property
    def moved(self) -> bool:
        """Whether the ref changed; libgit2 also sends refs that did not."""
        return self.old != self.new

    @property
    def branch(self) -> str | None:
        """`feature/x` for `refs/heads/feature/x`, None if it is not a branch."""
        return self.ref.removeprefix(_BRANCH) if self.ref.startswith(_BRANCH) else None

    @property
    def kind(self) -> str:
        """`branch x`, `tag x`, or the whole ref."""
        if self.branch is not None:
            return f"branch {self.branch}"
        for prefix, kind in _KEPT.items():
            if self.ref.startswith(prefix):
                return f"{kind} {self.ref.removeprefix(prefix)}"
        return self.ref


@dataclass(frozen=True)
class Push:
    """The ref updates of one `git push` into one repository."""

    app: str
    repository: Path
    updates: list[RefUpdate] = field(default_factory=list)
    pusher: str = "unknown"
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Deployment:
    """The result of parsing a push: deploy this commit, from this branch, of this app."""

    app: str
    repository: Path
    branch: str
    commit: str
    pusher: str


def read_updates(lines: Iterable[bytes]) -> list[RefUpdate]:
    """Parse post-receive's input, one line for each updated ref. Raises `NapError` for an invalid line."""
    return [_update(line.rstrip(b"\n").decode("utf-8", "surrogateescape")) for line in lines if line.strip()]


def _update(line: str) -> RefUpdate:
    if not (match := _UPDATE.fullmatch(line)):
        raise NapError(
            f"nap's hook expects updates of refs on standard input, got {line[:80]!a}",
            advice="Install the hook as post-receive (githooks(5)), where git runs it.",
        )
    return RefUpdate(*match.groups())


@dataclass(frozen=True)
class PushOptions:
    """The options of `git push -o`; `branch` deploys this branch once instead of the deploy branch."""

    deploy: bool = True
    wait: bool = True
    branch: str | None = None
    unknown: tuple[str, ...] = ()


def read_push_options(environ: Mapping[str, str]) -> list[str]:
    """Parse the push options that git passes to hooks (githooks(5))."""
    if not environ.get("GIT_PUSH_OPTION_COUNT"):
        return []
    names = (f"GIT_PUSH_OPTION_{number}" for number in itertools.count())
    return [environ[name] for name in itertools.takewhile(environ.__contains__, names)]


def push_options(options: Iterable[str]) -> PushOptions:
    """Parse `nap.deploy=no`, `nap.wait=no`, `nap.branch=NAME`. Raises `NapError` for an invalid value."""
    found = PushOptions()
    for option in options:
        name, _, value = option.partition("=")
        if name == "nap.branch" and value:
            found = replace(found, branch=value.removeprefix(_BRANCH))
        elif name == "nap.deploy" and value in {"yes", "no"}:
            found = replace(found, deploy=value == "yes")
        elif name == "nap.wait" and value in {"yes", "no"}:
            found = replace(found, wait=value == "yes")
        elif name in {"nap.branch", "nap.deploy", "nap.wait"}:
            expected = "a branch" if name == "nap.branch" else '"yes" or "no"'
            raise NapError(
                f'push option {name}: expected {expected}, got "{value[:80]}"; the commits are kept, not deployed',
                advice="Push again without it to deploy them.",
            )
        else:
            found = replace(found, unknown=(*found.unknown, option))
    return found


def deploying(push: Push, branch: str) -> tuple[Deployment | None, list[str]]:
    """Return the update of `branch`, if there is one, and a sentence about each other update."""
    chosen = None
    others = []
    for update in push.updates:
        if update.branch == branch and not update.deletes:
            chosen = Deployment(push.app, push.repository, branch, update.new, push.pusher)
        else:
            others.append(update)
    shown = sorted(others, key=lambda update: not (update.deletes and update.branch == branch))[:_SHOWN_REFS]
    fates = [_fate(update, branch, push.app) for update in shown]
    if len(others) > _SHOWN_REFS:
        fates.append(f"{len(others) - _SHOWN_REFS} more refs: kept as pushed, not deployed")
    return chosen, fates


def deploy_branch(repository: Path, updates: Iterable[RefUpdate] = ()) -> str:
    """Return `nap.branch` of the repository's git config; else master, else main, else the first branch ever pushed.

    HEAD stores that first branch.
    """
    if configured := repository_settings(repository).get("branch"):
        return configured
    pushed = [update for update in updates if update.branch is not None]
    head = _git(repository, "symbolic-ref", "--quiet", "HEAD").strip()
    usual = [_BRANCH + "master", _BRANCH + "main", head]
    refs = set(_git(repository, "for-each-ref", "--format=%(refname)", *filter(None, usual)).splitlines())
    refs |= {update.ref for update in pushed if update.ref in usual}
    for ref in usual:
        if ref in refs and ref.startswith(_BRANCH):
            return ref.removeprefix(_BRANCH)
    for update in pushed:
        if not update.deletes and update.branch is not None:
            _git(repository, "symbolic-ref", "HEAD", update.ref)
            return update.branch
    return "master"


def point_head_at(repository: Path, branch: str) -> None:
    """Make HEAD name `branch` if that branch exists: `git clone` checks it out.

    Nearly always it does already, which needs no git to see (gitrepository-layout(5), HEAD).
    """
    ref = _BRANCH + branch
    head = repository / "HEAD"
    if head.is_file() and head.read_bytes() == f"ref: {ref}\n".encode("utf-8", "surrogateescape"):
        return
    if _git(repository, "show-ref", "--verify", ref):
        _git(repository, "symbolic-ref", "HEAD", ref)


def commit_of(repository: Path, branch: str) -> str | None:
    """Return the commit of `branch`, or None if the branch does not exist."""
    return _git(repository, "rev-parse", "--verify", "--quiet", f"{_BRANCH}{branch}^{{commit}}").strip() or None


def mark_release(repository: Path, release: str, commit: str) -> None:
    """Make `refs/nap/<release>` name the commit if the repository has it; it can be fetched like any ref."""
    _git(repository, "update-ref", f"refs/nap/{release}", commit)


def unmark_releases(repository: Path, releases: Iterable[str]) -> None:
    """Remove the refs of these releases."""
    asked = "".join(f"delete refs/nap/{release}\n" for release in releases)
    subprocess.run(
        git("update-ref", "--stdin", repository=repository),
        input=asked.encode(),
        capture_output=True,
        check=False,
    )


def repository_settings(repository: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the repository's git config below `nap.`, by the rest of the name in lower case."""
    output = _git(repository, "config", "--null", "--get-regexp", r"^nap\.", environment=environment)
    found = (entry.partition("\n") for entry in output.split("\0") if entry)
    return {name.removeprefix("nap."): value for name, _, value in found}


def checked_setting(
    repository: Path, name: str, fits: Callable[[str], object], expected: str, value: str = "VALUE"
) -> str | None:
    """Return `nap.<name>` of the repository's git config, or None. Raises `NapError` with its place if it is
    invalid."""
    found = repository_settings(repository).get(name)
    if found is not None and not fits(found):
        raise NapError(
            f'{repository}/config: nap.{name}: expected {expected}, got "{found}"',
            advice=f"Fix it with: git config nap.{name} {value}",
        )
    return found


def _git(repository: Path, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """Run git and return its output: a millisecond, while importing dulwich takes thirty.

    Who may read the repository may read what git writes there: it may be somebody else's, served by another account.
    """
    command = git(*words, repository=repository)
    umask = umask_of(repository)
    done = subprocess.run(command, env=environment, capture_output=True, check=False, umask=umask)
    return done.stdout.decode("utf-8", "surrogateescape")


def _fate(update: RefUpdate, branch: str, app: str) -> str:
    if update.deletes and update.branch == branch:
        return f"{update.kind} deleted: it deploys {app}, which keeps running as it is"
    if update.deletes:
        return f"{update.kind} deleted: nothing to deploy"
    if update.branch is not None:
        return f"{update.kind} kept; {app} deploys {branch}. To deploy it: git push nap {update.branch}:{branch}"
    return f"{update.kind} kept, not deployed"
