"""Call the `onFailure.url` of a check in app.json when the check has failed in a deploy."""

import http.client
import urllib.request
from collections.abc import Sequence

import msgspec

from nap_receiver.core.addresses import ForbiddenAddress, Network
from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.deadline import DeadlinePassed, deadline
from nap_receiver.core.public_http import opener
from nap_receiver.model.health import Check

_SECONDS = 10
_SHOWN_CHARACTERS = 200


def call_url(check: Check, what: str, allowed: Sequence[Network], channel: Channel) -> None:
    """Call the check's URL, if it has one, with `what` failed: a POST of JSON, as docker-container-healthchecker sends
    it.

    The address must be public or in `allowed`. A failure of the call is a warning; the deploy continues.
    """
    url = check.on_failure.url if check.on_failure else ""
    if not url:
        return
    from requests.utils import requote_uri  # a fifteenth of a second of libraries that few deploys need

    body = msgspec.json.encode({"healthcheck_name": check.name, "errors": [what]})
    try:
        request = urllib.request.Request(requote_uri(url), body, {"Content-Type": "application/json"})
        with deadline(_SECONDS, "the call", ""), opener(allowed).open(request, timeout=_SECONDS):
            pass
    except (ForbiddenAddress, DeadlinePassed, OSError, http.client.HTTPException, ValueError) as error:
        channel.trouble(f"the check's onFailure.url was not called: {plain(str(error))[:_SHOWN_CHARACTERS]}")
