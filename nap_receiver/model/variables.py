"""Variables of an app: which names and values are allowed."""

import re

from nap_receiver.core.errors import NapError

LONGEST_VALUE_BYTES = 1 << 16

_NOT_TEXT = re.compile("[\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAPS_OWN = re.compile(r"PORT|GIT_REV|NAP_.*")


def require_text(name: str, value: str) -> None:
    """Raise `NapError` for a value that is not UTF-8: the engine's API is JSON, which cannot say it.

    Bytes that are not UTF-8 are surrogates in `value` (PEP 383).
    """
    if _NOT_TEXT.search(value):
        raise NapError(
            f"{name}: expected UTF-8, got other bytes",
            advice=f"Set it in base64, and decode it in the app: base64 -w0 FILE | … config:set APP {name}",
        )


def checked_name(name: str) -> str:
    """Return `name`. Raises `NapError` with the reason if an app cannot have a variable of that name."""
    if not _NAME.fullmatch(name):
        raise NapError(
            f"{name[:80]!a} is not a valid variable name",
            advice="Use A to Z, a to z, 0 to 9 and _, and no digit at its beginning.",
        )
    if is_naps_own(name):
        advice = ["To choose the port: ports:set APP 8000, or EXPOSE 8000 in the Dockerfile."]
        raise NapError(f"{name} is set by nap", advice=advice if name == "PORT" else [])
    return name


def is_naps_own(name: str) -> bool:
    """Return whether nap itself sets this variable."""
    return bool(_NAPS_OWN.fullmatch(name))


def check_value(name: str, value: str) -> None:
    """Raise `NapError` if the value has a NUL character, is not UTF-8, or is too long."""
    require_text(name, value)
    if "\0" in value:
        raise NapError(f"{name}: a variable cannot hold a NUL character")
    size = len(value.encode())
    if size > LONGEST_VALUE_BYTES:
        raise NapError(f"{name}: the value has {size} bytes; the limit is {LONGEST_VALUE_BYTES}")
