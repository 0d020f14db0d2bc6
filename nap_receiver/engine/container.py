"""The body of the engine's create call, with all values that an app chose.

The body is stored in etcd (Docker Engine API, `POST /containers/create`). The agent passes it on to the engine; on a
cluster, `unit_templates/create.sh` does. So no value of a tenant is ever in the environment, an argument or a file name
of a program on the host.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import ContainerSettings, Settings
from nap_receiver.model.app_url import url_of
from nap_receiver.model.health import Check, Header, visitors_headers
from nap_receiver.model.release import Instance, Limits, Release
from nap_receiver.model.variables import require_text
from nap_receiver.store.ledger import Ledger

NETWORK = "nap"
"""The network of all apps' containers, which do not reach each other there; the agent makes it, or `create.sh`."""

DIGEST_LABEL = "nap.body"
"""The label that tells containers of one name apart that were asked for differently."""

CPU_PERIOD = 100_000
"""Microseconds of which a quota is a part; one may exceed what the machine has, where NanoCpus may not."""

# Docker's default without AUDIT_WRITE, MKNOD, NET_RAW and SETFCAP: what programs need that start as root and then
# become another user, own files and listen on ports below 1024 (capabilities(7)).
_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
_MOST_BYTES = 1 << 20  # etcd takes requests of 1.5 MiB (etcd's --max-request-bytes)
_LOG_FILES = 2

Body = dict[str, Any]
Adapt = Callable[[Instance, Body], Body]


def bridge_of(machine: str) -> str:
    """Return the name of the network interface; `machine`, eight digits or empty, tells engines of one host apart."""
    return f"nap{machine}a" if machine else "nap-apps"


def body_of_instance(instance: Instance, variables: Mapping[str, str], settings: Settings) -> Body:
    """Return the create body for an instance, without the scheduler's part and the label with the digest.

    Raises `NapError` if a variable cannot be passed on.
    """
    release = instance.release
    body = _body(release, instance.label, instance.words, variables, settings, instance.limits)
    address = str(settings.local.host)
    if instance.is_web:
        body["Env"].append(f"PORT={release.port_variable}")
        published = release.published[: settings.container.ports]
        body["ExposedPorts"] = {port: {} for port in published}
        body["HostConfig"]["PortBindings"] = {port: [{"HostIp": address, "HostPort": ""}] for port in published}
    else:
        body["Healthcheck"] = {"Test": ["NONE"]}
    return body


def body_of_one_off(
    release: Release, label: str, words: Sequence[str], variables: Mapping[str, str], settings: Settings
) -> Body:
    """Return the create body for a one-off command."""
    body = _body(release, label, words, variables, settings, release.limits_of(label.partition(".")[0]))
    body["Env"].append(f"PORT={release.port_variable}")
    body["Healthcheck"] = {"Test": ["NONE"]}
    body["HostConfig"]["AutoRemove"] = True
    return body


