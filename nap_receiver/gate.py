"""The ssh gate: the one command that a key gives, and what it lets through.

git's own programs, on repositories of this nap, and nothing else. A push into a new name creates its repository.
Because git ignores how post-receive ends, it is the gate that ends non-zero after a deploy that failed; and because a
push of what is already there runs no hook, it is the gate that answers it (shared/design.md, "Truth").
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

from nap_receiver.app import app_name, repository_of
from nap_receiver.channel import Channel, tell
from nap_receiver.errors import NapError
from nap_receiver.state import State, state_at

_GIT_READS = {"git-upload-pack", "git-upload-archive"}
_GIT_WRITES = "git-receive-pack"

_CONFIGURATION = {
    "receive.advertisePushOptions": "true",
    "receive.autogc": "false",  # it would keep the pusher waiting
    "receive.denyDeleteCurrent": "ignore",  # deleting the deploy branch stops nothing, and the hook says so
}


def main() -> int:
    """Do what `SSH_ORIGINAL_COMMAND` asks, for the user whose key it was. Returns ssh's exit status."""
    root, user = sys.argv[1:]
    state = state_at(root)
    os.environ |= {"NAP_STATE": str(state.root), "NAP_USER": user}
    status = 1

    def story(channel: Channel) -> None:
        nonlocal status
        status = _let_through(os.environ.get("SSH_ORIGINAL_COMMAND", ""), state, user, channel)

    return status if tell(2, story) else 1


def _let_through(asked: str, state: State, user: str, channel: Channel) -> int:
    program, path = _understood(asked, user)
    repository = _repository(path, state)
    if program in _GIT_READS:
        if not repository.is_dir():
            raise NapError(f"there is no app {path} here", advice="A first `git push` creates it.")
        return subprocess.run([program, str(repository)], check=False).returncode
    app = app_name(repository, state, {})
    if not repository.is_dir():
        _refuse_second_repository(app, repository, state)
        _create(repository)
    return _receive_pack(repository, state, user, channel)


def _understood(asked: str, user: str) -> tuple[str, str]:
    try:
        words = shlex.split(asked)
    except ValueError:
        words = []
    if words[:1] == ["git"] and len(words) > 1:
        words[:2] = [f"git-{words[1]}"]
    if len(words) != 2 or words[0] not in {*_GIT_READS, _GIT_WRITES}:
        raise NapError(
            f"Hello {user}. This is nap: it takes git pushes, and has no shell",
            advice="To deploy an app: git push ssh://…/APP master",
        )
    return words[0], words[1]


def _repository(path: str, state: State) -> Path:
    """`hello`, `/hello.git` and `team/hello` below the repositories; nothing else has a place."""
    relative = PurePosixPath(path.removeprefix("/").removeprefix("~/"))
    parts = [*relative.parts[:-1], relative.name.removesuffix(".git")]
    if relative.is_absolute() or any(not p or p.startswith((".", "-")) or not p.isprintable() for p in parts):
        raise NapError(f"{path[:80]!a} is no name of an app", advice="Push to ssh://…/APP or ssh://…/TEAM/APP.")
    return state.repositories.joinpath(*parts[:-1], f"{parts[-1]}.git")


def _refuse_second_repository(app: str, repository: Path, state: State) -> None:
    """`team/shop` and `team-shop` would be one app; the second is refused."""
    if other := repository_of(app, state):
        shown = other.relative_to(state.repositories).with_suffix("")
        raise NapError(f"the app {app} is that of {shown} already", advice="Push there, or choose another name.")


def _create(repository: Path) -> None:
    """A bare repository with nap's hook; nobody sees it half made."""
    repository.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".creating-", dir=repository.parent))
    hook = Path(__file__).resolve().parent.parent / "hooks" / "post-receive"
    subprocess.run(["git", "init", "--quiet", "--bare", "--template=", str(draft)], check=True)
    for name, value in _CONFIGURATION.items():
        subprocess.run(["git", f"--git-dir={draft}", "config", name, value], check=True)
    (draft / "hooks").mkdir()
    (draft / "hooks" / "post-receive").symlink_to(hook)
    draft.chmod(0o755)
    try:
        draft.rename(repository)
    except OSError:  # another push created it meanwhile
        subprocess.run(["rm", "-r", "--", str(draft)], check=True)


def _receive_pack(repository: Path, state: State, user: str, channel: Channel) -> int:
    """git-receive-pack, and its verdict: that of the hook, or, where no ref moved, of deploying what is there."""
    with tempfile.TemporaryDirectory(prefix="push-", dir=state.run) as folder:
        verdict = Path(folder, "verdict")
        environment = os.environ | {"NAP_VERDICT": str(verdict)}
        status = subprocess.run([_GIT_WRITES, str(repository)], env=environment, check=False).returncode
        said = verdict.read_text() if verdict.exists() else ""
    if said == "deploying":
        raise NapError("the deploy was killed; what ran before still runs", advice="Push again to deploy.")
    if status or said:
        return status or int(said != "good")
    _deploy_what_is_there(repository, state, user, channel)
    return 0


def _deploy_what_is_there(repository: Path, state: State, user: str, channel: Channel) -> None:
    from dulwich.refs import Ref
    from dulwich.repo import Repo

    from nap_receiver.hook import deploy
    from nap_receiver.push import Deployment, deploy_branch

    with Repo(str(repository)) as opened:
        branch = deploy_branch(opened)
        ref = Ref(b"refs/heads/" + branch.encode("utf-8", "surrogateescape"))
        commit = opened.refs[ref].decode() if ref in opened.refs else None
    if commit:
        deploy(Deployment(app_name(repository, state, {}), repository, branch, commit, user), state, channel)


if __name__ == "__main__":
    sys.exit(main())
