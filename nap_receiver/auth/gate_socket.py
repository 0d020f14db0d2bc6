"""The socket between the gate's command and the gate server, and what is said on it.

The gate's command imports this with each connection, so it imports little itself.
"""

import socket

READY = b"."
"""What the gate server sends first."""

NUMBER_BYTES = 4
"""Of the length of a request, and of the status that answers it: in network byte order, signed."""

_PATH = "run/gate.sock"
_ANSWER_SECONDS = 2.0


def gate_socket(root: object) -> str:
    """Where the gate server of this state directory listens. The directory is closed to other accounts."""
    return f"{root}/{_PATH}"


def gate_server(root: object) -> socket.socket | None:
    """A connection to the gate server, which waits for a request; None where none answers."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(gate_socket(root))
        if connection.recv(len(READY)) == READY:
            connection.settimeout(None)
            return connection
    except OSError:  # it is not there, or frozen
        pass
    connection.close()
    return None


def received(connection: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer where the other end closes before."""
    content = b""
    while len(content) < length and (more := connection.recv(length - len(content))):
        content += more
    return content