def digest_of(body: Body) -> str:
    """Return sixteen hexadecimal digits that differ if the bodies differ."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()[:16]


def suffix_of(state: State, settings: Settings) -> str:
    """Return the suffix of this nap's container names if several naps may share an engine: eight digits; empty on a
    cluster."""
    return state.name if settings.is_single_machine else ""


def write_down(release: Release, ledger: Ledger, settings: Settings, adapt: Adapt) -> dict[str, str]:
    """Write to etcd the create body and the checks of each instance; return the digests by instance.

    `adapt` adds the scheduler's part (`Scheduler.asked_of_engine`). Raises `NapError` if a variable or a command cannot
    be passed on.
    """
    variables = ledger.configuration(release.config)
    digests = {}
    for instance in release.instances:
        body = adapt(instance, body_of_instance(instance, variables, settings))
        digests[instance.key] = body["Labels"][DIGEST_LABEL] = digest_of(body)
        if len(msgspec.json.encode(body)) > _MOST_BYTES:
            raise NapError(
                f"{release.app}: its variables and commands are larger than {_MOST_BYTES} bytes together",
                advice=f"Make them smaller: config:unset {release.app} NAME",
            )
        ledger.write_container(instance, body, asked_by_all(instance.checks, url_of(release.app, settings)))
    return digests


def asked_by_all(checks: Sequence[Check], url: str) -> dict[str, str | Body]:
    """Return the requests of all checks of the app at `url`, by number, and the failure commands by
    `<number>-failure`."""
    asked: dict[str, str | Body] = {}
    for number, check in enumerate(checks, 1):
        if (what := asked_by(check, url)) is not None:
            asked[f"{number}"] = what
        if check.failure_command:
            asked[f"{number}-failure"] = _executed(check.failure_command)
    return asked


def asked_by(check: Check, url: str) -> str | Body | None:
    """Return the request of a check in the form for announce.sh: text for HTTP, a body for a command.

    The text is the path of a URL and, if there are headers or a content: lines of a configuration of curl, and the text
    that the answer must contain, each in base64, or `-` for none. An HTTP check asks as a visitor of `url` does; `url`
    is empty without a router.
    """
    if check.command:
        return _executed(check.command)
    if not check.path:
        return None
    path = quote(check.path, safe="/?&=%:@!$'()*+,;~#")  # RFC 3986, without quotes, backslashes and spaces
    asked = [*visitors_headers(check, url), *check.http_headers]
    if not asked and not check.content:
        return path
    headers = "".join(f"header = {_of_curl(_header(each))}\n" for each in asked)
    return f"{path} {_base64(headers) or '-'} {_base64(check.content) or '-'}"


def _executed(words: Sequence[str]) -> Body:
    """Return the body of `POST /containers/…/exec`."""
    return {"Cmd": words, "AttachStdout": True, "AttachStderr": True}


def _header(header: Header) -> str:
    """Format a header for curl: a colon without a value would remove one of its own headers (curl(1), --header)."""
    return f"{header.name}: {header.value}" if header.value.strip() else f"{header.name};"


def _of_curl(text: str) -> str:
    """Quote a text for a configuration of curl (curl(1), --config)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return f'"{escaped}"'


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def in_force(limits: Limits, defaults: ContainerSettings) -> Limits:
    """Return the limits of an instance: its own, else the operator's defaults."""
    return Limits(limits.memory or defaults.memory, limits.cpus or defaults.cpus)


def _body(
    release: Release,
    label: str,
    words: Sequence[str],
    variables: Mapping[str, str],
    settings: Settings,
    given: Limits,
) -> Body:
    limits = in_force(given, settings.container)
    for name, value in variables.items():
        require_text(name, value)
    host: Body = {
        "Init": True,
        "NetworkMode": NETWORK,
        "CapDrop": ["ALL"],
        "CapAdd": sorted({*_CAPABILITIES, *release.capabilities}),
        "SecurityOpt": ["no-new-privileges"],
    }
    if limits.memory:
        host["Memory"] = limits.memory
    if limits.cpus:
        host |= {"CpuPeriod": CPU_PERIOD, "CpuQuota": int(limits.cpus * CPU_PERIOD)}
    if settings.container.pids:
        host["PidsLimit"] = settings.container.pids
    if size := settings.container.log_size:
        options = {"max-size": str(size // _LOG_FILES), "max-file": str(_LOG_FILES)}
        host["LogConfig"] = {"Type": "json-file", "Config": options}
    body: Body = {
        "Image": release.image,
        "Env": [
            *(f"{name}={value}" for name, value in sorted(variables.items())),
            f"GIT_REV={release.commit}",
            f"NAP_APP={release.app}",
            f"NAP_RELEASE={release.name}",
            f"NAP_PROCESS={label}",
        ],
        "Labels": {
            "nap.app": release.app,
            "nap.release": str(release.number),
            "nap.commit": release.commit,
            "nap.instance": label,
        },
        "HostConfig": host,
    }
    if words:
        body["Cmd"] = list(words)
    return body
