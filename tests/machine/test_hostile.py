"""What hostile people try at the gate and at the hook, and that none of it gets them anything.

Each attempt ends in one clear line with a status that is not 0, and leaves no file, key or process. How many there are
is `HOW_MANY`, by kind.
"""

import hashlib
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.git.repository import repository_at
from tests.conftest import free_address
from tests.nap import COMMAND, HTTPD, QUICK_SSH, Nap, Pushed, answer, eventually

MINE, THEIRS = "hostile-mine", "hostile-theirs"
"""The intruder's own app, and one that the intruder has no right to."""

MIB = 1 << 20
AT_ONCE = 6
"""Sessions of one connection; sshd allows ten."""

NONE = "0" * 40
FRESH = "hostile-fresh"
"""An app that is not there, before and after."""

OUTSIDE = Path(tempfile.gettempdir(), f"nap-hostile-{os.getpid()}")
"""Where nothing is to appear."""

HEADS = "refs/heads/"
MASTER = f"{HEADS}master"
FLUSH = b"0000"


_NO_SHELL = "No such command"
_ONE_REPOSITORY = "takes exactly one argument, a repository"
_NO_PLACE = "is not a name of an app"
_NO_NAME = "cannot be an app's name"
_CHARACTERS = f"{_NO_NAME}: only a to z, 0 to 9 and single dashes"

COMMANDS: list[tuple[str | bytes, str]] = [
    # Other programs.
    ("sh", _NO_SHELL),
    ("/bin/sh", _NO_SHELL),
    ("bash -c id", _NO_SHELL),
    ("bash -i >& /dev/tcp/127.0.0.1/9 0>&1", _NO_SHELL),
    ("exit", _NO_SHELL),
    ("exec id", _NO_SHELL),
    ("env", _NO_SHELL),
    ("python3 -c 'import os'", _NO_SHELL),
    ("scp -t /etc", _NO_SHELL),
    ("scp -f /etc/passwd", _NO_SHELL),
    ("/usr/lib/openssh/sftp-server", _NO_SHELL),
    ("internal-sftp", _NO_SHELL),
    ("rsync --server --sender -e.L . /etc/passwd", _NO_SHELL),
    ("git-shell", _NO_SHELL),
    (f"git-shell -c \"git-receive-pack '{MINE}'\"", _NO_SHELL),
    (f"git-lfs-authenticate {MINE} upload", _NO_SHELL),
    ("git", _NO_SHELL),
    ("git daemon --base-path=/", _NO_SHELL),
    ("git clone /etc/x", _NO_SHELL),
    ("git config --global core.hooksPath /tmp", _NO_SHELL),
    ("git --exec-path=/tmp receive-pack x", _NO_SHELL),
    ("git -c core.hooksPath=/tmp receive-pack x", _NO_SHELL),
    (f"/usr/bin/git-receive-pack '{MINE}'", _NO_SHELL),
    (f"GIT-RECEIVE-PACK '{MINE}'", _NO_SHELL),
    (f"git-receive-pack.exe '{MINE}'", _NO_SHELL),
    (f"git git-receive-pack '{MINE}'", _NO_SHELL),
    (f"LD_PRELOAD=/tmp/x.so git-receive-pack '{MINE}'", _NO_SHELL),
    ("x" * 5000, _NO_SHELL),
    (b"\xff\xfe", _NO_SHELL),
    (b"\x1b]0;owned\x07", _NO_SHELL),
    ("\u202egnirts", _NO_SHELL),
    ("''", _NO_SHELL),
    (" ", "takes git pushes and nap's commands, and has no shell"),
    # What a shell would make something of.
    (f"git-receive-pack '{MINE}'; id", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' && id", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' || id", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' | id", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' & id", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}'\nid", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' > /tmp/x", _ONE_REPOSITORY),
    (f"git-receive-pack {{{MINE},/etc}}", _CHARACTERS),
    (f"git-receive-pack {MINE}|id", _CHARACTERS),
    ("git-receive-pack $(id)", _CHARACTERS),
    ("git-receive-pack `id`", _CHARACTERS),
    ("git-receive-pack $HOME", _CHARACTERS),
    ("git-receive-pack ${IFS}", _CHARACTERS),
    ("git-receive-pack '*'", _CHARACTERS),
    (f"git-receive-pack '{MINE}'\\'';id'", _CHARACTERS),
    ("git-receive-pack '%s%n%(refname)'", _CHARACTERS),
    (f"git-receive-pack '{MINE}", "that command cannot be read: no closing quotation"),
    (f'git-receive-pack "{MINE}', "that command cannot be read: no closing quotation"),
    (f"git-receive-pack {MINE}\\", "that command cannot be read: no escaped character"),
    ("'", "that command cannot be read: no closing quotation"),
    # Options where a repository is expected.
    ("git-receive-pack", _ONE_REPOSITORY),
    ("git receive-pack", _ONE_REPOSITORY),
    (f"git-receive-pack --reject-thin-pack-for-testing {MINE}", _ONE_REPOSITORY),
    (f"git-receive-pack --http-backend-info-refs '{MINE}'", _ONE_REPOSITORY),
    (f"git-receive-pack '{MINE}' '{THEIRS}'", _ONE_REPOSITORY),
    (f"git receive-pack --skip-connectivity-check '{MINE}'", _ONE_REPOSITORY),
    (f"git-upload-pack --timeout=1 '{MINE}'", _ONE_REPOSITORY),
    (f"git-upload-pack --strict '{MINE}'", _ONE_REPOSITORY),
    (f"git-upload-pack --stateless-rpc --advertise-refs '{MINE}'", _ONE_REPOSITORY),
    (f"git-upload-archive '{MINE}' --exec=id", _ONE_REPOSITORY),
    (f"git-upload-archive --output=/tmp/x '{MINE}'", _ONE_REPOSITORY),
    (f"git-receive-pack -- '{MINE}'", _ONE_REPOSITORY),
    ("git-receive-pack --help", _NO_PLACE),
    ("git-receive-pack -h", _NO_PLACE),
    ("git-receive-pack --", _NO_PLACE),
    ("git-upload-pack '--upload-pack=id'", _NO_PLACE),
    ("git-receive-pack 'team/--exec=id'", _NO_PLACE),
    # Paths that lead elsewhere.
    ("git-receive-pack '..'", _NO_PLACE),
    ("git-receive-pack '../x'", _NO_PLACE),
    ("git-receive-pack '/../x'", _NO_PLACE),
    ("git-receive-pack '~/../x'", _NO_PLACE),
    ("git-receive-pack '../../../../../../tmp/x'", _NO_PLACE),
    (f"git-receive-pack '{MINE}/..'", _NO_PLACE),
    (f"git-receive-pack '{MINE}/../{THEIRS}'", _NO_PLACE),
    (f"git-receive-pack 'team/../{THEIRS}'", _NO_PLACE),
    (f"git-receive-pack './../repositories/{THEIRS}'", _NO_PLACE),
    ("git-upload-pack '../run/x'", _NO_PLACE),
    ("git-upload-pack '//etc'", _NO_PLACE),
    ("git-upload-pack '///etc'", _NO_PLACE),
    ("git-upload-pack '~//etc'", _NO_PLACE),
    ("git-upload-archive '//tmp/x.git'", _NO_PLACE),
    ("git-receive-pack '.'", _NO_PLACE),
    ("git-receive-pack '/'", _NO_PLACE),
    ("git-receive-pack '//'", _NO_PLACE),
    ("git-receive-pack ''", _NO_PLACE),
    ("git-receive-pack '.git'", _NO_PLACE),
    (f"git-receive-pack '{MINE}/.git'", _NO_PLACE),
    (f"git-receive-pack '{MINE}.git/.git'", _NO_PLACE),
    ("git-receive-pack '.creating-x'", _NO_PLACE),
    ("git-receive-pack '...'", _NO_PLACE),
    (f"git-receive-pack '{MINE}.git/hooks'", _CHARACTERS),
    (f"git-receive-pack '{MINE}.git/objects/info'", _CHARACTERS),
    ("git-receive-pack '~root/x'", _CHARACTERS),
    ("git-receive-pack '..\\..\\x'", _NO_PLACE),
    ("git-receive-pack 'C:\\x'", _CHARACTERS),
    ("git-receive-pack 'file:///etc/x'", _CHARACTERS),
    ("git-receive-pack 'ext::sh -c id'", _CHARACTERS),
    ("git-upload-pack '/etc/passwd'", "app etc-passwd does not exist"),
    ("git-upload-pack '/etc'", "app etc does not exist"),
    # Names that no app can have.
    ("git-receive-pack 'Shop'", _CHARACTERS),
    ("git-receive-pack 'my_shop'", _CHARACTERS),
    ("git-receive-pack 'my.shop'", _CHARACTERS),
    ("git-receive-pack 'my shop'", _CHARACTERS),
    ("git-receive-pack ' shop'", _CHARACTERS),
    ("git-receive-pack 'a--b'", _CHARACTERS),
    ("git-receive-pack 'team-/shop'", _CHARACTERS),
    ("git-receive-pack 'x-'", _CHARACTERS),
    ("git-receive-pack 'käse'", _CHARACTERS),
    ("git-receive-pack 'ѕhop'", _CHARACTERS),
    ("git-receive-pack 'ＳＨＯＰ'", _CHARACTERS),
    ("git-receive-pack 'shop²'", _CHARACTERS),
    ("git-receive-pack 'a\u202eb'", _NO_PLACE),
    ("git-receive-pack 'a\u200bb'", _NO_PLACE),
    ("git-receive-pack 'a\u0085b'", _NO_PLACE),
    ("git-receive-pack 'a\nb'", _NO_PLACE),
    ("git-receive-pack 'a\n'", _NO_PLACE),
    ("git-receive-pack 'a\rb'", _NO_PLACE),
    ("git-receive-pack 'a\tb'", _NO_PLACE),
    ("git-receive-pack 'a\x1b[31mb'", _NO_PLACE),
    ("git-receive-pack 'a\x7fb'", _NO_PLACE),
    (b"git-receive-pack 'a\xffb'", _NO_PLACE),
    (b"git-receive-pack '\xc0\xae\xc0\xae/x'", _NO_PLACE),
    (f"git-receive-pack '{'x' * 41}'", f"{_NO_NAME}: it has 41 characters; the limit is 40"),
    (f"git-receive-pack '{'x' * 20}/{'y' * 20}'", f"{_NO_NAME}: it has 41 characters; the limit is 40"),
    (f"git-upload-pack '{'x' * 40}'", f"app {'x' * 40} does not exist"),
    (f"git-receive-pack '{'x' * 300}'", f"{_NO_NAME}: it has 300 characters; the limit is 40"),
    (f"git-receive-pack '{'ä' * 150}'", f"{_NO_NAME}: it has 150 characters; the limit is 40"),
    (f"git-receive-pack '{'x/' * 2500}'", f"{_NO_NAME}: it has 4999 characters; the limit is 40"),
    # Another user's app, through git.
    (f"git-receive-pack '{THEIRS}'", f"hostile-intruder may not push to {THEIRS}"),
    (f"git-receive-pack '/{THEIRS}.git'", f"hostile-intruder may not push to {THEIRS}"),
    (f"git-receive-pack '~/{THEIRS}'", f"hostile-intruder may not push to {THEIRS}"),
    (f"git-receive-pack './{THEIRS}/'", f"hostile-intruder may not push to {THEIRS}"),
    ("git-receive-pack 'hostile/theirs'", f"app name {THEIRS} is already used by repository {THEIRS}"),
    (f"git-upload-pack '{THEIRS}'", f"hostile-intruder may not read {THEIRS}"),
    (f"git-upload-archive '{THEIRS}'", f"hostile-intruder may not read {THEIRS}"),
    ("git-upload-pack 'hostile/theirs'", f"hostile-intruder may not read {THEIRS}"),
    (f"git upload-pack {THEIRS}", f"hostile-intruder may not read {THEIRS}"),
    # An app that is not there.
    (f"git-upload-pack '{FRESH}'", f"app {FRESH} does not exist"),
    (f"git-upload-archive '{FRESH}'", f"app {FRESH} does not exist"),
]
"""What is sent as the command of an ssh session, and what the answer says."""

