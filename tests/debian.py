"""Root file systems of Debian 12 for images of the tests, made by debootstrap once and kept in the user's cache.

There is no image hub where the tests run. Only root can make them.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nap_receiver.core.errors import NapError

IMAGE_SECONDS = 900
_LAST_WORDS = 30

_DEBOOTSTRAP = """\
root=$1 packages=$2 mirror=$3
# debootstrap asks wget, which knows nothing of apt's configuration.
ca=
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy ca Acquire::https::CaInfo)"
export http_proxy https_proxy
if [ -n "$ca" ]; then
    echo "ca_certificate = $ca" >"$root.wgetrc"
    export WGETRC="$root.wgetrc"
fi
debootstrap --variant=minbase --include="$packages" bookworm "$root" $mirror
"""
_PACK = """\
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \\
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
tar --one-file-system -C "$root" -cf "$root.tar" .
"""


@dataclass(frozen=True)
class RootFilesystem:
    """Debian with these packages, besides those of debootstrap's minbase."""

    name: str
    packages: tuple[str, ...]
    script: str = ""
    """For sh, when they are installed; `$root` is where."""

    @property
    def version(self) -> str:
        """Another one for each recipe."""
        recipe = "\n".join((_DEBOOTSTRAP, *self.packages, self.script, _PACK))
        return hashlib.sha256(recipe.encode()).hexdigest()[:8]

    def tarball(self) -> Path:
        """The cached tarball, made if it is not there. Raises `NapError` where it cannot be made."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nap"
        made = cache / f"{self.name}-{self.version}.tar"
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                self._make(made)
        return made

    def _make(self, made: Path) -> None:
        require_root(f"the tests' image {self.name} is made with debootstrap")
        print(f"-----> Making the tests' image {self.name}", file=sys.stderr)
        for draft in made.parent.glob(f"{self.name}-draft-*"):
            shutil.rmtree(draft)
        draft = Path(tempfile.mkdtemp(prefix=f"{self.name}-draft-", dir=made.parent))
        root = draft / "root"
        # In a mount namespace of their own, what debootstrap mounts is gone with it however it ends.
        script = _DEBOOTSTRAP + self.script + _PACK
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-euc", script, "sh", str(root), ",".join(self.packages), _mirror()],
            env=os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=IMAGE_SECONDS,
        )
        if done.returncode == 0:
            root.with_suffix(".tar").rename(made)
        shutil.rmtree(draft)
        if done.returncode != 0:
            words = done.stdout.splitlines()[-_LAST_WORDS:]
            raise NapError(f"the tests' image {self.name} could not be made", words=words)


def make(filesystem: RootFilesystem) -> None:
    """Have its tarball in the cache, for a command line, which ends with the reason where that cannot be."""
    try:
        filesystem.tarball()
    except NapError as error:
        sys.exit("\n".join([f" !     {error}", *(f"       {line}" for line in error.words)]))


def _mirror() -> str:
    """Where this machine's apt gets Debian 12 from; empty for debootstrap's own idea."""
    fields = "$(ORIGIN) $(CODENAME) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        text=True,
        capture_output=True,
        timeout=60,
    ).stdout.splitlines()
    found = (line.split()[2] for line in listed if line.startswith("Debian bookworm "))
    return next((uri for uri in found if uri.startswith(("http://", "https://", "file:/"))), "")


def require_root(why: str) -> None:
    """Raise `NapError` unless this is root."""
    if os.geteuid() != 0:
        raise NapError(f"only root can do this: {why}")
