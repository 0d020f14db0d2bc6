"""A push: which refs moved, and which one of them deploys."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dulwich.refs import Ref
from dulwich.repo import Repo

from nap_receiver.errors import NapError

_BRANCH = "refs/heads/"
_SHOWN_REFS = 10

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
    def branch(self) -> str | None:
        """`feature/x` for `refs/heads/feature/x`, None for what is no branch."""
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


@dataclass(frozen=True)
class Deployment:
    """What a push asks for: this commit, from this branch, of this app."""

    app: str
    repository: Path
    branch: str
    commit: str
    pusher: str


def read_updates(lines: Iterable[bytes]) -> list[RefUpdate]:
    """Post-receive's input, a line per updated ref."""
    return [
        RefUpdate(*line.rstrip(b"\n").decode("utf-8", "surrogateescape").split(" ", 2))
        for line in lines
        if line.strip()
    ]


def deploying(push: Push) -> tuple[Deployment | None, list[str]]:
    """The one update that deploys, if any, and what happens to the others, a sentence each."""
    with Repo(str(push.repository)) as repository:
        branch = deploy_branch(repository, push.updates)
    chosen = None
    others = []
    for update in push.updates:
        if update.branch == branch and not update.deletes:
            chosen = Deployment(push.app, push.repository, branch, update.new, push.pusher)
        else:
            others.append(update)
    fates = [_fate(update, branch, push.app) for update in others[:_SHOWN_REFS]]
    if len(others) > _SHOWN_REFS:
        fates.append(f"{len(others) - _SHOWN_REFS} more refs: kept as pushed, not deployed")
    return chosen, fates


def deploy_branch(repository: Repo, updates: Iterable[RefUpdate] = ()) -> str:
    """`nap.branch` of the repository's git config; else master, else main, else the first branch ever pushed.

    That first branch is remembered where git keeps a repository's main branch: as what HEAD points to.
    """
    if configured := repository_setting(repository, "branch"):
        return configured
    pushed = [update for update in updates if update.branch is not None]
    for name in ("master", "main"):
        ref = Ref((_BRANCH + name).encode())
        if ref in repository.refs or any(update.ref == _BRANCH + name for update in pushed):
            return name
    head = repository.refs.get_symrefs().get(Ref(b"HEAD"), Ref(b""))
    if head in repository.refs and head.startswith(_BRANCH.encode()):
        return str(head.decode("utf-8", "surrogateescape")).removeprefix(_BRANCH)
    for update in pushed:
        if not update.deletes and update.branch is not None:
            repository.refs.set_symbolic_ref(Ref(b"HEAD"), Ref(update.ref.encode("utf-8", "surrogateescape")))
            return update.branch
    return "master"


def repository_setting(repository: Repo, name: str) -> str | None:
    """`nap.<name>` of the repository's git config, or None."""
    try:
        return repository.get_config_stack().get((b"nap",), name.encode()).decode("utf-8", "replace")
    except KeyError:
        return None


def checked_setting(
    repository: Path, name: str, fits: Callable[[str], bool], expected: str, value: str = "VALUE"
) -> str | None:
    """`nap.<name>` of the repository's git config, or None. Raises `NapError` with its place where it does not fit."""
    with Repo(str(repository)) as opened:
        found = repository_setting(opened, name)
    if found is not None and not fits(found):
        raise NapError(
            f'{repository}/config: nap.{name}: expected {expected}, got "{found}"',
            advice=f"Mend it there with: git config nap.{name} {value}",
        )
    return found


def _fate(update: RefUpdate, branch: str, app: str) -> str:
    if update.deletes and update.branch == branch:
        return f"{update.kind} deleted: it deploys {app}, which keeps running as it is"
    if update.deletes:
        return f"{update.kind} deleted: nothing to deploy"
    if update.branch is not None:
        return f"{update.kind} kept; {app} deploys {branch}. To deploy it: git push nap {update.branch}:{branch}"
    return f"{update.kind} kept, not deployed"
