"""The command that each ssh key gives: pass the connection on to the gate server, or serve it here.

The gate server (`gate_server`) has nap's libraries loaded, and loading them takes longer than most sessions. So this
module imports none of them before it has asked.
"""

import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

from nap_receiver.auth.gate_socket import NUMBER_BYTES, gate_server, received
from nap_receiver.core.process import run


def main() -> int:
    """Run the command in `SSH_ORIGINAL_COMMAND` for the user of the key. Returns ssh's exit status."""
    if not needs_terminal(os.environ.get("SSH_ORIGINAL_COMMAND", "")) and (server := gate_server(sys.argv[1])):
        signal.signal(signal.SIGINT, leave)
        return _served_by(server)
    from nap_receiver.frontends import gate_session

    return gate_session.main()


def needs_terminal(asked: str) -> bool:
    """Whether this command ends with its terminal, so that the process that sshd started has to run it."""
    return asked.split()[:1] == ["run"]


def leave(number: int, frame: FrameType | None) -> None:
    """End at once, as a signal's handler."""
    os._exit(128 + number)


def _served_by(server: socket.socket) -> int:
    """Have the gate server serve this session; the exit status."""
    words = [sys.argv[2], os.getcwd(), *(f"{name}={value}" for name, value in os.environ.items())]  # noqa: PTH109 # pathlib takes longer than the rest
    request = b"\0".join(map(os.fsencode, words))
    with server:
        socket.send_fds(server, [len(request).to_bytes(NUMBER_BYTES, "big")], [0, 1, 2])
        server.sendall(request)
        answer = received(server, NUMBER_BYTES)
    status = int.from_bytes(answer, "big", signed=True) if len(answer) == NUMBER_BYTES else -signal.SIGKILL
    if status >= 0:
        return status
    from nap_receiver.frontends.gate_session import tell_killed

    return tell_killed(-status)


def program() -> NoReturn:
    """Run the `nap-gate` program."""
    run(main)
