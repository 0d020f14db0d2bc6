"""Run as the account that owns the state directory, even if root calls the command."""

import os
import pwd
import sys
from pathlib import Path

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State


def become_owner(state: State) -> None:
    """As root, become the account that owns the state directory, for good; nothing where that is root's own.

    So root can call nap's commands and leave no file behind that nap cannot write (credentials(7), initgroups(3)).
    Raises `NapError` where that account cannot run what is installed here, and where the caller is a third account.
    """
    owner = _owner(state)
    if owner is None or owner == os.geteuid():
        return
    if os.geteuid() != 0:
        require_owner(state, "Run it as that account, or as root, who becomes it: sudo nap …")
    try:
        account = pwd.getpwuid(owner)
    except KeyError as error:
        raise NapError(
            f"{state.root} belongs to {owner}, which is no account of this machine", advice="Give it to one: chown -R"
        ) from error
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(owner, owner, owner)
    os.environ |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    here = Path(__file__).resolve()
    for path, needed in ((Path(sys.executable), os.X_OK), (Path(sys.executable).resolve(), os.X_OK), (here, os.R_OK)):
        if not os.access(path, needed):
            raise NapError(
                f"{account.pw_name}, to which {state.root} belongs, cannot read {path}",
                advice="Install nap where every account can read it (such as /opt/nap), with a python3 likewise.",
            )


def require_owner(state: State, advice: str) -> None:
    """Raise `NapError`, with `advice`, where the state directory belongs to another account than this one."""
    owner = _owner(state)
    if owner is None or owner == os.geteuid():
        return
    raise NapError(
        f"{state.root} belongs to {_name(owner)}, and no other account uses it; this is {_name(os.geteuid())}",
        advice=advice,
    )


def _owner(state: State) -> int | None:
    """Whose the state directory is; None where there is none. Raises `NapError` where this account cannot see it."""
    try:
        return state.root.stat().st_uid
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NapError(f"{state.root}: {error.strerror}", advice="Run it as the account whose state it is.") from error


def _name(owner: int) -> str:
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)
