"""What a nap listens on, and what another account of its machine, or a web page in a browser on it, gets from there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.nap import Nap, Pushed, Pusher, processes

_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
_CONNECTION_REFUSED = 7  # curl(1): failed to connect to host


def family(process: int) -> set[int]:
    """A process and all that it has started."""
    parents = {number: parent for number, parent, _ in processes()}
    found = {process}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listeners(process: int) -> tuple[set[str], set[Path]]:
    """The addresses, and the sockets' paths, on which a process and all that it has started listen."""
    command = ["ss", "--no-header", "--listening", "--numeric", "--processes", "--tcp", "--udp", "--unix"]
    lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
    ours, addresses, paths = family(process), set(), set()
    for line in lines:
        owners = [int(number) for number in re.findall(r"pid=(\d+)", line) if int(number) in ours]
        if owners and line.startswith("u_"):
            paths.add((Path(f"/proc/{owners[0]}/cwd").resolve() / line.split()[4]).absolute())
        elif owners:
            addresses.add(line.split()[4])
    return addresses, paths


def stranger(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """What another account's curl is answered, status and headers first, with all that a web page can send."""
    headers = ["--header", "Origin: http://evil.example", "--header", "Content-Type: text/plain"]
    command = [*_NOBODY, "curl", "--silent", "--include", "--max-time", "5", "--http0.9", *headers, *options, url]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_another_account_reaches_the_gate_the_router_and_apps_alone(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    addresses, paths = listeners(int(nap.supervisor.call("getPID")))
    settings = nap.settings
    gate, registry, router = str(settings.ssh.address), str(settings.registry.address), str(settings.router.http)
    assert {gate, registry, router} <= addresses
    app = live.url.removeprefix("http://")
    published = {each for each in addresses if each.startswith(f"{settings.local.host}:")} - {gate, registry, router}
    assert addresses <= {gate, registry, router} | published
    assert all(stranger(f"http://{each}/").stdout.startswith("HTTP/1.") for each in published)
    assert app in published or settings.engine.url != f"unix://{nap.state.run}/docker.sock"

    for asked in ("", "_catalog", f"{pusher.app}/tags/list"):
        told = stranger(f"http://{registry}/v2/{asked}").stdout
        assert told.startswith("HTTP/1.1 401 ")
        assert "access-control" not in told.lower()
    written = stranger(f"http://{registry}/v2/{pusher.app}/blobs/uploads/", "--request", "POST", "--data", "")
    assert written.stdout.startswith("HTTP/1.1 401 ")
    assert stranger(f"http://{gate}/").stdout.startswith("SSH-2.0-")
    assert "HTTP/1.1 404" in stranger(f"http://{router}/").stdout

    assert nap.state.run / "etcd.sock:0" in paths
    opened = [nap.folder.parent, nap.folder]
    modes = [each.stat().st_mode for each in opened]
    try:
        for each in opened:
            each.chmod(0o755)  # whatever the directories above allow
        for path in paths:
            assert stranger("http://localhost/", "--unix-socket", str(path)).returncode == _CONNECTION_REFUSED, path
    finally:
        for each, mode in zip(opened, modes, strict=True):
            each.chmod(mode)
