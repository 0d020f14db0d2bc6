"""Create an app: by name (`apps:create`), or with its first push."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nap_receiver.auth.access import Access, access_of, claim, give_up, require_few_apps, require_same_repository
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.git.repository import OBJECT_FORMATS, create, discard_empty, has_refs, name_of


def create_app(app: str, access: Access, repository: Path, object_format: str, state: State, user: str) -> None:
    """Create an app with its repository before the first push. Raises `NapError` if it exists."""
    if existing := access_of(app, state):
        raise _taken(app, existing, access.repository, user)
    with created(app, access, repository, state, user, object_format, stays=True) as found:
        if found is not access:
            raise _taken(app, found, access.repository, user)


def adopt(app: str, repository: Path, state: State, user: str) -> None:
    """Create the app of a repository outside nap's gate, before the first deploy from it.

    Nobody gets a right to it: the owner of the repository decides who may push. Raises `NapError` if the app exists.
    """
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcd import connect

    access = Access(name_of(repository, state))
    places = load(state).settings.etcd
    with connect(places) as etcd:
        found = claim(etcd, places.access_of(app), access)
    if found is not access:
        raise _taken(app, found, access.repository, user)


@contextmanager
def created(
    app: str,
    access: Access,
    repository: Path,
    state: State,
    user: str,
    object_format: str = OBJECT_FORMATS[0],
    *,
    stays: bool = False,
) -> Iterator[Access]:
    """Create an app and its repository for the block, if it is new; yield the access to it.

    A new app is removed after the block if nothing was pushed, unless it `stays`, and if the block fails. Raises
    `NapError` if the app has another repository, or if `user` would have more apps than the limit.
    """
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcd import connect  # a tenth of a second that only a new app needs

    if repository.is_dir() and has_refs(repository):
        raise NapError(
            f"app {app} has a repository here but no users; etcd may have lost its data",
            advice=f"Ask the operator of this nap for: nap access:add {app} {user} owner",
        )
    settings = load(state).settings
    places = settings.etcd
    key = places.access_of(app)
    with connect(places) as etcd:
        found = claim(etcd, key, access)
        succeeded = False
        try:
            create(repository, object_format)
            require_few_apps(etcd, places.access, user, settings.limits)  # this one included, or two at once may be one
            yield found
            succeeded = True
        finally:
            stays_after = stays and succeeded
            if found is access and not stays_after and discard_empty(repository, state):
                give_up(etcd, key, access)


def _taken(app: str, access: Access, repository: str, user: str) -> NapError:
    """Return the error for an app name that is in use."""
    require_same_repository(app, access, repository)
    if access.allows(user, "read") or not access.owners:
        return NapError(f"app name {app} is already in use", advice=f"To list its users: access {app}")
    return NapError(
        f"app name {app} is already in use: {', '.join(access.owners)} owns it",
        advice=f"Choose another name, or ask its owner for: access:add {app} {user} push",
    )
