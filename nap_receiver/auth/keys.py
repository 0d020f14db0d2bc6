"""Users' ssh keys: OpenSSH's authorized_keys, with one line and one allowed command per key."""

import base64
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nap_receiver.core.drafts import put
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.model.bounds import require_at_most

if TYPE_CHECKING:  # its libraries take longer to import than a connection to the gate otherwise needs
    from nap_receiver.core.settings import LimitSettings

LONGEST_BYTES = 65536
"""More than any public key has: an RSA key of 16,384 bits is 2.8 KB."""

_USER = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_LINE = re.compile(r'restrict(?:,pty)?,command="(?:\\.|[^"\\])*" (?P<key>\S+ \S+) (?P<user>\S+)')

# Those of sshd(8), "AUTHORIZED_KEYS FILE FORMAT", that OpenSSH accepts without being told to.
_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LEAST_RSA_BITS = 1024  # RequiredRSASize, sshd_config(5)


@dataclass(frozen=True)
class Key:
    """A user's public key, as `type base64`."""

    user: str
    key: str

    @property
    def fingerprint(self) -> str:
        """`256 SHA256:… (ED25519)`, as ssh-keygen prints it."""
        size, digest, *_, kind = _told_by_ssh_keygen(self.key).split()
        return f"{size} {digest} {kind}"


def keys(state: State) -> list[Key]:
    """Return all keys."""
    try:
        lines = _file(state).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Key(match["user"], match["key"]) for match in map(_LINE.fullmatch, lines) if match]


def add_key(state: State, user: str, text: str, limits: "LimitSettings") -> Key:
    """Add the public key in `text` for `user`.

    Raises `NapError` if the text is not a usable public key, or if the user has too many keys.
    """
    key = Key(checked_user(user), _read(text, user))
    stored = keys(state)
    for other in stored:
        if other.key == key.key:
            raise NapError(f"that key already belongs to {other.user}", advice="To list all keys: nap keys")
    number = 1 + sum(other.user == user for other in stored)
    advice = f"Remove one first: nap keys:remove {user} FINGERPRINT"
    require_at_most("keys", limits, f"{user} would have {number} keys", number, advice=advice)
    _write(state, [*stored, key])
    return key


def remove_keys(state: State, user: str, fingerprint: str | None = None) -> int:
    """Remove all keys of `user`, or the one with this fingerprint; return how many were removed.

    Raises `NapError` if there was none.
    """
    stored = keys(state)
    remaining = [key for key in stored if key.user != user or fingerprint not in {None, *key.fingerprint.split()}]
    if len(remaining) == len(stored):
        which = f" {fingerprint}" if fingerprint else ""
        raise NapError(f"{user} has no key{which}", advice="To list all keys: nap keys")
    _write(state, remaining)
    return len(stored) - len(remaining)


def renew(state: State) -> None:
    """Write the lines of all keys again, in the form of this version of nap."""
    _write(state, keys(state))


def checked_user(name: str) -> str:
    """Return `name`. Raises `NapError` if it is not a valid user name."""
    if not _USER.fullmatch(name):
        raise NapError(
            f"{name[:40]!a} is not a valid user name", advice="Use a to z, 0 to 9, dot, dash and underscore."
        )
    return name


def _read(text: str, user: str) -> str:
    """Return the key in `text` as `type base64`. Raises `NapError` if it is not a key that sshd accepts."""
    advice = f"Give one public key: nap keys:add {user} < ~/.ssh/id_ed25519.pub"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(text) > LONGEST_BYTES:
        raise NapError(f"expected a public key, got more than {LONGEST_BYTES} bytes", advice=advice)
    if "PRIVATE KEY" in text:
        raise NapError("expected a public key, got a private key", advice=advice)
    if "BEGIN SSH2 PUBLIC KEY" in text or "BEGIN PUBLIC KEY" in text or "BEGIN RSA PUBLIC KEY" in text:
        raise NapError("that key is not in OpenSSH's formatat", advice="Convert it: ssh-keygen -i -f KEY")
    if len(lines) != 1:
        raise NapError(f"expected one public key, got {len(lines)} lines", advice=advice)
    kind, *rest = lines[0].split()
    if kind.endswith("-cert-v01@openssh.com"):
        raise NapError("expected a public key, got a certificate", advice=advice)
    if kind in {"ssh-dss", "ssh-dsa"}:
        raise NapError("that is a DSA key, which OpenSSH no longer accepts", advice="Make one: ssh-keygen -t ed25519")
    if any(word in _TYPES for word in rest):
        raise NapError("options before the key are not accepted: nap sets them", advice=advice)
    if kind not in _TYPES or not rest:
        raise NapError(f"that is not an OpenSSH public key: it begins with {kind[:40]!a}", advice=advice)
    key = f"{kind} {rest[0]}"
    try:
        fields = _fields(base64.b64decode(rest[0], validate=True))
    except ValueError:
        fields = []
    if fields[:1] != [kind.encode()]:
        raise _unreadable()
    size = int.from_bytes(fields[-1], "big").bit_length()  # of an RSA key, whose last field is the modulus
    if kind == "ssh-rsa" and size < _LEAST_RSA_BITS:
        raise NapError(
            f"that RSA key has {size} bits; OpenSSH accepts {_LEAST_RSA_BITS} or more",
            advice="Make one: ssh-keygen -t ed25519",
        )
    _told_by_ssh_keygen(key)
    return key


def _fields(blob: bytes) -> list[bytes]:
    """Return the fields of a key, each preceded by its length (RFC 4251, section 5)."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields


def _write(state: State, all_keys: list[Key]) -> None:
    state.ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    put(_file(state), "".join(_line(state, key) + "\n" for key in all_keys), 0o600)


def _line(state: State, key: Key) -> str:
    from nap_receiver.core.installed import script  # what a connection to the gate does without

    command = shlex.join([script("nap-gate"), str(state.root), key.user])
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,pty,command="{quoted}" {key.key} {key.user}'


def _told_by_ssh_keygen(key: str) -> str:
    done = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=f"{key}\n", text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise _unreadable()
    return done.stdout.strip()


def _unreadable() -> NapError:
    return NapError("ssh-keygen cannot read that key", advice="Copy the whole line of the .pub file.")


def _file(state: State) -> Path:
    return state.ssh / "authorized_keys"
