"""Paths on this machine: the state directory, and everything in it.

Facts about apps are in etcd; a receiver keeps only repositories and logs.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from nap_receiver.core.errors import NapError

ETCD_SOCKET = "etcd.sock:0"
"""The name of the socket in `run/` on which nap's own etcd listens."""

# sun_path holds 108 bytes (unix(7)); the longest socket below a state directory is the engine's containerd debug one.
_LONGEST_SOCKET = "run/engine/containerd/containerd-debug.sock"
_SUN_PATH_BYTES = 107


@dataclass(frozen=True)
class State:
    """The state directory and the paths in it."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "settings.toml"

    @property
    def environment_file(self) -> Path:
        """The `NAP_…` variables of the last `nap up`, for the programs that it started."""
        return self.root / "run" / "environment"

    @property
    def repositories(self) -> Path:
        return self.root / "repositories"

    @property
    def deploy_logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Sockets, pid files and configuration of the supervisors; `nap up` makes all of it again."""
        return self.root / "run"

    @property
    def etcd_url(self) -> str:
        """The address of nap's own etcd on a single machine.

        etcd 3.4 takes no path for a socket, only `host:port` (`ETCD_SOCKET`), which is then its name. What other
        characters the path has is escaped, as etcdctl and gRPC read it (RFC 3986).
        """
        return f"unix://{quote(os.fsencode(self.run / ETCD_SOCKET), safe='/:')}"

    @property
    def agent_socket(self) -> Path:
        """On which this machine's agent says that it is at work."""
        return self.run / "agent.sock"

    @property
    def registry_lock(self) -> Path:
        """A file that who reads or writes images in nap's own registry locks (flock(2)): shared; alone to stop it."""
        return self.run / "registry.lock"

    @property
    def registry_login(self) -> Path:
        """The login of nap's own registry (`login`); docker can use the directory as DOCKER_CONFIG."""
        return self.run / "registry-login"

    @property
    def git_configuration(self) -> Path:
        """The git configuration for pushes through the gate."""
        return self.run / "gitconfig"

    @property
    def program_logs(self) -> Path:
        return self.root / "programs"

    @property
    def router_log(self) -> Path:
        """The log of the requests to apps, one JSON object a line."""
        return self.program_logs / "requests.log"

    @property
    def ssh(self) -> Path:
        return self.root / "ssh"

    @property
    def name(self) -> str:
        """Eight hexadecimal digits that tell the containers and the bridge of this state directory from others."""
        import hashlib  # a library of OpenSSL's, which the gate does without

        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    def require_room_for_sockets(self) -> None:
        """Refuse a path that is too long for unix sockets, or that gRPC cannot use."""
        if "," in str(self.root):
            raise NapError(
                f"{self.root}: the path of a state directory cannot have a comma",
                advice="Choose a directory without one: nap --state DIR",
            )
        if len(os.fsencode(self.root / _LONGEST_SOCKET)) > _SUN_PATH_BYTES:
            most = _SUN_PATH_BYTES - len(_LONGEST_SOCKET) - 1
            raise NapError(
                f"{self.root}: the path of the state directory is too long",
                advice=f"Choose a path of at most {most} bytes (the limit for unix sockets): nap --state DIR",
            )


def default_root() -> Path:
    """`$NAP_STATE`, else `/var/lib/nap` for root, else the XDG state directory's `nap`."""
    if named := os.environ.get("NAP_STATE"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/nap")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "nap"


def state_at(root: str | Path | None) -> State:
    """The state below `root`, or below the default; symbolic links and relative parts are resolved."""
    return State(Path(root or default_root()).resolve())
