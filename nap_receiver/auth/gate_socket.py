"""The socket between the gate's command and the gate server, and what is said on it.

The gate's command imports this with each connection, so it imports little itself.
"""

import socket

from nap_receiver.core.ready import ready_connection

NUMBER_BYTES = 4
"""Of the length of a request, and of the status that answers it: in network byte order, signed."""

_PATH = "run/gate.sock"


def gate_socket(root: object) -> str:
    """Where the gate server of this state directory listens. The directory is closed to other accounts."""
    return f"{root}/{_PATH}"


def gate_server(root: object) -> socket.socket | None:
    """A connection to the gate server, which waits for a request; None where none answers."""
    return ready_connection(gate_socket(root))


def received(connection: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer where the other end closes before."""
    content = b""
    while len(content) < length and (more := connection.recv(length - len(content))):
        content += more
    return content
