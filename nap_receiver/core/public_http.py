"""HTTP and HTTPS clients that connect only to public addresses, for URLs that an app names."""

import http.client
import ssl
import urllib.request
from collections.abc import Sequence
from functools import partial
from typing import Any

from nap_receiver.core.addresses import Network, connect

IDLE_SECONDS = 60
"""How long the other side may take between two bytes."""


def opener(allowed: Sequence[Network]) -> urllib.request.OpenerDirector:
    """Return an opener that connects only to public addresses or `allowed` ones, also for redirects.

    Else it raises `addresses.ForbiddenAddress`.
    """
    made = urllib.request.OpenerDirector()
    for handler in (
        _Http(allowed),
        _Https(allowed),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        made.add_handler(handler)
    made.addheaders = [("User-Agent", "nap"), ("Accept-Encoding", "identity")]
    return made


class _Confined(http.client.HTTPConnection):
    def __init__(self, allowed: Sequence[Network], host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._allowed = allowed

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, IDLE_SECONDS, self._allowed)


class _ConfinedTls(_Confined):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


class _Http(urllib.request.AbstractHTTPHandler):
    http_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, allowed: Sequence[Network]) -> None:
        super().__init__()
        self._connection = partial(_Confined, allowed)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)


class _Https(urllib.request.AbstractHTTPHandler):
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, allowed: Sequence[Network]) -> None:
        super().__init__()
        self._connection = partial(_ConfinedTls, allowed)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)