NAP_COMMANDS: list[tuple[str | bytes, str]] = [
    # For nap's host only.
    *((name, _NO_SHELL) for name in ("up", "down", "status", "settings", "keys", "doctor")),
    ("keys:add intruder", _NO_SHELL),
    ("keys:remove hostile-owner", _NO_SHELL),
    ("gitolite:install /tmp", _NO_SHELL),
    ("up --help", _NO_SHELL),
    ("help up", _NO_SHELL),
    ("nap builds x", _NO_SHELL),
    # Another user's app, an app that is not there, and what is no app.
    *(
        (f"{words.format(THEIRS)}", f"hostile-intruder may not {right} {THEIRS}")
        for words, right in (
            ("access {}", "read"),
            ("access:add {} hostile-intruder owner", "administer"),
            ("access:remove {} hostile-owner", "administer"),
            ("builds {}", "read"),
            ("builds:output {}", "read"),
            ("builds:output {} -t", "read"),
            ("builds:output {} ../../x", "read"),
            ("builds:cancel {}", "push to"),
            ("ps:scale {} web=3", "push to"),
        )
    ),
    *(
        (words, f"app {FRESH} does not exist")
        for words in (
            f"access {FRESH}",
            f"access:add {FRESH} hostile-intruder owner",
            f"access:remove {FRESH} hostile-intruder",
            f"builds {FRESH}",
            f"builds:output {FRESH}",
            f"builds:cancel {FRESH}",
            f"ps:scale {FRESH} web=3",
        )
    ),
    ("builds ../../etc", _CHARACTERS),
    ("builds /etc", _CHARACTERS),
    ("access ''", f"{_NO_NAME}: it is empty"),
    ("builds:output 'a\nb'", _CHARACTERS),
    ("builds:output \x1b[31m", _CHARACTERS),
    ("builds:cancel '*'", _CHARACTERS),
    (b"access \xff\xfe", _CHARACTERS),
    (f"access {'x' * 300}", f"{_NO_NAME}: it has 300 characters; the limit is 40"),
    ("apps:create", "Missing argument 'APP'"),
    (f"apps:create {THEIRS}", f"app name {THEIRS} is already in use: hostile-owner owns it"),
    (f"apps:create {MINE}", f"app name {MINE} is already in use"),
    ("apps:create ../../x", "'../../x' is not a name of an app"),
    ("apps:create .git", "'.git' is not a name of an app"),
    ("apps:create 'a\nb'", "'a\\nb' is not a name of an app"),
    ("apps:create 'a b'", _CHARACTERS),
    ("apps:create \x1b[31m", "is not a name of an app"),
    (f"apps:create {'x' * 300}", f"{_NO_NAME}: it has 300 characters; the limit is 40"),
    (f"apps:create {FRESH} --state /tmp", "No such option '--state'"),
    # Options and words that are not there.
    (f"builds {MINE} --state /tmp", "No such option '--state'"),
    (f"builds --state=/tmp {MINE}", "No such option '--state'"),
    (f"builds {MINE} --st\x1b[31mate", "No such option"),
    (f"builds:output {MINE} --tail=1", "Option '--tail' does not take a value"),
    (f"builds:output {MINE} -x", "No such option '-x'"),
    (f"builds {MINE} ; id", "Got unexpected extra argument"),
    (f"builds {MINE} 'a\nb'", "Got unexpected extra argument"),
    (f"builds {MINE} '\x1b]0;owned\x07'", "Got unexpected extra argument"),
    (f"builds {MINE} '\u202egnirts'", "Got unexpected extra argument"),
    (f"builds {MINE} {'x' * 5000}", "Got unexpected extra argument"),
    ("builds", "Missing argument 'APP'"),
    (f"builds:output {MINE} ../../x", "there is no build '../../x' of hostile-mine on this host"),
    (f"builds:output {MINE} /etc/passwd", "there is no build '/etc/passwd' of hostile-mine on this host"),
    (f"builds:output {MINE} '\x1b[31m'", "there is no build '\\x1b[31m' of hostile-mine on this host"),
    (f"builds:output {MINE} '*'", "there is no build '*' of hostile-mine on this host"),
    (f"builds:output {MINE} {'x' * 5000}", "there is no build"),
    (f"builds:cancel {MINE}", f"nothing is being deployed to {MINE}"),
    # Of one's own app.
    (f"access:add {MINE} x y root", "'y' is not one of"),
    (f"access:add {MINE} x read root", "Got unexpected extra argument"),
    (f"access:add {MINE} hostile-owner root", "'root' is not one of"),
    (f"access:add {MINE} hostile-owner OWNER", "'OWNER' is not one of"),
    (f"access:add {MINE} hostile-owner 'own\x1b[31mer'", "is not one of"),
    (f"access:add {MINE} ../../x", "'../../x' is not a valid user name"),
    (f"access:add {MINE} 'x y'", "'x y' is not a valid user name"),
    (f"access:add {MINE} 'a\nb'", "'a\\nb' is not a valid user name"),
    (f"access:add {MINE} 'alice\",command=\"sh'", "is not a valid user name"),
    (f"access:add {MINE} Root", "'Root' is not a valid user name"),
    (f"access:add {MINE} käse", "'k\\xe4se' is not a valid user name"),
    (f"access:add {MINE} ''", "'' is not a valid user name"),
    (f"access:add {MINE} {'x' * 33}", "is not a valid user name"),
    (f"access:add {MINE} hostile-intruder read", "hostile-intruder is the only owner of hostile-mine"),
    (f"access:remove {MINE} hostile-intruder", "hostile-intruder is the only owner of hostile-mine"),
    (f"access:remove {MINE} nobody", "nobody has no right to hostile-mine"),
    (f"access:remove {MINE} '../../x'", "'../../x' is not a valid user name"),
    (f"ps:scale {MINE} web", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} web=101", "expected PROCESS=COUNT with a count from 0 to 100"),
    (f"ps:scale {MINE} web=-1", "expected PROCESS=COUNT with a count from 0 to 100"),
    (f"ps:scale {MINE} web=1e1", "expected PROCESS=COUNT with a count from 0 to 100"),
    (f"ps:scale {MINE} web=²", "expected PROCESS=COUNT with a count from 0 to 100"),
    (f"ps:scale {MINE} web={'9' * 5000}", "expected PROCESS=COUNT with a count from 0 to 100"),
    (f"ps:scale {MINE} =1", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} web=1=1", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} '\x1b[31m=x'", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} ../../x=1", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} ../../../../../../../../../..{OUTSIDE}/x=1", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} web=1 'we\nb=1'", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} '\x1b[31mweb=1'", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} {'x' * 300}=1", "expected PROCESS=COUNT"),
    (f"ps:scale {MINE} -- --state=1", "expected PROCESS=COUNT"),
    # Of a container that one may have, and those that one may not.
    ("run", "Missing argument 'APP'"),
    (f"run {MINE}", "Give a command, such as: run"),
    (f"run {MINE} --", "Give a command, such as: run"),
    (f"run {MINE} sh", f"{MINE} was never deployed"),
    (f"run {MINE} --privileged sh", f"{MINE} was never deployed"),
    (f"run --privileged {MINE} sh", "No such option '--privileged'"),
    (f"run --state /tmp {MINE} sh", "No such option '--state'"),
    (f"run {THEIRS} sh", f"hostile-intruder may not push to {THEIRS}"),
    (f"run {THEIRS}", f"hostile-intruder may not push to {THEIRS}"),
    (f"run {FRESH} sh", f"app {FRESH} does not exist"),
    ("run ../../x sh", _CHARACTERS),
    ("run -- -it sh", _CHARACTERS),
]
"""Of nap's own commands, the same."""

