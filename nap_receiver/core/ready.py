"""How a program of nap's says on a unix socket that it is at work, and how that is asked."""

import socket
from contextlib import suppress

READY = b"."
"""What it says first."""

_ANSWER_SECONDS = 2.0


def ready_connection(path: str) -> socket.socket | None:
    """A connection to the program that listens there, which has said that it is ready; None where none does in time."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(path)
        if connection.recv(len(READY)) == READY:
            connection.settimeout(None)
            return connection
    except OSError:  # it is not there, or frozen
        pass
    connection.close()
    return None


def is_ready(path: str) -> bool:
    """Whether the program that listens there says that it is ready."""
    if connection := ready_connection(path):
        connection.close()
    return bool(connection)


def say_ready(listener: socket.socket) -> None:
    """Say so to whoever asks; for ever."""
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(READY)
