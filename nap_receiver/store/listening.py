"""The ports on which an instance listens, read from outside its container, and why it may not answer.

The agent, or `announce.sh` on a cluster, writes the ports to etcd while a web instance starts.
"""

import ipaddress
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from nap_receiver.model.release import Release
from nap_receiver.store.etcdctl import Entry

# Docker's own name server, which listens in each container of a network that somebody made (Docker's documentation,
# "Networking overview", DNS services).
_NAME_SERVER = ipaddress.IPv4Address("127.0.0.11")

_MOST_SHOWN = 5


@dataclass(frozen=True)
class Listening:
    """The addresses on which the TCP sockets of an instance listen."""

    ports: tuple[int, ...]
    """Those that are open to others."""
    loopback: tuple[str, ...] = ()
    """`127.0.0.1:8000`, …: what the instance alone reaches."""
    settled: bool = False
    """Whether they have been the same for some seconds, in which the instance hardly used a processor."""

    def only_other_port(self, asked: int) -> int:
        """Return the open port if it is the only one and not the expected one; else 0."""
        return self.ports[0] if len(self.ports) == 1 and self.ports[0] != asked else 0


class _Sockets(msgspec.Struct):
    """The entry in etcd; `sockets` are addresses as in proc(5), separated by blanks: `00000000:1F90`."""

    sockets: str
    settled: bool


def listening(entry: Entry | None) -> Listening | None:
    """Parse the entry; return None if there is none or it is not valid."""
    try:
        value = msgspec.convert(entry.value if entry else None, _Sockets)
        sockets = [_address(each) for each in value.sockets.split()]
    except (msgspec.ValidationError, ValueError):
        return None
    ports = sorted({port for address, port in sockets if not address.is_loopback})
    loopback = sorted({(port, address) for address, port in sockets if address.is_loopback and address != _NAME_SERVER})
    shown = (f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}" for port, address in loopback)
    return Listening(tuple(ports), tuple(shown), value.settled)


def explained(release: Release, asked: int, found: Listening) -> tuple[str, str] | None:
    """Return where the instance listens instead of the expected port, and what to do; None if that explains nothing."""
    if asked in found.ports:
        return None
    if found.loopback and (not found.ports or any(each.endswith(f":{asked}") for each in found.loopback)):
        return f"it listens on {_some(found.loopback)} only", "It must listen on 0.0.0.0 to be reachable."
    if not found.ports:
        return None
    where = f"it listens on {_some([str(port) for port in found.ports])}; nap expected {asked}"
    return where, how_to_name(release, found.ports)


def how_to_name(release: Release, ports: Sequence[int]) -> str:
    """Return what to do so that nap expects one of these ports."""
    first, set_it = ports[0], f"type: ports:set {release.app} {ports[0]}"
    if release.port_from == "ports:set":
        return f"{set_it[0].upper()}{set_it[1:]}"
    if len(ports) > 1:
        return f"Choose the web port: EXPOSE {first} in the Dockerfile, or {set_it}"
    if f"{first}/tcp" in release.ports:
        return f"Add ENV PORT={first} to the Dockerfile, or {set_it}"
    if release.port_from == "image":
        return f"Have the Dockerfile EXPOSE {first} instead, or {set_it}"
    return f"Add EXPOSE {first} to the Dockerfile, or {set_it}"


def _address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Parse an address and a port of proc(5): 32-bit words in the machine's byte order, which all machines here
    share."""
    address, _, port = text.partition(":")
    words = (int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    found = ipaddress.ip_address(b"".join(words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found, int(port, 16)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
