"""Download the URLs of `ADD` in an app's Dockerfile, from public addresses only.

The engine would download them in the network of its machine, which reaches a metadata service and nap's own programs.
Its checks, if it had any, would miss redirects and a second answer of a name server.
"""

import http.client
import posixpath
import re
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO
from urllib.parse import unquote, urlsplit

from requests.utils import requote_uri

from nap_receiver.core.addresses import ForbiddenAddress, Network
from nap_receiver.core.public_http import IDLE_SECONDS, opener

_PIECE_BYTES = 1 << 16


class NotDownloaded(Exception):
    """The download failed; the message has the reason."""


@dataclass(frozen=True)
class Downloaded:
    """The facts about a downloaded file."""

    name: str
    """The last part of its URL's path, else the name that the server gives it; empty where it gives none."""
    modified: int
    """When the server says that it was, in seconds since 1970; 0 where it says nothing."""
    size: int


def download(url: str, into: IO[bytes], allowed: Sequence[Network], most: int) -> Downloaded:
    """Download `url` into a file, at most `most` bytes. Raises `NotDownloaded`.

    Every address on the way, also of redirects, is public or in `allowed`.
    """
    try:
        with opener(allowed).open(requote_uri(url), timeout=IDLE_SECONDS) as response:
            size = 0
            while piece := response.read(_PIECE_BYTES):
                size += len(piece)
                if size > most:
                    raise NotDownloaded(f"it is larger than the {most} bytes that build.download_size allows")
                into.write(piece)
            return Downloaded(_name(url, response.headers), _modified(response.headers), size)
    except (ForbiddenAddress, NotDownloaded) as error:
        raise NotDownloaded(str(error)) from error
    except urllib.error.HTTPError as error:
        raise NotDownloaded(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise NotDownloaded(str(reason)) from error


def _name(url: str, headers: Message) -> str:
    """Return the file name (Dockerfile reference, "ADD"), never a path."""
    name = posixpath.basename(unquote(urlsplit(url).path)) or posixpath.basename(headers.get_filename() or "")
    return "" if name in {".", ".."} or re.search(r"[\x00-\x1f\x7f]", name) else name


def _modified(headers: Message) -> int:
    try:
        return max(0, int(parsedate_to_datetime(headers["Last-Modified"]).timestamp()))
    except (TypeError, ValueError, OverflowError):
        return 0
