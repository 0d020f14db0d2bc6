"""Rights of users to apps. etcd stores them below `<prefix>/access/<app>`, so all receivers have the same.

The same key has the repository of the app: the first writer gets the name.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.model.bounds import require_at_most
from nap_receiver.store.etcdctl import Reader, access_prefix, read

if TYPE_CHECKING:  # etcd's library takes a tenth of a second to import, and most connections need none of these
    from nap_receiver.core.settings import LimitSettings
    from nap_receiver.store.etcd import Etcd

RIGHTS = ("read", "push", "owner")
"""Each holds those before it: to fetch, and read logs; to push, deploy and cancel; to say who may."""


@dataclass(frozen=True)
class Access:
    """The repository of an app (its path below the repositories, or its whole path), and the right of each user."""

    repository: str
    users: dict[str, str] = field(default_factory=dict)

    def allows(self, user: str, right: str) -> bool:
        """Return whether `user` has this right, or one that includes it."""
        return user in self.users and RIGHTS.index(self.users[user]) >= RIGHTS.index(right)

    @property
    def first_owner(self) -> str:
        """The owner to whose limit of apps it counts: its creator, while that is an owner; empty for none."""
        return next(iter(self.owners), "")

    @property
    def owners(self) -> list[str]:
        return [user for user, right in self.users.items() if right == "owner"]


def access_of(app: str, state: State) -> Access | None:
    """Return the access to `app`, or None if it does not exist. Raises `NapError` if etcd does not answer."""
    key = f"{access_prefix(state)}/{app}"
    entry = read(state, [key])[0].get(key)
    return _access(entry.value) if entry else None


def everybodys(etcd: Reader, prefix: str) -> dict[str, Access]:
    """Return the access to every app below `prefix`, by app."""
    return {entry.key.rpartition("/")[2]: _access(entry.value) for entry in etcd.below(f"{prefix}/").entries}


def require_right(app: str, access: Access | None, user: str, right: str) -> Access:
    """Return `access`. Raises `NapError` if the app does not exist, or if `user` lacks this right."""
    if access is None:
        raise no_such(app)
    if access.allows(user, right):
        return access
    doing = {"read": "read", "push": "push to", "owner": "administer"}[right]
    whom = f"its owner ({', '.join(access.owners)})" if access.owners else "the operator of this nap"
    raise NapError(f"{user} may not {doing} {app}", advice=f"Ask {whom} for: access:add {app} {user} {right}")


def no_such(app: str) -> NapError:
    """Return the error for an app that does not exist."""
    return NapError(f"app {app} does not exist", advice=f"To create it: apps:create {app}, or a `git push` to it.")


def claim(etcd: "Etcd", key: str, access: Access) -> Access:
    """Store the access to a new app at `key`; return it, or that of an existing app.

    Raises `NapError` if the app has another repository.
    """
    app = key.rpartition("/")[2]
    if etcd.create(key, asdict(access)):
        return access
    entry = etcd.get(key)
    if entry is None:  # given up in this very moment
        return claim(etcd, key, access)
    return require_same_repository(app, _access(entry.value), access.repository)


def require_same_repository(app: str, access: Access, repository: str) -> Access:
    """Return `access`. Raises `NapError` if `app` has another repository: two repositories are never one app."""
    if access.repository != repository:
        raise NapError(
            f"app name {app} is already used by repository {access.repository}",
            advice="Push to that repository, or choose another name: git remote set-url nap …",
        )
    return access


def give_up(etcd: "Etcd", key: str, access: Access) -> None:
    """Delete the access to the app, if it is unchanged."""
    entry = etcd.get(key)
    if entry and _access(entry.value) == access:
        etcd.write({key: None}, unchanged={key: entry.revision})


def require_few_apps(etcd: Reader, prefix: str, user: str, limits: "LimitSettings", another: int = 0) -> None:
    """Raise `NapError` if `user` has more apps below `prefix` than the limit, plus `another`."""
    number = another + sum(access.first_owner == user for access in everybodys(etcd, prefix).values())
    advice = "Destroy one first: apps:destroy APP"
    require_at_most("apps", limits, f"{user} would have {number} apps", number, advice=advice)


def set_right(etcd: "Etcd", key: str, user: str, right: str | None, limits: "LimitSettings") -> Access:
    """Give `user` this right, or with None no right; return the new access.

    Raises `NapError` if the app does not exist, if there is no right to remove, or if no owner would be left; and if
    the app would have too many users, or a user too many apps.
    """
    app = key.rpartition("/")[2]
    while True:
        entry = etcd.get(key)
        if entry is None:
            raise no_such(app)
        before = _access(entry.value)
        users = {name: had for name, had in before.users.items() if name != user} | ({user: right} if right else {})
        after = replace(before, users=users)
        if right is None and user not in before.users:
            raise NapError(f"{user} has no right to {app}", advice=f"To list its users: access {app}")
        if before.owners and not after.owners:
            raise NapError(
                f"{user} is the only owner of {app}", advice=f"Add another owner first: access:add {app} USER owner"
            )
        number, had = len(after.users), len(before.users)
        advice = f"Remove a user first: access:remove {app} USER"
        require_at_most("users", limits, f"{app} would have {number} users", number, had, advice)
        if after.first_owner and after.first_owner != before.first_owner:
            require_few_apps(etcd, key.rpartition("/")[0], after.first_owner, limits, another=1)
        if etcd.write({key: asdict(after)}, unchanged={key: entry.revision}):
            return after


def _access(value: dict[str, Any]) -> Access:
    return Access(**value)
