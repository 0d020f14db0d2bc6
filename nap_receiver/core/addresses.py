"""Which network addresses a build may reach: no address of this machine, its link or a private network.

Names are resolved here, so that every spelling of an address (octal, hexadecimal, `127.1`) is judged as what it is, and
the connection is made to the very address that was judged. What is public says IANA's registry of special-purpose
addresses (RFC 6890), through `ipaddress`.
"""

import ipaddress
import socket
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 addresses that carry an IPv4 one in their last four bytes (RFC 4291, 2.5.5; RFC 6052; RFC 8215).
_CARRIERS = [ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")]


class ForbiddenAddress(Exception):
    """An address that a build must not connect to. The message names the address and the reason."""


def resolved(host: str, port: int) -> list[IPAddress]:
    """The addresses of a host. Raises `OSError` where there are none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (UnicodeError, ValueError) as error:  # a label of more than 63 bytes, a NUL
        raise OSError(f"{host[:80]!r} is not a host name") from error
    return list(dict.fromkeys(ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found))


def require_public(address: IPAddress, allowed: Sequence[Network] = ()) -> None:
    """Raise `ForbiddenAddress` for an address that is not public or is this machine's, unless it is in `allowed`."""
    if not _is_in(address, allowed):
        require_elsewhere(address)
        if not all(each.is_global for each in _meant_by(address)):
            raise ForbiddenAddress(f"{address} is an address of a private network")


def require_elsewhere(address: IPAddress, allowed: Sequence[Network] = ()) -> None:
    """Raise `ForbiddenAddress` for one of this machine, of its link, or of a group, unless it is in `allowed`."""
    if _is_in(address, allowed):
        return
    for each in _meant_by(address):
        if each.is_link_local:
            raise ForbiddenAddress(f"{address} is link-local: a cloud's metadata service answers there")
        if each.is_loopback or each.is_unspecified or _is_own(each):
            raise ForbiddenAddress(f"{address} is an address of the nap machine itself")
        if each.is_multicast or each.is_reserved:
            raise ForbiddenAddress(f"{address} is not the address of one machine")


def connect(host: str, port: int, seconds: float, allowed: Sequence[Network]) -> socket.socket:
    """A connection to a host whose addresses are all public or in `allowed`. Raises `ForbiddenAddress` or `OSError`."""
    addresses = resolved(host, port)
    for address in addresses:
        require_public(address, allowed)
    failed = OSError(f"{host} has no address")
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=seconds)
        except OSError as error:
            failed = error
    raise failed


def _is_in(address: IPAddress, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)  # False where one is IPv4 and the other IPv6


def _meant_by(address: IPAddress) -> list[IPAddress]:
    """Return the IPv4 address that an IPv6 address embeds, else the address itself."""
    if not isinstance(address, ipaddress.IPv6Address) or int(address) <= 1:
        return [address]
    if any(address in network for network in _CARRIERS):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address, *(each for each in (address.sixtofour, *(address.teredo or ())) if each)]


def _is_own(address: IPAddress) -> bool:
    """Return whether this machine has the address: no other address can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
