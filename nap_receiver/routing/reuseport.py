"""Send new connections to the newest of several sockets with the same address.

At each change of routes, Caddy opens its addresses again beside the old sockets, and closes the old ones a moment
later. Without this module, the kernel gives connections to both, and resets those that an old socket has not accepted
when it is closed.
"""

import ctypes
import socket
import struct

from nap_receiver.core.settings import Address

_SO_ATTACH_REUSEPORT_CBPF = 51
"""asm-generic/socket.h."""

_RETURN_SECOND = struct.pack("HBBI", 0x06, 0, 0, 1)
"""The program `BPF_RET | BPF_K` (struct sock_filter of linux/filter.h): the second, counted from 0."""


def prefer_newest(address: Address) -> None:
    """Send new connections at `address` to the newest socket there, as long as any is open.

    The sockets at an address are numbered in the order in which they were opened, without gaps. A program chooses the
    socket for a connection by its number; if there is none with that number, the kernel chooses (socket(7),
    SO_REUSEPORT). So the second of two gets it, or the only one. The program stays with the address; the socket that
    sets it exists for some microseconds. The caller must be the account that opened the others. Raises `OSError`.
    """
    program = ctypes.create_string_buffer(_RETURN_SECOND)
    with _beside(address) as ours:
        ours.listen()
        ours.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", 1, ctypes.addressof(program)))


def _beside(address: Address) -> socket.socket:
    """Return a socket at the address of Caddy's: for all IPv4 addresses, Go also binds those of IPv6."""
    host = address.host.strip("[]")
    if host == "0.0.0.0" and socket.has_dualstack_ipv6():
        host = "::"
    family, *_, place = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0]
    ours = socket.socket(family, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if host == "::":
        ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    ours.bind(place)
    return ours
