"""The login of nap's own registry on a single machine: `nap up` creates it in two private files.

run/registry-login/htpasswd      what the registry checks it against (bcrypt, the one hash that it takes)
run/registry-login/config.json   the login itself, as docker(1) reads it where DOCKER_CONFIG is that directory
"""

import base64
import binascii
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nap_receiver.core.drafts import put
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings

_USER = "nap"
_PASSWORD_BYTES = 32
_ROUNDS = 4  # the fewest: no guessing finds 32 random bytes, and the registry hashes at each request


@dataclass(frozen=True)
class Login:
    """User name and password."""

    user: str
    password: str = field(repr=False)

    @property
    def of_docker(self) -> dict[str, str]:
        """The same as the Docker SDK takes it for one call (`auth_config`)."""
        return {"username": self.user, "password": self.password}


class _Auth(msgspec.Struct):
    auth: str


class _Configuration(msgspec.Struct):
    """The part of docker's configuration that nap writes."""

    auths: dict[str, _Auth]


def login_of(state: State, settings: Settings) -> Login | None:
    """Return the login of the settings' registry; None if nap does not run that registry, or if it needs no login."""
    if not settings.is_single_machine:
        return None
    try:
        found = msgspec.json.decode((state.registry_login / "config.json").read_bytes(), type=_Configuration)
        user, _, password = base64.b64decode(found.auths[settings.registry.address].auth).decode().partition(":")
    except (FileNotFoundError, KeyError, msgspec.DecodeError, binascii.Error, UnicodeDecodeError):
        return None  # of a nap before there was one; or damaged, and made again by the next `nap up`
    return Login(user, password)


def make_login(state: State, settings: Settings) -> None:
    """Create the login of nap's own registry at this address, if it does not exist."""
    import bcrypt  # for `nap up` alone

    folder = state.registry_login
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    hashes, login = folder / "htpasswd", login_of(state, settings)
    if login and _is_known(login, hashes):
        return
    login = Login(_USER, secrets.token_urlsafe(_PASSWORD_BYTES))
    hashed = bcrypt.hashpw(login.password.encode(), bcrypt.gensalt(_ROUNDS)).decode()
    auth = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
    put(hashes, f"{login.user}:{hashed}\n", 0o600)
    put(folder / "config.json", msgspec.json.encode(_Configuration({settings.registry.address: _Auth(auth)})), 0o600)


def _is_known(login: Login, hashes: Path) -> bool:
    """Return whether the registry, which reads this file, accepts the login."""
    import bcrypt

    try:
        return bcrypt.checkpw(login.password.encode(), hashes.read_bytes().strip().partition(b":")[2])
    except (FileNotFoundError, ValueError):  # it is not there, or has no hash
        return False
