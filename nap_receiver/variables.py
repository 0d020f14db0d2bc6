"""What a variable of an app's environment can be called, and what it can hold."""

import re

from nap_receiver.errors import NapError

LONGEST_VALUE_BYTES = 1 << 16

_ESCAPED = re.compile("[\udc80-\udcff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAPS_OWN = re.compile(r"PORT|GIT_REV|NAP_.*")
_ENGINES = re.compile(r"DOCKER_.*|LD_.*|GCONV_PATH|GLIBC_TUNABLES")


def bytes_of(value: str) -> bytes:
    """A value as the app gets it; bytes that are not UTF-8 are surrogates in `value` (PEP 383)."""
    return value.encode("utf-8", "surrogateescape")


def value_of(given: bytes) -> str:
    """The reverse."""
    return given.decode("utf-8", "surrogateescape")


def is_text(value: str) -> bool:
    """Whether it is UTF-8."""
    return not _ESCAPED.search(value)


def checked_name(name: str) -> str:
    """`name`, or `NapError` with the reason where no variable of an app's can have it."""
    if not _NAME.fullmatch(name):
        raise NapError(
            f"{name[:80]!a} cannot be the name of a variable",
            advice="Use A to Z, a to z, 0 to 9 and _, and no digit at its beginning.",
        )
    if _NAPS_OWN.fullmatch(name):
        raise NapError(f"{name} is nap's own to set")
    if _ENGINES.fullmatch(name):
        raise NapError(
            f"{name} would steer the engine's own programs on its machine",
            advice=f"Set it in the Dockerfile: ENV {name}=…",
        )
    return name


def check_value(name: str, value: str) -> None:
    """Raise `NapError` for what no variable of an environment can hold, or is too long."""
    if "\0" in value:
        raise NapError(f"{name}: a variable cannot hold a NUL character")
    size = len(bytes_of(value))
    if size > LONGEST_VALUE_BYTES:
        raise NapError(f"{name}: the value has {size} bytes, and {LONGEST_VALUE_BYTES} is the most")
