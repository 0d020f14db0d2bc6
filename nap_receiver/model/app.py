"""Names of apps: which app a repository deploys."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State

# A DNS label (RFC 1123), and one that an image's name can hold too: so it serves as all that an app's name must be.
_APP = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?!-))*(?<!-)")
_LONGEST_APP = 40  # leaves room in a 63-byte label for the release and the process


def app_name(repository: Path, state: State, environ: Mapping[str, str]) -> str:
    """Return the app that `repository` deploys, from its path below the repositories: `team/shop.git` → `team-shop`.

    gitolite says the path itself, in `GL_REPO`; of a repository that lies elsewhere the last part counts. Raises
    `NapError` when the name cannot be that of an image, a unit, an etcd key and a DNS label at once.
    """
    if named := environ.get("GL_REPO"):
        path = PurePosixPath(named)
    elif repository.is_relative_to(state.repositories):
        path = PurePosixPath(repository.relative_to(state.repositories))
    else:
        path = PurePosixPath(repository.parent.name if repository.name == ".git" else repository.name)
    return checked_app_name("-".join([*path.parts[:-1], path.name.removesuffix(".git")]))


def checked_app_name(name: str) -> str:
    """Return `name`. Raises `NapError` with the reason if it is not a valid app name."""
    if len(name) > _LONGEST_APP:
        reason = f"it has {len(name)} characters; the limit is {_LONGEST_APP}"
    elif not name:
        reason = "it is empty"
    elif not _APP.fullmatch(name):
        reason = "only a to z, 0 to 9 and single dashes between them are possible"
    else:
        return name
    raise NapError(
        f'"{name[:80]}" cannot be an app\'s name: {reason}',
        advice="Choose another name. To push to that one: git remote set-url nap …/NAME",
    )
