"""Send new connections to the newest of several sockets with the same address.

Each change of routes opens Caddy's addresses anew (SO_REUSEPORT), beside those before, which are closed a moment later.
Left alone, the kernel goes on giving connections to both, and cuts off those that an old one has not accepted yet when
it is closed.
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
    """Have new connections to `address` go to whatever was opened there last, for as long as anything is.

    The sockets at an address are numbered in the order in which they were opened, without gaps; a program says which of
    them gets a connection, and where there is none of that number, the kernel chooses (socket(7), SO_REUSEPORT). So of
    two it is the second, and else the only one. It stays with the address; the socket that brings it is there for some
    microseconds. Needs to be the account that opened the others, and no more. Raises `OSError`.
    """
    program = ctypes.create_string_buffer(_RETURN_SECOND)
    with _beside(address) as ours:
        ours.listen()
        ours.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", 1, ctypes.addressof(program)))


def _beside(address: Address) -> socket.socket:
    """A socket where Caddy has one: for all addresses of IPv4, Go takes those of IPv6 too."""
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
