"""Opens addresses, and becomes a program that takes connections there, as systemd does for a socket unit.

usage: python -m nap_receiver.listen ADDRESS… -- COMMAND…

The program finds them open as file descriptors from 3 on, in this order (sd_listen_fds(3)). Whatever it opens and
closes of its own, nobody who connects meanwhile is turned away.
"""

import fcntl
import os
import socket
import sys

FIRST = 3
"""The descriptor of the first address."""


def main() -> None:
    end = sys.argv.index("--")
    addresses, command = sys.argv[1:end], sys.argv[end + 1 :]
    opened = [_open(address) for address in addresses]
    # Out of each other's way first.
    apart = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, FIRST + len(opened)) for each in opened]
    for number, each in enumerate(apart, FIRST):
        os.dup2(each, number)
    os.execvp(command[0], command)


def _open(address: str) -> int:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        listener = socket.create_server(
            (host.strip("[]"), int(port)),
            family=family,
            backlog=socket.SOMAXCONN,
            dualstack_ipv6=host == "[::]",
        )
    except OSError as error:
        sys.exit(f"{address}: {error.strerror}")
    return listener.detach()


if __name__ == "__main__":
    main()