NOT_CARRIED = ("a\0b", "\0", "a/\0", "\0/../x", f"{THEIRS}\0")
"""Paths with a NUL, which neither ssh nor an environment variable carries: the gate's own check is asked."""

ENVIRONMENT = (
    "LD_PRELOAD=/tmp/x.so",
    "LD_LIBRARY_PATH=/tmp",
    "PATH=/tmp",
    "BASH_ENV=/tmp/x",
    "ENV=/tmp/x",
    "PYTHONPATH=/tmp",
    "PYTHONSTARTUP=/tmp/x.py",
    "PYTHONHOME=/tmp",
    "PYTHONINSPECT=1",
    "GIT_DIR=/etc",
    "GIT_CONFIG_COUNT=1",
    "GIT_CONFIG_PARAMETERS='core.hooksPath=/tmp'",
    "GIT_CONFIG_GLOBAL=/tmp/x",
    "GIT_CONFIG_SYSTEM=/tmp/x",
    "GIT_SSH_COMMAND=id",
    "GIT_EXEC_PATH=/tmp",
    "GIT_TRACE=/tmp/x",
    "GIT_PUSH_OPTION_COUNT=1",
    "GL_USER=hostile-owner",
    f"GL_REPO={THEIRS}",
    "NAP_STATE=/tmp",
    "NAP_USER=hostile-owner",
    "NAP_GATE=1 1",
    "NAP_VERDICT=/tmp/x",
    "NAP_SSH_MAX_PUSH=0",
    "SSH_AUTH_SOCK=/tmp/x",
    "SSH_ORIGINAL_COMMAND=sh",
    "DISPLAY=:0",
    "HOME=/tmp",
    "LANG=../../x",
    "_NAP_COMPLETE=bash_source",
    "_SSH_HOST_COMPLETE=bash_source",
)
TERMINAL: list[tuple[str, str]] = [
    *(
        (f"{git} '{MINE}'", "git needs a connection without a terminal")
        for git in ("git-receive-pack", "git-upload-pack")
    ),
    ("git upload-archive /etc", "git needs a connection without a terminal"),
    ("", "takes git pushes and nap's commands, and has no shell"),
    ("sh", _NO_SHELL),
    ("bash -i", _NO_SHELL),
    ("run; sh", _NO_SHELL),
    ("run", "Missing argument 'APP'"),
    (f"run {MINE} sh", f"{MINE} was never deployed"),
    (f"run {THEIRS} sh", f"hostile-intruder may not push to {THEIRS}"),
    (f"apps:destroy {THEIRS}", f"hostile-intruder may not administer {THEIRS}"),
]
"""What is sent with a terminal, and what the answer says."""

ODD_PROTOCOLS = (
    "GIT_PROTOCOL=version=2:x",
    "GIT_PROTOCOL=version=22",
    "GIT_PROTOCOL=version=2 ",
    "GIT_PROTOCOL=version=-1",
    "GIT_PROTOCOL=() { :; }; id",
    f"GIT_PROTOCOL={'version=2:' * 400}",
)
"""What a client asks sshd to put into the environment; sshd lets in the last ones."""


def string(content: bytes) -> bytes:
    """A string of the ssh protocol (RFC 4251, section 5)."""
    return struct.pack(">I", len(content)) + content


def key_line(kind: str, *fields: bytes, blob_kind: str | None = None) -> str:
    """A public key made by hand."""
    blob = b"".join(map(string, ((blob_kind or kind).encode(), *fields)))
    return f"{kind} {b64encode(blob).decode()}"


