"""Run as the account that owns the state directory, even if root calls the command."""

import os
import pwd
import sys
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State


def become_owner(state: State) -> None:
    """As root, become the account that owns the state directory, for good; does nothing if root owns it.

    So root can call nap's commands without leaving files that nap cannot write (credentials(7), initgroups(3)). Raises
    `NapError` if that account cannot run this installation, and if the caller is a third account.
    """
    owner = _owner(state)
    if owner is None or owner == os.geteuid():
        return
    if os.geteuid() != 0:
        require_owner(state, "Run the command as that account, or as root: sudo nap …")
    try:
        account = pwd.getpwuid(owner)
    except KeyError as error:
        raise NapError(
            f"{state.root} belongs to user id {owner}, which has no account on this machine",
            advice=f"Give it to an account: chown -R ACCOUNT {state.root}",
        ) from error
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(owner, owner, owner)
    os.environ |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    here = Path(__file__).resolve()
    for path, needed in ((Path(sys.executable), os.X_OK), (Path(sys.executable).resolve(), os.X_OK), (here, os.R_OK)):
        if not os.access(path, needed):
            raise NapError(
                f"account {account.pw_name}, the owner of {state.root}, cannot read {path}",
                advice="Install nap and its python3 where every account can read them, such as /opt/nap.",
            )


def require_owner(state: State, advice: str) -> None:
    """Raise `NapError`, with `advice`, if the state directory belongs to another account than this one."""
    owner = _owner(state)
    if owner is None or owner == os.geteuid():
        return
    raise NapError(
        f"{state.root} belongs to {_name(owner)}; {_name(os.geteuid())} cannot use it",
        advice=advice,
    )


def _owner(state: State) -> int | None:
    """Return the owner of the state directory; None if it does not exist. Raises `NapError` if this account cannot see
    it."""
    try:
        return state.root.stat().st_uid
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NapError(
            f"{state.root}: {error.strerror}", advice="Run the command as the account that owns it."
        ) from error


def _name(owner: int) -> str:
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)
