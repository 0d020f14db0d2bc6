"""Run git safely on repositories with untrusted content."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `tree` starts faster without its libraries
    from pathlib import Path


def git(*words: str, repository: "Path | str | None" = None) -> list[str]:
    """Return the command `git …`, in `repository` if one is given.

    git reads every object as it was pushed: a ref below `refs/replace/` would have it read another one in its place
    (git-replace(1)), and whoever can push a ref could have nap build files that the commit does not have.
    """
    place = [f"--git-dir={repository}"] if repository else []
    return ["git", "--no-replace-objects", *place, *words]
