"""The gate server: it has nap's libraries loaded, and forks a process for each ssh session.

That process has the session's own descriptors, environment and working directory, and nothing of another session. It
has no terminal, and goes on when the connection or this server ends.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from nap_receiver.auth.gate_socket import NUMBER_BYTES, gate_socket, received
from nap_receiver.core.paths import State, state_at
from nap_receiver.core.privacy import keep_private
from nap_receiver.core.process import called, run
from nap_receiver.core.ready import READY
from nap_receiver.frontends.commands.table import import_commands
from nap_receiver.frontends.gate_session import serve

_PRELOADED = ("nap_receiver.deploy.receiver", "nap_receiver.frontends.cli", "nap_receiver.store.etcd")
_OF_LIBRARIES = ("GRPC_ENABLE_FORK_SUPPORT", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION")  # set before their import
_LONGEST_NAME = 15  # of a process (proc(5), /proc/pid/comm)


def main() -> NoReturn:
    """Serve the gate of the state directory that the first argument names, until this process ends."""
    keep_private()
    state = state_at(sys.argv[1])
    for module in _PRELOADED:
        importlib.import_module(module)
    import_commands()
    gc.collect()
    gc.freeze()  # or the first collection of each session copies all of these pages
    path = gate_socket(state.root)
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(socket.SOMAXCONN)
        _serve_for_ever(listener, state)


def _serve_for_ever(listener: socket.socket, state: State) -> NoReturn:
    sessions: dict[int, socket.socket] = {}
    child_ended, wakeup = socket.socketpair()
    for each in (child_ended, wakeup, listener):
        each.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # or it is ignored, and wakes nobody
    while True:
        ready, _, _ = select.select([listener, child_ended], [], [])
        if child_ended in ready:
            with suppress(BlockingIOError):
                child_ended.recv(1024)
            _tell_killed(sessions)
        if listener in ready:
            with suppress(BlockingIOError, ConnectionError):
                connection, _ = listener.accept()
                if process := os.fork():
                    sessions[process] = connection
                    continue
                _become_session([listener, child_ended, wakeup, *sessions.values()])
                _session(connection, state)


def _tell_killed(sessions: dict[int, socket.socket]) -> None:
    """Close the connections of the sessions whose processes have ended, and tell those that a signal killed."""
    while sessions:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        with sessions.pop(process) as connection:
            if os.WIFSIGNALED(status):
                with suppress(OSError):
                    connection.sendall((-os.WTERMSIG(status)).to_bytes(NUMBER_BYTES, "big", signed=True))


def _become_session(of_the_server: Sequence[socket.socket]) -> None:
    """Let go of all that is the server's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in of_the_server:
        each.close()
    os.setsid()


def _session(connection: socket.socket, state: State) -> NoReturn:
    """Serve the session that comes on this connection, tell the status, and end this process."""
    status = 1
    try:
        connection.setblocking(True)
        connection.sendall(READY)
        length, descriptors, _, _ = socket.recv_fds(connection, NUMBER_BYTES, 3)
        if len(length) == NUMBER_BYTES:  # else somebody only looked whether this server answers
            request = received(connection, int.from_bytes(length, "big"))
            user = _take_place_of_client(request, descriptors)
            status = called(lambda: serve(state, user))
    except BaseException:  # noqa: BLE001 # or this process would go on as the server
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    with suppress(OSError):
        connection.sendall(status.to_bytes(NUMBER_BYTES, "big", signed=True))
    os._exit(0)


def _take_place_of_client(request: bytes, descriptors: Sequence[int]) -> str:
    """Have the client's descriptors, environment and working directory; the user."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    user, folder, *environment = map(os.fsdecode, request.split(b"\0"))
    kept = {name: value for name, value in os.environ.items() if name in _OF_LIBRARIES}
    os.environ.clear()
    os.environ.update({name: value for name, _, value in (each.partition("=") for each in environment)} | kept)
    os.chdir(folder)
    Path("/proc/self/comm").write_text(f"nap {user}"[:_LONGEST_NAME])
    return user


def program() -> NoReturn:
    """Be the `nap-gate-server` program."""
    run(main)
