"""gRPC through the router: HTTP/2 from the visitor, and HTTP/2 without TLS to an app that is set to it."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.bases import import_bases
from tests.conftest import free_address, fresh_nap
from tests.machine.test_router_change import app
from tests.nap import Nap, Pusher, eventually
from tests.regulars import announced

__all__ = ["app"]

SECONDS = 10

APP = """\
import os
from concurrent import futures
import grpc

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda asked, _: asked * 2)

server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
server.add_insecure_port("0.0.0.0:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
"""
DOCKERFILE = """\
FROM python:3.11-slim
COPY app.py /app.py
EXPOSE 50051
CMD ["python3", "/app.py"]
"""


class Talk(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A service of one method of each kind, of bytes."""

    def service(self, details: Any) -> Any:
        handlers = {
            "/talk/say": grpc.unary_unary_rpc_method_handler(say),
            "/talk/refuse": grpc.unary_unary_rpc_method_handler(refuse),
            "/talk/count": grpc.unary_stream_rpc_method_handler(count),
            "/talk/chat": grpc.stream_stream_rpc_method_handler(chat),
        }
        return handlers.get(details.method)


def say(asked: bytes, context: Any) -> bytes:
    told = dict(context.invocation_metadata())
    context.set_trailing_metadata([("for", told.get("x-forwarded-for", "")), ("proto", told["x-forwarded-proto"])])
    return asked * 2


def refuse(_: bytes, context: Any) -> None:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def count(asked: bytes, _: Any) -> Iterator[bytes]:
    yield from (b"%d" % number for number in range(int(asked)))


def chat(asked: Iterator[bytes], _: Any) -> Iterator[bytes]:
    for word in asked:
        yield word.upper()


@contextmanager
def server() -> Iterator[int]:
    """A gRPC server without TLS; its port."""
    made = grpc.server(ThreadPoolExecutor(8), handlers=[Talk()])
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield port
    finally:
        made.stop(None).wait()


@pytest.fixture(scope="module")
def nap(nap: Nap, short_folder: Path) -> Iterator[Nap]:
    """A nap that serves HTTPS."""
    own = fresh_nap(short_folder / "grpc", NAP_ENGINE_URL=nap.engine_url, NAP_ROUTER_HTTPS=free_address())
    own.run("up")
    yield own
    own.run("down")


@contextmanager
def visitor(nap: Nap, name: str) -> Iterator[grpc.Channel]:
    """A client's channel to the app of this name, over TLS."""
    root = nap.state.root / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    eventually(root.exists, SECONDS, "Caddy has an authority")
    options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    trusts = grpc.ssl_channel_credentials(root.read_bytes())
    with grpc.secure_channel(str(nap.settings.router.https), trusts, options) as channel:
        yield channel


def is_answered(channel: grpc.Channel) -> bool:
    try:
        return bool(channel.unary_unary("/talk/say")(b"ab", timeout=SECONDS) == b"abab")
    except grpc.RpcError:
        return False


def test_every_kind_of_call_passes(nap: Nap, app: str) -> None:
    with server() as port, visitor(nap, f"{app}.localhost") as channel:
        announced(nap, app, [port], protocol="h2c")
        eventually(lambda: is_answered(channel), SECONDS, "it is answered")
        answer, call = channel.unary_unary("/talk/say").with_call(b"ab", timeout=SECONDS)
        assert answer == b"abab"
        trailers = dict(call.trailing_metadata())
        assert (trailers["for"], trailers["proto"]) == ("127.0.0.1", "https")
        assert b"".join(channel.unary_stream("/talk/count")(b"5", timeout=SECONDS)) == b"01234"
        assert len(channel.unary_unary("/talk/say")(b"x" * 1_000_000, timeout=SECONDS)) == 2_000_000

        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/talk/refuse")(b"", timeout=SECONDS)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today")


def test_stream_goes_both_ways_at_once_and_over_changes(nap: Nap, app: str) -> None:
    heard: list[bytes] = []

    def words() -> Iterator[bytes]:
        """Each word is said when the one before was answered."""
        for number in range(5):
            yield b"word %d" % number
            eventually(lambda: len(heard) > number, SECONDS, "an answer comes before the next word")  # noqa: B023
            announced(nap, f"{app}-other", [1024 + number])

    with server() as port, visitor(nap, f"{app}.localhost") as channel:
        announced(nap, app, [port], protocol="h2c")
        eventually(lambda: is_answered(channel), SECONDS, "it is answered")
        for word in channel.stream_stream("/talk/chat")(words(), timeout=2 * SECONDS):
            heard += [word]
        assert heard == [b"WORD %d" % number for number in range(5)]
        announced(nap, f"{app}-other", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the image that the app starts from")
def test_app_is_set_to_it_before_its_first_push_and_rolled_back(nap: Nap, tmp_path: Path) -> None:
    import_bases(nap.engine_url)
    pusher = Pusher(nap, "says-twice", tmp_path)
    pusher.commit(Dockerfile=DOCKERFILE, app_py=APP)
    for words in (("apps:create", pusher.app), ("protocol:set", pusher.app, "h2c")):
        done = pusher.ssh_command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "=====> says-twice: protocol h2c, for its first release\n"
    first = pusher.push(seconds=180)  # its base is large
    assert first.status == 0, first.text
    with visitor(nap, f"{pusher.app}.localhost") as channel:
        eventually(lambda: is_answered(channel), SECONDS, "it is answered")

        assert pusher.ssh_command("protocol:set", pusher.app, "http").returncode == 0
        assert spoken(pusher) == [{"app": pusher.app, "protocol": "http"}]
        assert [facts.get("protocol") for facts in announcements(pusher)] == [None]
        assert not is_answered(channel), "it speaks no HTTP/1.1"

        assert pusher.ssh_command("rollback", pusher.app).returncode == 0
        assert spoken(pusher) == [{"app": pusher.app, "protocol": "h2c"}]
        assert [facts.get("protocol") for facts in announcements(pusher)] == ["h2c"]
        eventually(lambda: is_answered(channel), SECONDS, "it is answered again")
    assert pusher.ssh_command("protocol:set", pusher.app, "h2c").stdout == "=====> says-twice: nothing changed\n"


def spoken(pusher: Pusher) -> object:
    """What `protocol` says, for programs."""
    return json.loads(pusher.ssh_command("protocol", pusher.app, "--json").stdout)


def announcements(pusher: Pusher) -> list[Any]:
    return list(pusher.announcements().values())
