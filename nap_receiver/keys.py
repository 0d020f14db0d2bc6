"""Who may come through the ssh gate: OpenSSH's authorized_keys, a line per key with the one command it gives."""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import sh

from nap_receiver.errors import NapError
from nap_receiver.state import State

_USER = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_KEY = re.compile(r"(?P<key>(?:ssh|ecdsa|sk)-[A-Za-z0-9@.-]+ +[A-Za-z0-9+/]+={0,3})(?: .*)?")
_LINE = re.compile(r'restrict,command="(?:\\.|[^"\\])*" (?P<key>\S+ \S+) (?P<user>\S+)')


@dataclass(frozen=True)
class Key:
    """A user's public key, as `type base64`."""

    user: str
    key: str

    @property
    def fingerprint(self) -> str:
        """`256 SHA256:… (ED25519)`, as ssh-keygen tells it."""
        size, digest, *_, kind = _told_by_ssh_keygen(self.key).split()
        return f"{size} {digest} {kind}"


def keys(state: State) -> list[Key]:
    """Every key that is let in."""
    try:
        lines = _file(state).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Key(match["user"], match["key"]) for match in map(_LINE.fullmatch, lines) if match]


def add_key(state: State, user: str, text: str) -> Key:
    """Let `user` in with the public key in `text`. Raises `NapError` with the reason when it is none."""
    if not _USER.fullmatch(user):
        raise NapError(
            f'"{user[:40]}" cannot be a user\'s name', advice="Use a to z, 0 to 9, dot, dash and underscore."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    advice = f"Give one public key: nap keys:add {user} < ~/.ssh/id_ed25519.pub"
    if "PRIVATE KEY" in text:
        raise NapError("that is a private key; it must stay where it is", advice=advice)
    if len(lines) != 1:
        raise NapError(f"expected one public key, got {len(lines)} lines", advice=advice)
    match = _KEY.fullmatch(lines[0])
    if not match:
        raise NapError(
            "that is no OpenSSH public key (type, key and perhaps a comment, without options)", advice=advice
        )
    key = Key(user, " ".join(match["key"].split()))
    _told_by_ssh_keygen(key.key)
    known = keys(state)
    for other in known:
        if other.key == key.key:
            raise NapError(f"that key is {other.user}'s already", advice="`nap keys` lists them all.")
    _write(state, [*known, key])
    return key


def remove_keys(state: State, user: str) -> int:
    """Let `user` in no longer; how many keys that were. Raises `NapError` when there was none."""
    known = keys(state)
    kept = [key for key in known if key.user != user]
    if len(kept) == len(known):
        raise NapError(f"{user} has no key here", advice="`nap keys` lists them all.")
    _write(state, kept)
    return len(known) - len(kept)


def _write(state: State, all_keys: list[Key]) -> None:
    draft = _file(state).with_suffix(".draft")
    state.ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft.write_text("".join(_line(state, key) + "\n" for key in all_keys), encoding="utf-8")
    draft.chmod(0o600)
    draft.rename(_file(state))


def _line(state: State, key: Key) -> str:
    command = shlex.join([sys.executable, "-P", "-m", "nap_receiver.gate", str(state.root), key.user])
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,command="{quoted}" {key.key} {key.user}'


def _told_by_ssh_keygen(key: str) -> str:
    try:
        return str(sh.Command("ssh-keygen")("-l", "-f", "-", _in=key + "\n", _tty_out=False)).strip()
    except sh.ErrorReturnCode as error:
        raise NapError("ssh-keygen cannot read that key", advice="Copy the whole line of the .pub file.") from error


def _file(state: State) -> Path:
    return state.ssh / "authorized_keys"
