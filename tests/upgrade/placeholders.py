"""What differs between the machine that a state was recorded on and the one that it is restored on."""

import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Mapping

from nap_receiver.core.installed import path_of
from tests.nap import ROOT, Nap

Values = Mapping[str, str]
"""A value by its placeholder's name."""

USERS = ("alice", "bob")


def values_of(nap: Nap, ports: Values, keys: Values) -> dict[str, str]:
    """The values on this machine. `ports` has them by setting, `keys` the public key by user, as `type base64`."""
    return {
        "python": sys.executable,
        "scripts": sysconfig.get_path("scripts"),
        "caddy": path_of("caddy"),
        "checkout": str(ROOT),
        "state": str(nap.folder),
        "folder": str(nap.folder.parent),
        "name": nap.state.name,
        **{f"port {setting}": port for setting, port in ports.items()},
        **{f"key {user}": key for user, key in keys.items()},
    }


def filled(text: str, values: Values) -> str:
    """`text` with the values in the place of their placeholders."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def emptied(text: str, values: Values) -> str:
    """`text` with placeholders in the place of the values, and of no digits that are part of a longer number."""
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        text = re.sub(rf"(?<!\d){re.escape(value)}(?!\d)", f"{{{name}}}", text)
    return text


def digest_of_body(body: str) -> str:
    """The digest that the label `nap.body` has in this body of the engine's create call, and its unit too."""
    value = json.loads(body)
    del value["Labels"]["nap.body"]
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