def rsa_line(bits: int) -> str:
    """An RSA public key of this size that nobody has the private half of."""
    modulus = (1 << (bits - 1)) | int.from_bytes(hashlib.sha512(b"modulus").digest()) | 1
    return key_line("ssh-rsa", b"\1\0\1", b"\0" + modulus.to_bytes(bits // 8))


# The base point of each curve (SEC 2, 2.4 and 2.5): a point that is on it.
_P256 = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
ED25519 = key_line("ssh-ed25519", hashlib.sha256(b"a key").digest())
_ED25519_BLOB = ED25519.split()[1]

BAD_KEYS: list[tuple[str, str | bytes, str]] = [
    ("alice", f'command="sh" {ED25519}', "options before the key are not accepted"),
    ("alice", f"no-pty,permitopen=* {ED25519}", "options before the key are not accepted"),
    ("alice", f'environment="LD_PRELOAD=/tmp/x.so" {ED25519}', "options before the key are not accepted"),
    ("alice", f"cert-authority {ED25519}", "options before the key are not accepted"),
    ("alice", f'from="*",command="a b c" {ED25519}', "options before the key are not accepted"),
    ("alice", f'"\n{ED25519}', "expected one public key, got 2 lines"),
    ("alice", f"{ED25519}\n{ED25519}\n", "expected one public key, got 2 lines"),
    ("alice", f'{ED25519} alice\ncommand="sh" {ED25519}', "expected one public key, got 2 lines"),
    ("alice", f'{ED25519} alice\rcommand="sh" {ED25519}', "expected one public key, got 2 lines"),
    ("alice", f'{ED25519} alice\u2028command="sh" {ED25519}', "expected one public key, got 2 lines"),
    ("alice", "", "expected one public key, got 0 lines"),
    ("alice", "\n \n# only a comment\n", "expected one public key, got 0 lines"),
    (
        "alice",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n",
        "expected a public key, got a private key",
    ),
    ("alice", "-----BEGIN RSA PRIVATE KEY-----\nx\n", "expected a public key, got a private key"),
    ("alice", "---- BEGIN SSH2 PUBLIC KEY ----\nx\n---- END SSH2 PUBLIC KEY ----\n", "not in OpenSSH's format"),
    ("alice", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n", "not in OpenSSH's format"),
    ("alice", "-----BEGIN RSA PUBLIC KEY-----\nx\n-----END RSA PUBLIC KEY-----\n", "not in OpenSSH's format"),
    ("alice", key_line("ssh-dss", b"\1", b"\1", b"\1", b"\1"), "that is a DSA key, which OpenSSH no longer accepts"),
    ("alice", key_line("ssh-ed25519-cert-v01@openssh.com", b"\1" * 32), "expected a public key, got a certificate"),
    ("alice", rsa_line(768), "that RSA key has 768 bits; OpenSSH accepts 1024 or more"),
    ("alice", "ssh-ed25519", "that is not an OpenSSH public key: it begins with 'ssh-ed25519'"),
    ("alice", f"ssh-ed448 {_ED25519_BLOB}", "that is not an OpenSSH public key: it begins with 'ssh-ed448'"),
    ("alice", "hello", "that is not an OpenSSH public key: it begins with 'hello'"),
    ("alice", "\x1b]0;owned\x07 x", "that is not an OpenSSH public key: it begins with '\\x1b]0;owned\\x07'"),
    ("alice", b"\xff\xfe" * 1000, "that is not an OpenSSH public key"),
    ("alice", f"ssh-rsa {_ED25519_BLOB}", "ssh-keygen cannot read that key"),
    ("alice", f"ecdsa-sha2-nistp384 {_ED25519_BLOB}", "ssh-keygen cannot read that key"),
    ("alice", "ssh-ed25519 !!!notbase64!!!", "ssh-keygen cannot read that key"),
    ("alice", "ssh-ed25519 AAAA", "ssh-keygen cannot read that key"),
    ("alice", f"ssh-ed25519 {_ED25519_BLOB[:-8]}", "ssh-keygen cannot read that key"),
    ("alice", f"ssh-ed25519 {b64encode(os.urandom(51)).decode()}", "ssh-keygen cannot read that key"),
    ("alice", key_line("ssh-ed25519", b"\1" * 31), "ssh-keygen cannot read that key"),
    ("alice", key_line("ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\1" * 64), "ssh-keygen cannot read that key"),
    ("alice", key_line("ecdsa-sha2-nistp256", b"nistp384", _P256), "ssh-keygen cannot read that key"),
    ("alice", f'{ED25519}\0,command="sh"', "ssh-keygen cannot read that key"),
    ("alice", f"ssh-ed25519 {'A' * MIB}", "more than 65536 bytes"),
    ("alice", "x" * MIB, "more than 65536 bytes"),
    ("alice", f"{ED25519}\n" * 10000, "more than 65536 bytes"),
    ("alice", f"{ED25519}{' ' * MIB}\n{ED25519}\n", ""),
    ('alice",command="sh', ED25519, "is not a valid user name"),
    ("alice bob", ED25519, "'alice bob' is not a valid user name"),
    ("alice\nroot", ED25519, "'alice\\nroot' is not a valid user name"),
    ("alice\n", ED25519, "'alice\\n' is not a valid user name"),
    ("'alice'", ED25519, "is not a valid user name"),
    ("$(id)", ED25519, "'$(id)' is not a valid user name"),
    ("alice;id", ED25519, "'alice;id' is not a valid user name"),
    ("../alice", ED25519, "'../alice' is not a valid user name"),
    (".alice", ED25519, "'.alice' is not a valid user name"),
    ("Alice", ED25519, "'Alice' is not a valid user name"),
    ("älice", ED25519, "'\\xe4lice' is not a valid user name"),
    ("al\u202eice", ED25519, "'al\\u202eice' is not a valid user name"),
    ("\x1b[31m", ED25519, "'\\x1b[31m' is not a valid user name"),
    ("", ED25519, "'' is not a valid user name"),
    ("a" * 33, ED25519, "is not a valid user name"),
    ("a" * 100_000, ED25519, "is not a valid user name"),
]
"""Who is to be let in, with what key, and the reason why not."""

GOOD_KEYS: dict[str, str | list[str]] = {
    "ed25519": ["-t", "ed25519"],
    "rsa-2048": ["-t", "rsa", "-b", "2048"],
    "rsa-3072": ["-t", "rsa", "-b", "3072"],
    "ecdsa-256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa-384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa-521": ["-t", "ecdsa", "-b", "521"],
    "sk-ed25519": key_line("sk-ssh-ed25519@openssh.com", hashlib.sha256(b"a token").digest(), b"ssh:"),
    "sk-ecdsa": key_line("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", _P256, b"ssh:"),
}
"""What ssh-keygen makes it from; those of security tokens, which are not at hand, by hand."""


@dataclass(frozen=True)
class Left:
    """What an attempt could leave behind."""

    files: frozenset[str]
    keys: frozenset[str]
    processes: frozenset[str]

    def __sub__(self, other: "Left") -> set[str]:
        return set((self.files - other.files) | (self.keys - other.keys) | (self.processes - other.processes))


@dataclass(frozen=True)
class Said(Pushed):
    """How git ended, and all that it said as it was."""

    raw: str


class Guest:
    """Somebody with a key to the gate, on a connection that is kept."""

    def __init__(self, nap: Nap, user: str, folder: Path, *how: str) -> None:
        self.nap, self.user, self.folder = nap, user, folder
        self.key = folder / user
        subprocess.run(
            ["ssh-keygen", "-q", *(how or ("-t", "ed25519")), "-N", "", "-C", "", "-f", str(self.key)], check=True
        )
        nap.run("keys:add", user, stdin=self.public)
        self.words = ["ssh", "-F", "none", "-i", str(self.key), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        self.words += shlex.split(QUICK_SSH)
        self.words += ["-o", f"UserKnownHostsFile={folder}/known", "-o", "StrictHostKeyChecking=accept-new"]
        self.words += ["-o", "IdentitiesOnly=yes"]
        self.kept = ["-o", f"ControlPath={folder}/{user}.sock"]
        address = nap.settings.ssh.address
        self.to = ["-p", str(address.port), f"root@{address.host}"]
        self.url = f"ssh://root@{address}"

    @property
    def public(self) -> str:
        return self.key.with_suffix(".pub").read_text()

    @contextmanager
    def connected(self) -> Iterator["Guest"]:
        """Every session over one connection, for the block; each runs the gate anew."""
        master = subprocess.Popen([*self.words, *self.kept, "-M", "-N", *self.to], stdin=subprocess.DEVNULL)
        eventually(Path(f"{self.folder}/{self.user}.sock").exists, 10, f"{self.user} is connected")
        try:
            yield self
        finally:
            master.terminate()
            master.wait(timeout=10)

    def ssh(self, command: str | bytes) -> "subprocess.CompletedProcess[bytes]":
        words = [*self.words, *self.kept, *self.to, command]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)

    def alone(self, *options: str) -> list[str]:
        """ssh with these options, on a connection of its own."""
        return [*self.words, *options, *self.to]

    def git(self, *words: str | bytes, folder: Path | None = None, ok: bool = True) -> "Said":
        """git as this user, with what it said in lines."""
        environment = os.environ | {
            "GIT_SSH_COMMAND": shlex.join([*self.words, *self.kept]),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        started = time.monotonic()
        done = subprocess.run(
            ["git", "-c", f"user.name={self.user}", "-c", "user.email=a@b", *words],
            cwd=folder or self.folder,
            env=environment,
            capture_output=True,
            check=False,
            timeout=120,
        )
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert not ok or done.returncode == 0, said
        lines = [line.removeprefix("remote: ").rstrip() for line in said.split("\n")]
        return Said(done.returncode, lines, time.monotonic() - started, said)

    def work(self, **files: str) -> Path:
        """A repository of theirs with one commit."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        self.git("init", "--quiet", "--initial-branch=master", folder=folder)
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_text(content)
        self.git("add", "--all", folder=folder)
        self.git("commit", "--quiet", "--allow-empty", "--message=A change", folder=folder)
        return folder

    def wire(self, command: str) -> "Wire":
        return Wire([*self.words, *self.kept, *self.to, command])


class Wire:
    """A client that speaks git's protocol by hand, or something else."""

    def __init__(self, words: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout
        self.trouble: IO[bytes] = self.process.stderr

    def refs(self) -> dict[str, str]:
        """What is advertised."""
        found = {}
        while packet := self.packet():
            name, _, ref = packet.partition(b"\0")[0].strip().partition(b" ")
            found[ref.decode()] = name.decode()
        return found

    def packet(self) -> bytes | None:
        length = int(self.output.read(4) or b"0", 16)
        return self.output.read(length - 4) if length else None

    def send(self, *parts: bytes) -> None:
        self.send_each(parts)

    def send_each(self, parts: Iterable[bytes]) -> None:
        """Until all is sent, or nobody listens."""
        with suppress(BrokenPipeError):
            for part in parts:
                self.input.write(part)
            self.input.flush()

    def end(self, seconds: float = 60) -> tuple[int, bytes]:
        """Say no more: ssh's exit status, and all that was answered, without the bands of it."""
        heard: list[bytes] = []
        streams = [threading.Thread(target=lambda s=s: heard.append(s.read())) for s in (self.output, self.trouble)]
        for stream in streams:
            stream.start()
        with suppress(BrokenPipeError):
            self.input.close()
        status = self.process.wait(timeout=seconds)
        for stream in streams:
            stream.join()
        self.output.close()
        self.trouble.close()
        return status, re.sub(rb"[0-9a-f]{4}[\1\2\3]", b"", b"\n".join(heard))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def packet(content: bytes) -> bytes:
    """A pkt-line (gitprotocol-common(5))."""
    return b"%04x" % (len(content) + 4) + content


def update(ref: str, new: str, old: str = NONE, capabilities: str = "report-status side-band-64k") -> bytes:
    """The first command of a push."""
    return packet(f"{old} {new} {ref}\0 {capabilities}".encode())


def packed(*objects: tuple[str, bytes]) -> bytes:
    """A pack of whole objects (gitformat-pack(5))."""
    content = b"PACK" + struct.pack(">II", 2, len(objects))
    for kind, data in objects:
        content += pack_header({"commit": 1, "tree": 2, "blob": 3}[kind], len(data)) + zlib.compress(data)
    return content + hashlib.sha1(content).digest()


def pack_header(kind: int, size: int) -> bytes:
    first, size = kind << 4 | size & 15, size >> 4
    header = bytearray()
    while size:
        header.append(first | 128)
        first, size = size & 127, size >> 7
    return bytes(header + bytes([first]))


def named(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


TREE = b""
COMMIT = f"tree {named('tree', TREE)}\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\nA change\n".encode()
HEAD = named("commit", COMMIT)
PACK = packed(("tree", TREE), ("commit", COMMIT))
HUGE = pack_header(3, 1 << 60) + zlib.compress(b"x" * 1000)

Row = tuple[Any, ...]


class Place:
    """The gate with an owner's app and an intruder's, and a way to see that an attempt left nothing."""

    def __init__(self, nap: Nap, owner: Guest, intruder: Guest) -> None:
        self.nap, self.owner, self.intruder = nap, owner, intruder
        self.etcd = nap.etcd()
        self.ends: dict[int, tuple[int, bytes]] = {}
        self.last = self.left()

    @property
    def repositories(self) -> Path:
        return self.nap.state.repositories

    def left(self) -> Left:
        state = self.nap.state
        files = set()
        for top in (state.repositories, state.deploy_logs, state.run, state.ssh, OUTSIDE):
            for folder, folders, names in os.walk(top):
                if Path(folder).name == "engine" and Path(folder).parent == state.run:
                    folders.clear()
                    continue
                files |= {f"{folder}/{name}" for name in (*folders, *names)}
        keys = set()
        for prefix in ("/nap/", "/services/"):
            for entry in self.etcd.below(prefix).entries:
                keys.add(f"{entry.key} = {entry.value}" if "/access/" in entry.key else entry.key)
        keys.add(f"authorized_keys: {(state.ssh / 'authorized_keys').read_text()}")
        return Left(frozenset(files), frozenset(keys), frozenset(self.processes()))

    def processes(self) -> Iterator[str]:
        root = str(self.nap.state.root)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
                if root in words and any(mark in words for mark in ("nap_receiver.", "nap-gate", "nap-router", "git")):
                    yield f"{process.name} {words}"

    def attempt(self, table: list[Row], row: Row, run: Callable[[Row], tuple[int, bytes]]) -> tuple[int, str]:
        """How this row of the table ends, and what it says. Some rows are run at once, and nothing is left of those."""
        if id(row) not in self.ends:
            begin = table.index(row)
            batch = table[begin : begin + AT_ONCE]
            with self.nothing_left(), ThreadPoolExecutor(AT_ONCE) as pool:
                self.ends.update(zip(map(id, batch), pool.map(run, batch), strict=True))
        status, said = self.ends[id(row)]
        return status, said.decode("utf-8", "replace")

    def asked(self, row: tuple[str | bytes, str]) -> tuple[int, bytes]:
        """The intruder asks the gate for this."""
        done = self.intruder.ssh(row[0])
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """Whatever the block does leaves no file, key or process, and takes none away."""
        before = self.last
        yield
        with suppress(AssertionError):
            eventually(lambda: not self.left() - before, 5, "nothing is left")
        self.last = self.left()
        assert self.last - before == set()
        gone = {path for path in before.files - self.last.files if Path(path).is_relative_to(self.repositories)}
        gone |= {key for key in before.keys - self.last.keys if " = " in key or "authorized_keys" in key}
        assert gone == set()


@pytest.fixture(scope="module")
def place(nap: Nap, short_folder: Path) -> Iterator[Place]:
    folder = short_folder / "hostile"
    folder.mkdir()
    owner, intruder = Guest(nap, "hostile-owner", folder), Guest(nap, "hostile-intruder", folder)
    with owner.connected(), intruder.connected():
        for guest, app in ((owner, THEIRS), (intruder, MINE)):
            guest.git(
                "push", "-o", "nap.deploy=no", f"{guest.url}/{app}", "HEAD:refs/heads/master", folder=guest.work()
            )
        there = Place(nap, owner, intruder)
        yield there
        there.etcd.close()
    shutil.rmtree(OUTSIDE, ignore_errors=True)


@pytest.fixture
def untouched(place: Place) -> Iterator[Place]:
    """The place, which is as before when the test is over."""
    with place.nothing_left():
        yield place


def clear(text: str, fragment: str) -> None:
    """One line that says what is wrong, with `fragment` in it, and what to do; no control character, no flood."""
    assert text.endswith("\n"), text
    lines = text.removesuffix("\n").split("\n")
    assert lines[0].startswith(" !     "), text
    assert fragment in lines[0]
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert line.isprintable(), ascii(line)
        assert line.startswith(" !     ")
        assert len(line) <= 320, f"{len(line)} characters"
        assert "nap itself failed" not in line


def harmless(text: str) -> None:
    """No control character, and nothing of Python's."""
    assert "Traceback" not in text
    assert "nap itself failed" not in text
    assert all(c.isprintable() or c in "\n\r" for c in text), ascii(text)


def label(row: tuple[object, ...]) -> str:
    return ascii(row[0])[:50]


@pytest.mark.parametrize("row", COMMANDS, ids=label)
def test_command_is_refused(place: Place, row: tuple[str | bytes, str]) -> None:
    status, said = place.attempt(COMMANDS, row, place.asked)
    clear(said, row[1])
    assert status in {1, 2}


@pytest.mark.parametrize("row", NAP_COMMANDS, ids=label)
def test_nap_command_is_refused(place: Place, row: tuple[str | bytes, str]) -> None:
    status, said = place.attempt(NAP_COMMANDS, row, place.asked)
    clear(said, row[1])
    assert status in {1, 2}


@pytest.mark.parametrize("path", NOT_CARRIED, ids=ascii)
def test_path_with_a_nul_has_no_place(untouched: Place, path: str) -> None:
    with pytest.raises(NapError, match=_NO_PLACE) as error:
        repository_at(path, untouched.nap.state)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("row", BAD_KEYS, ids=[f"{number}" for number in range(len(BAD_KEYS))])
def test_key_is_refused_with_the_reason(place: Place, row: tuple[str, str | bytes, str]) -> None:
    def added(row: tuple[str, str | bytes, str]) -> tuple[int, bytes]:
        content = row[1].encode() if isinstance(row[1], str) else row[1]
        words = [str(COMMAND), "keys:add", row[0]]
        done = subprocess.run(words, env=place.nap.environment, input=content, capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = place.attempt(BAD_KEYS, row, added)
    clear(said, row[2])
    assert status == 1


@pytest.mark.parametrize("kind", GOOD_KEYS)
def test_key_of_every_type_is_let_in(untouched: Place, kind: str, tmp_path: Path) -> None:
    user = f"hostile-{kind}"
    made = GOOD_KEYS[kind]
    if isinstance(made, str):
        untouched.nap.run("keys:add", user, stdin=f"{made} a comment, and more\n")
        assert untouched.nap.run("keys").stdout.count(user) == 1
    else:
        guest = Guest(untouched.nap, user, tmp_path, *made)
        assert guest.ssh("help").returncode == 0
    untouched.nap.run("keys:remove", user)


def environments(place: Place, words: str) -> list[dict[str, str]]:
    """Of the processes that serve the gate now and whose command has these words in it."""
    found = []
    for line in place.processes():
        process, _, command = line.partition(" ")
        if words in command:
            with suppress(OSError):
                content = Path("/proc", process, "environ").read_bytes().decode("utf-8", "replace")
                found.append(dict(entry.partition("=")[::2] for entry in content.split("\0") if entry))
    return found


@contextmanager
def held(place: Place, *options: str) -> Iterator[tuple[list[dict[str, str]], list[dict[str, str]]]]:
    """A push that waits for its client, with these options of ssh's: the environments of the gate's and of git's."""
    gate, git = (
        f"nap-gate {place.nap.state.root} {place.intruder.user} ",
        "git --no-replace-objects receive-pack ",
    )
    client = Wire([*place.intruder.alone(*options), f"git-receive-pack '{MINE}'"])
    try:
        eventually(lambda: environments(place, git), 10, "git waits")
        yield environments(place, gate), environments(place, git)
    finally:
        client.kill()
        eventually(lambda: not environments(place, git), 5, "that one has ended")


@pytest.mark.parametrize("sent", [ENVIRONMENT, *([odd] for odd in ODD_PROTOCOLS)], ids=label)
def test_no_environment_is_let_in(untouched: Place, sent: list[str]) -> None:
    words = " ".join('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in sent)
    with held(untouched, "-o", f"SetEnv={words}") as (gates, gits):
        assert gates
        for environment in gates:
            let_in = {entry for entry in sent if entry in {"=".join(item) for item in environment.items()}}
            assert all(entry.startswith("GIT_PROTOCOL=") for entry in let_in)
        for environment in gits:
            assert environment.keys() <= {"PATH", "HOME", "LANG", "TZ", "GIT_CONFIG_SYSTEM", "NAP_GATE"}
            assert not {f"{name}={value}" for name, value in environment.items()} & set(sent)


@pytest.mark.parametrize("row", TERMINAL, ids=label)
def test_a_terminal_is_no_shell(place: Place, row: tuple[str, str]) -> None:
    def asked(row: tuple[str, str]) -> tuple[int, bytes]:
        words = [*place.intruder.alone("-tt"), row[0]]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
        return done.returncode, done.stdout.replace(b"\r\n", b"\n") + done.stderr

    status, said = place.attempt(TERMINAL, row, asked)
    clear(said, row[1])
    assert status in {1, 2}


@pytest.mark.parametrize("key", [b"\x03", b"\x1a", b"\x1c"], ids=["Ctrl-C", "Ctrl-Z", "Ctrl-Backslash"])
def test_no_key_leads_out_of_what_runs(untouched: Place, key: bytes) -> None:
    words = [*untouched.intruder.alone("-tt"), f"apps:destroy {MINE}"]
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert client.stdout and client.stdin
    asked = b""
    while b"to go on" not in asked:
        asked += os.read(client.stdout.fileno(), 4096)
    client.stdin.write(key + b"\rid\r\x04")
    client.stdin.flush()
    with suppress(subprocess.TimeoutExpired):
        client.wait(timeout=20)
    client.kill()
    said, _ = client.communicate()
    assert b"uid=" not in said


def test_neither_agent_nor_display_is_given(untouched: Place, tmp_path: Path) -> None:
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    eventually((tmp_path / "agent").exists, 5, "the agent is there")
    try:
        for options in (("-o", f"ForwardAgent={tmp_path}/agent"), ("-X", "-o", "ForwardX11Trusted=yes")):
            with held(untouched, *options) as (gates, _):
                assert gates
                for environment in gates:
                    assert not {"SSH_AUTH_SOCK", "SSH_TTY", "DISPLAY"} & environment.keys()
    finally:
        agent.terminate()
        agent.wait(timeout=5)


FORWARDINGS: list[tuple[str, ...]] = [
    ("-W", "{registry}"),
    ("-N", "-R", "127.0.0.1:0:{registry}"),
    ("-N", "-R", "{folder}/remote.sock:{registry}"),
    ("-N", "-R", "127.0.0.1:0"),
    ("-s", "sftp"),
    ("-s", "git-receive-pack"),
]
"""What ssh offers besides a command, and ends at once where it is refused."""


@pytest.mark.parametrize("options", FORWARDINGS, ids=" ".join)
def test_forwarding_is_refused(untouched: Place, options: tuple[str, ...], tmp_path: Path) -> None:
    registry = str(untouched.nap.settings.registry.address)
    asked = [option.format(registry=registry, folder=tmp_path) for option in options]
    command = [asked.pop()] if asked[0] == "-s" else []
    words = [*untouched.intruder.alone("-o", "ExitOnForwardFailure=yes", *asked), *command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10, text=True)
    assert done.returncode == 255
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "fail" in line or "prohibited" in line]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["-L", "-D"])
def test_connections_through_the_gate_reach_nothing(untouched: Place, how: str) -> None:
    here, registry = free_address(), untouched.nap.settings.registry.address
    host, port = here.split(":")
    client = subprocess.Popen(
        untouched.intruder.alone("-N", how, here if how == "-D" else f"{here}:{registry}"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        connected: list[socket.socket] = []

        def connect() -> bool:
            with suppress(ConnectionRefusedError):
                connected.append(socket.create_connection((host, int(port)), timeout=5))
            return bool(connected)

        eventually(connect, 10, "ssh listens")
        with connected[0] as there:
            if how == "-D":
                there.sendall(b"\5\1\0")
                assert there.recv(2) == b"\5\0"
                there.sendall(b"\5\1\0\1" + socket.inet_aton(registry.host) + struct.pack(">H", registry.port))
            with suppress(ConnectionResetError):
                there.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"HTTP" not in there.recv(1000)
    finally:
        client.kill()
        client.wait(timeout=5)


LINKS = [
    (program, name)
    for program in ("git-receive-pack", "git-upload-pack", "git-upload-archive")
    for name in ("hostile-link", "hostile-dangling", "hostile-linked/theirs", "hostile-out/there")
]
"""Repositories that are links, or lie behind one."""


@pytest.fixture(scope="module")
def links(place: Place) -> Iterator[None]:
    outside = place.owner.folder / "outside"
    place.owner.git("init", "--quiet", "--bare", str(outside / "there.git"))
    made = {
        "hostile-link.git": place.repositories / f"{THEIRS}.git",
        "hostile-dangling.git": outside / "new.git",
        "hostile-linked": place.repositories,
        "hostile-out": outside,
    }
    for name, target in made.items():
        (place.repositories / name).symlink_to(target)
    place.last = place.left()
    yield
    for name in made:
        (place.repositories / name).unlink()
    shutil.rmtree(outside)
    place.last = place.left()


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("row", LINKS, ids=" ".join)
def test_link_is_not_followed(place: Place, row: tuple[str, str]) -> None:
    def asked(row: tuple[str, str]) -> tuple[int, bytes]:
        done = place.owner.ssh(f"{row[0]} '{row[1]}'")
        return done.returncode, done.stdout + done.stderr

    status, said = place.attempt(LINKS, row, asked)
    clear(said, "is a symbolic link on this host; the gate does not follow links")
    assert status == 1
    assert not (place.owner.folder / "outside" / "new.git").exists()


SILENT = ""
"""Capabilities of a client to which git does not report."""

BROKEN = PACK[:-1] + bytes([PACK[-1] ^ 1])

WIRE: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "the remote end hung up unexpectedly"),
    ("half a length", b"00", "the remote end hung up unexpectedly"),
    ("half a packet", b"00ff" + b"x" * 10, "the remote end hung up unexpectedly"),
    ("another protocol", b"GET / HTTP/1.0\r\n\r\n", "protocol error: bad line length character: GET "),
    ("a length of 3", b"0003", "protocol error: bad line length 3"),
    ("zeros", bytes(10_000), "protocol error"),
    ("an update in garbage", packet(b"\1\2\3"), "protocol error"),
    ("half an update", packet(b"1" * 40), "protocol error"),
    ("a name of the wrong length", packet(b"1" * 39 + b" " + b"2" * 39 + b" refs/heads/x"), "protocol error"),
    ("no pack", update(MASTER, HEAD) + FLUSH, "unpack eof before pack header was fully read"),
    ("half a header", update(MASTER, HEAD) + FLUSH + PACK[:7], "unpack "),
    ("half a pack", update(MASTER, HEAD) + FLUSH + PACK[:40], "unpack unpack-objects abnormal exit"),
    ("a broken pack", update(MASTER, HEAD) + FLUSH + BROKEN, "final sha1 did not match"),
    ("random bytes", update(MASTER, HEAD) + FLUSH + hashlib.shake_128(b"x").digest(10_000), "unpack "),
    ("a pack of 4,294,967,295", update(MASTER, HEAD) + FLUSH + b"PACK\0\0\0\2" + b"\xff" * 400, "unpack "),
    ("a pack of version 9", update(MASTER, HEAD) + FLUSH + b"PACK\0\0\0\x09\0\0\0\1", "unpack "),
    ("an object of 2**60 bytes", update(MASTER, HEAD) + FLUSH + b"PACK\0\0\0\2\0\0\0\1" + HUGE, "unpack "),
    ("a commit that is not there", update(MASTER, "1" * 40) + FLUSH + PACK, "missing necessary objects"),
    ("a tree for a branch", update(MASTER, named("tree", TREE)) + FLUSH + PACK, f"ng {MASTER} "),
    ("a broken pack, no report", update(MASTER, HEAD, capabilities=SILENT) + FLUSH + BROKEN, "final sha1"),
    ("a hidden ref, no report", update("refs/nap/v1", HEAD, capabilities=SILENT) + FLUSH + PACK, ""),
    ("HEAD, no report", update("HEAD", HEAD, capabilities=SILENT) + FLUSH + PACK, "funny ref 'HEAD'"),
    ("a deletion of what is not there", update(MASTER, NONE, "1" * 40) + FLUSH, "deleting a non-existent ref"),
    *(
        (ref, update(ref, HEAD) + FLUSH + PACK, reason)
        for ref, reason in {
            "HEAD": "funny refname",
            "master": "funny refname",
            "/etc/passwd": "funny refname",
            "../x": "funny refname",
            "refs/../x": "deny updating a hidden ref",
            "refs/heads/../../x": "funny refname",
            "refs/heads/../../hooks/post-receive": "funny refname",
            "refs/heads/a b": "funny refname",
            "refs/heads/x.lock": "funny refname",
            "refs/heads/.x": "funny refname",
            "refs/heads//x": "funny refname",
            "refs/heads/x~1": "funny refname",
            "refs/heads/x:y": "funny refname",
            "refs/heads/*": "funny refname",
            "refs/heads/"
            + "x" * 5000: "the name of a ref has 5011 bytes, and ssh.max_ref_bytes is 255; nothing was kept",
            "refs/custom/x": "deny updating a hidden ref",
            f"refs/replace/{HEAD}": "deny updating a hidden ref",
            "refs/nap/v1": "deny updating a hidden ref",
            "refs/nap/x/y": "deny updating a hidden ref",
        }.items()
    ),
]
"""What a client says to git-receive-pack that no git says, of an app that is not there yet."""


@pytest.mark.parametrize("row", WIRE, ids=label)
def test_garbage_on_the_wire_creates_nothing(place: Place, row: tuple[str, bytes, str]) -> None:
    def spoken(row: tuple[str, bytes, str]) -> tuple[int, bytes]:
        client = place.intruder.wire(f"git-receive-pack 'hostile/{WIRE.index(row)}'")
        client.refs()
        client.send(row[1])
        return client.end()

    status, said = place.attempt(WIRE, row, spoken)
    harmless(said)
    assert row[2] in said
    assert status not in {0, 255}


@pytest.mark.parametrize("said", [b"", update(MASTER, HEAD) + FLUSH + PACK[:40]], ids=["silence", "half a pack"])
@pytest.mark.parametrize("app", [FRESH, MINE])
def test_client_that_is_gone_leaves_nothing(untouched: Place, app: str, said: bytes) -> None:
    client = untouched.intruder.wire(f"git-receive-pack '{app}'")
    client.refs()
    client.send(said)
    client.kill()


def test_refused_push_deploys_nothing_to_a_client_without_report(untouched: Place) -> None:
    client = untouched.intruder.wire(f"git-receive-pack '{MINE}'")
    client.refs()
    client.send(update("refs/nap/v1", HEAD, capabilities=SILENT), FLUSH, PACK)
    status, said = client.end()
    assert status == 1
    assert b"Dockerfile" not in said, "what is there is not deployed again"


def test_every_ref_deleted_leaves_the_app_its_owners(place: Place) -> None:
    work = place.intruder.work()
    url = f"{place.intruder.url}/hostile-deleted"
    place.intruder.git("push", "-o", "nap.deploy=no", url, "HEAD:refs/heads/a", "HEAD:refs/tags/b", folder=work)
    place.last = place.left()
    done = place.intruder.git("push", url, ":refs/heads/a", ":refs/tags/b", folder=work)
    assert "branch a deleted: " in done.text
    assert "tag b deleted: nothing to deploy" in done.text
    assert place.owner.ssh("git-receive-pack 'hostile-deleted'").returncode == 1
    place.last = place.left()


LIMIT = 64 * MIB
"""For this test; the default of a gigabyte is cut off just so, and takes as long as a gigabyte does."""


@pytest.fixture(scope="module")
def limited(place: Place) -> Iterator[Place]:
    """The place, where a push may send 64 MB and no more."""
    place.nap.variables["NAP_SSH_MAX_PUSH"] = str(LIMIT)
    place.nap.run("up")
    place.last = place.left()
    yield place
    place.nap.variables["NAP_SSH_MAX_PUSH"] = str(1024 * MIB)
    place.nap.run("up")
    del place.nap.variables["NAP_SSH_MAX_PUSH"]
    place.last = place.left()


def test_push_of_two_gigabytes_is_cut_off(limited: Place) -> None:
    block = bytes(65535)
    stored = b"\0\xff\xff\0\0" + block  # deflate's way to store it as it is (RFC 1951, section 3.2.4)
    offered = 0

    def pack() -> Iterator[bytes]:
        nonlocal offered
        size = 256 * len(block)
        yield b"PACK" + struct.pack(">II", 2, 2048 * MIB // size)  # more than git unpacks, so it is kept as it is
        for _ in range(2048 * MIB // size):
            yield pack_header(3, size) + b"\x78\x01"
            for number in range(256):
                yield (b"\1" if number == 255 else b"\0") + stored[1:]
                offered += len(stored)
            yield struct.pack(">I", adler_of_zeros(size))

    with limited.nothing_left():
        client = limited.intruder.wire(f"git-receive-pack '{FRESH}'")
        client.refs()
        client.send(update(MASTER, HEAD), FLUSH)
        client.send_each(pack())
        status, said = client.end()
    text = said.decode("utf-8", "replace")
    harmless(text)
    assert status == 1
    assert offered < LIMIT + 64 * MIB, "it is not received to its end"
    assert " !     this push is larger than ssh.max_push allows; nothing was kept" in text
    assert " !     Find what is large" in text


def adler_of_zeros(size: int) -> int:
    """The checksum at the end of a zlib stream of so many zeros (RFC 1950)."""
    return (size % 65521) << 16 | 1


def test_git_is_told_that_its_push_is_too_large(limited: Place) -> None:
    work = limited.intruder.work()
    (work / "large").write_bytes(os.urandom(LIMIT + MIB))
    limited.intruder.git("-c", "core.compression=0", "add", "large", folder=work)
    limited.intruder.git("commit", "--quiet", "--message=A large file", folder=work)
    with limited.nothing_left():
        done = limited.intruder.git("push", f"{limited.intruder.url}/{FRESH}", "HEAD:master", folder=work, ok=False)
    assert done.status == 1
    assert done.trouble == [
        "this push is larger than ssh.max_push allows; nothing was kept",
        "Find what is large (git count-objects -vH), remove it from the history, and push again.",
    ]


CONTROLS = "a\x1b[31mb\x1b]0;owned\x07c\u009b31md\u202ee\u2028f\x7f\r\b"


def test_deploy_of_control_characters_shows_none(place: Place) -> None:
    guest = place.intruder
    work = guest.work(Dockerfile=HTTPD, index_html=CONTROLS)
    (work / f"{CONTROLS}\n.txt").write_text(CONTROLS)
    (work / "-rf").write_text("")
    guest.git("add", "--all", "--", ".", folder=work)
    guest.git("-c", f"user.name={CONTROLS}", "commit", "-q", "-m", CONTROLS, folder=work)
    refs = [f"HEAD:refs/{kind}/x\u009b31m\u202e$(id);'\"-" for kind in ("heads", "tags")]
    options = [word for number in range(1000) for word in ("-o", f"{number}{CONTROLS}=\udcff{CONTROLS}")]
    url = f"{guest.url}/hostile-controls"
    done = guest.git("push", *options, url, "HEAD:refs/heads/master", *refs, folder=work, ok=False)
    said = [line for line in done.raw.split("\n") if line.startswith("remote: ")]
    assert all(line.replace("\x1b[K", "").rstrip().isprintable() for line in said)
    assert done.status == 0
    assert answer(done.url) == CONTROLS.replace("\r", "\r")
    assert len(said) < 100, "a thousand options are summed up"
    place.last = place.left()


OPTIONS: list[tuple[str, list[bytes], str]] = [
    ("a newline and another option", [b"x\nnap.branch=y"], 'push option "x nap.branch=y" is unknown and ignored'),
    ("an update", [b"x\n" + f"{NONE} {HEAD} refs/heads/y".encode()], "is unknown and ignored"),
    ("the end of what the hook hands over", [b"x\n\n"], "is unknown and ignored"),
    ("an update of its own", [f"{NONE} {HEAD} refs/heads/y".encode()], "is unknown and ignored"),
    ("control characters", [CONTROLS.encode()], "is unknown and ignored"),
    ("what is no UTF-8", [b"\xff\xfe=\xc3"], "is unknown and ignored"),
    ("a long one", [b"x" * 65000], "is unknown and ignored"),
    ("an empty one", [b""], ""),
    ("one like a variable", [b"GIT_PUSH_OPTION_0=nap.deploy=yes"], "is unknown and ignored"),
    ("a thousand", [b"x%d" % number for number in range(1000)], "is unknown and ignored"),
]
"""Push options that no git sends, beside `nap.deploy=no`."""


@pytest.mark.parametrize("row", OPTIONS, ids=label)
def test_push_option_is_only_that(place: Place, row: tuple[str, list[bytes], str]) -> None:
    place.last = place.left()
    client = place.intruder.wire(f"git-receive-pack 'hostile-options-{OPTIONS.index(row)}'")
    client.refs()
    client.send(update(MASTER, HEAD, capabilities="report-status side-band-64k push-options"), FLUSH)
    client.send(*(packet(option) for option in (*row[1], b"nap.deploy=no")), FLUSH, PACK)
    status, said = client.end()
    text = said.decode("utf-8", "replace")
    harmless(text)
    assert status == 0
    assert row[2] in text
    assert "branch master kept, not deployed, as nap.deploy=no asks" in text
    assert "branch y" not in text
    assert text.count("is unknown and ignored") <= 12
    place.last = place.left()


def test_options_too_large_for_a_hook_are_told(place: Place) -> None:
    client = place.intruder.wire("git-receive-pack 'hostile-options-large'")
    client.refs()
    client.send(update(MASTER, HEAD, capabilities="report-status side-band-64k push-options"), FLUSH)
    client.send(*([packet(b"x" * 65000)] * 100), FLUSH, PACK)
    status, said = client.end()
    text = said.decode("utf-8", "replace")
    harmless(text)
    assert status == 1
    assert " !     " in text
    place.last = place.left()


USERS: list[tuple[str, str, str]] = [
    ("hostile-reader", f"git-receive-pack '{THEIRS}'", "hostile-reader may not push to"),
    ("hostile-reader", f"builds:cancel {THEIRS}", "hostile-reader may not push to"),
    ("hostile-reader", f"ps:scale {THEIRS} web=2", "hostile-reader may not push to"),
    ("hostile-reader", f"access:add {THEIRS} hostile-reader push", "hostile-reader may not administer"),
    ("hostile-reader", f"access:remove {THEIRS} hostile-owner", "hostile-reader may not administer"),
    ("hostile-pusher", f"access:add {THEIRS} hostile-pusher owner", "hostile-pusher may not administer"),
    ("hostile-pusher", f"access:remove {THEIRS} hostile-owner", "hostile-pusher may not administer"),
    ("hostile-pusher", f"access:remove {THEIRS} hostile-reader", "hostile-pusher may not administer"),
    ("hostile-removed", f"git-receive-pack '{THEIRS}'", "hostile-removed may not push to"),
    ("hostile-removed", f"git-upload-pack '{THEIRS}'", "hostile-removed may not read"),
    ("hostile-removed", f"git-upload-archive '{THEIRS}'", "hostile-removed may not read"),
    ("hostile-removed", f"access {THEIRS}", "hostile-removed may not read"),
    ("hostile-removed", f"builds {THEIRS}", "hostile-removed may not read"),
    ("hostile-removed", f"builds:output {THEIRS}", "hostile-removed may not read"),
    ("hostile-removed", f"builds:cancel {THEIRS}", "hostile-removed may not push to"),
    ("hostile-removed", f"ps:scale {THEIRS} web=2", "hostile-removed may not push to"),
    ("hostile-removed", f"access:add {THEIRS} hostile-removed push", "hostile-removed may not administer"),
]
"""Who has some right, or had one, and asks for more."""


@pytest.fixture(scope="module")
def users(place: Place) -> Iterator[dict[str, Guest]]:
    """One who may read, one who may push, and one who might; connected all the while."""
    guests = {}
    with ExitStack() as connections:
        for user, right in (("hostile-reader", "read"), ("hostile-pusher", "push"), ("hostile-removed", "owner")):
            guests[user] = connections.enter_context(Guest(place.nap, user, place.owner.folder).connected())
            assert place.owner.ssh(f"access:add {THEIRS} {user} {right}").returncode == 0
        assert guests["hostile-removed"].ssh(f"builds {THEIRS}").returncode == 0
        assert place.owner.ssh(f"access:remove {THEIRS} hostile-removed").returncode == 0
        place.last = place.left()
        yield guests
    for user in guests:
        place.nap.run("keys:remove", user, ok=False)
    place.last = place.left()


@pytest.mark.parametrize("row", USERS, ids=[" ".join(row[:2]) for row in USERS])
def test_user_has_no_more_than_their_right(place: Place, users: dict[str, Guest], row: tuple[str, str, str]) -> None:
    def asked(row: tuple[str, str, str]) -> tuple[int, bytes]:
        done = users[row[0]].ssh(row[1])
        return done.returncode, done.stdout + done.stderr

    status, said = place.attempt(USERS, row, asked)
    clear(said, row[2])
    assert status == 1


def test_user_has_their_right(place: Place, users: dict[str, Guest]) -> None:
    with place.nothing_left():
        for user in ("hostile-reader", "hostile-pusher"):
            assert HEADS in users[user].git("ls-remote", f"{users[user].url}/{THEIRS}").text
        work = users["hostile-pusher"].work()
        users["hostile-pusher"].git("fetch", "-q", f"{place.owner.url}/{THEIRS}", "master", folder=work)
    url = f"{place.owner.url}/{THEIRS}"
    done = users["hostile-pusher"].git("push", "-o", "nap.deploy=no", url, "FETCH_HEAD:refs/heads/y", folder=work)
    place.last = place.left()
    assert "branch y kept" in done.text


def test_key_that_is_removed_opens_nothing(place: Place, users: dict[str, Guest]) -> None:
    guest = users["hostile-reader"]
    place.nap.run("keys:remove", "hostile-reader")
    words = [*guest.alone(), f"git-upload-pack '{THEIRS}'"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
    place.last = place.left()
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr
    kept = guest.ssh(f"builds {THEIRS}")
    assert kept.returncode == 1, "nor does a connection that was there before"
    clear(kept.stderr.decode(), "hostile-reader")


HOW_MANY = {
    "commands": len(COMMANDS),
    "nap's commands": len(NAP_COMMANDS),
    "paths with a NUL": len(NOT_CARRIED),
    "environment": len(ENVIRONMENT) + len(ODD_PROTOCOLS),
    "terminal, agent, display": len(TERMINAL) + 3 + 2,
    "forwarding and subsystems": len(FORWARDINGS) + 2,
    "links": len(LINKS),
    "keys": len(BAD_KEYS),
    "the wire": len(WIRE) + 6,
    "size": 2,
    "control characters and options": len(OPTIONS) + 2,
    "users": len(USERS) + 2,
}


def test_there_are_as_many_attempts_as_we_say(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{sum(HOW_MANY.values())} attempts: {', '.join(f'{n} of {kind}' for kind, n in HOW_MANY.items())}")
    assert sum(HOW_MANY.values()) >= 400
