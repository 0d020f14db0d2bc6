"""fleetctl's commands, with the words, the outputs and the exit statuses of fleet 1.0.0.

What is not played here ends with exit status 70, which fleetctl has no use for.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from tests.stand_in.cluster import CONFIGURATION, Away, Cluster, Loaded, Machine, Unit
from tests.stand_in.unit_file import Refused, UnitFile, read, validate

_VERSION = "fleetctl version v1.0.0"
_NOT_PLAYED = 70
_ATTEMPT_SECONDS = 2.0
_ASK_AGAIN_SECONDS = 0.05
_TYPES = ("service", "socket", "timer", "path", "device", "mount", "automount")

_TEXT, _SWITCH, _WHOLE, _NUMBER = "", "ParseBool", "ParseInt", "ParseFloat"
_FORMS = {
    _TEXT: ".*",
    _SWITCH: "1|t|T|TRUE|true|True|0|f|F|FALSE|false|False",
    _WHOLE: r"[+-]?\d+",
    _NUMBER: r"[+-]?(\d+\.?\d*|\.\d+)",
}
_EVERYWHERE = {
    "endpoint": _TEXT,
    "driver": _TEXT,
    "tunnel": _TEXT,
    "ca-file": _TEXT,
    "cert-file": _TEXT,
    "key-file": _TEXT,
    "request-timeout": _NUMBER,
    "strict-host-key-checking": _SWITCH,
}
_WAITING = {"no-block": _SWITCH, "block-attempts": _WHOLE}
_LISTING = {"full": _SWITCH, "no-legend": _SWITCH, "fields": _TEXT}
_COMMANDS = {
    "cat": {},
    "destroy": _WAITING,
    "list-machines": _LISTING,
    "list-unit-files": _LISTING,
    "list-units": _LISTING,
    "start": {"replace": _SWITCH, **_WAITING},
    "stop": _WAITING,
    "submit": {"replace": _SWITCH},
    "unload": _WAITING,
    "version": {},
}
_NO_ROLE = {"fd-forward", "help", "journal", "load", "restart", "ssh", "status", "verify"}

Options = Mapping[str, str]


class Misuse(Exception):
    """Options that fleetctl does not understand: said at length, with exit status 0."""


class Failed(Exception):
    """What ends a command with exit status 1."""


class Unreachable(Exception):
    """What comes instead of an answer from the cluster."""


class Api:
    """The cluster as fleetctl's commands see it. What asks raises `Unreachable` when nothing answers."""

    def __init__(self, options: Options) -> None:
        self._driver = options.get("driver", "API")
        if self._driver not in ("API", "etcd"):
            raise Failed(f'Unable to initialize client: unrecognized driver "{self._driver}"')
        self._url = urlsplit(options.get("endpoint", "unix:///var/run/fleet.sock").split(",")[0])
        self._is_file = self._url.scheme in ("unix", "file")
        if not self._url.scheme:
            raise Failed("Unable to initialize client: URL scheme undefined")
        if self._is_file and self._url.netloc:
            host, scheme = self._url.netloc, self._url.scheme
            raise Failed(f'Unable to initialize client: unable to connect to host "{host}" with scheme "{scheme}"')
        for file in ("cert-file", "key-file", "ca-file"):
            if (path := options.get(file)) and not os.access(path, os.R_OK):
                raise Failed(f"Unable to initialize client: open {path}: no such file or directory")

    def units(self) -> dict[str, Unit]:
        """The registry, by name."""
        return self._cluster("units").units()

    def unit(self, name: str) -> Unit | None:
        """One unit of the registry."""
        return self._cluster(f"units/{name}").units().get(name)

    def states(self) -> dict[str, Loaded]:
        """What is on the machine, by name."""
        cluster = self._cluster("state")
        try:
            loaded = cluster.loaded()
        except Away:
            return {}
        cluster.wake_if_needed(cluster.units(), loaded)
        return dict(sorted(loaded.items()))

    def progress(self, names: Iterable[str]) -> dict[str, str]:
        """How far fleet has come with those units that it has: `inactive`, `loaded` or `launched`."""
        units = {name: unit for name, unit in self.units().items() if name in names}
        states = self.states() if any(unit.desired != "inactive" or unit.target for unit in units.values()) else {}
        return {
            name: states[name].state if unit.target and name in states else "inactive" for name, unit in units.items()
        }

    def machines(self) -> list[Machine]:
        """Those that are there."""
        machine = self._cluster("machines").machine
        try:
            machine.sh("")
        except Away:
            return []
        return [machine]

    def machine(self) -> Machine:
        """The machine that all units are on."""
        return self._cluster("machines").machine

    def create(self, name: str, file: UnitFile) -> None:
        """Put a unit in the registry, inactive, in the place of its namesake."""
        with self._cluster("units").changing() as units:
            units[name] = Unit(file.options)

    def desire(self, names: Iterable[str], state: str) -> None:
        """Say how far fleet is to come with units."""
        cluster = self._cluster("units")
        with cluster.changing() as units:
            for name in units.keys() & set(names):
                units[name].desired = state
        cluster.wake()

    def destroy(self, names: Iterable[str]) -> None:
        """Take units out of the registry."""
        cluster = self._cluster("units")
        with cluster.changing() as units:
            gone = [units.pop(name) for name in names if name in units]
        if any(unit.desired != "inactive" for unit in gone):
            cluster.wake()

    def _cluster(self, what: str) -> Cluster:
        folder = Path(self._url.path).parent
        if self._is_file and (folder / CONFIGURATION).exists():
            return Cluster(folder)
        raise Unreachable(self._why_not(what))

    def _why_not(self, what: str) -> str:
        where = f"unix {self._url.path}" if self._is_file else f"tcp {self._url.netloc}"
        host = "domain-sock" if self._is_file else self._url.netloc
        with socket.socket(socket.AF_UNIX if self._is_file else socket.AF_INET) as client:
            try:
                client.connect(self._url.path if self._is_file else (self._url.hostname, self._url.port or 80))
            except OSError as error:
                why = f"dial {where}: connect: {os.strerror(error.errno or 0).lower()}"
            else:
                raise NotImplementedError(f"somebody else answers at {where}")
        if self._driver == "etcd":
            return f"client: etcd cluster is unavailable or misconfigured; error #0: {why}\n"
        return f'Get "http://{host}/fleet/v1/{what}?alt=json": {why}'


def run() -> NoReturn:
    """Be `fleetctl`."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("--version", "-v"):
        print(_VERSION)
        return 0
    command = ""
    try:
        command, rest = _command(arguments)
        options, words = _parsed({**_EVERYWHERE, **_COMMANDS[command]}, rest)
        _run(command, Api(options), options, words)
    except Misuse as misuse:
        if command:
            print(f"NAME:\n\t{command} - …")
            _complain(f"Error: {misuse}\n")
        else:
            _complain(f"Error: {misuse}\nRun 'fleetctl --help' for usage.")
        _complain(f"cannot execute cmdFleet: {misuse}")
    except Failed as failed:
        _complain(str(failed))
        return 1
    except Exception as error:  # noqa: BLE001 - fleetctl's own exit statuses are not to be taken for it
        _complain(f"stand-in: {error!r}")
        return _NOT_PLAYED
    return 0


def _command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's whole name, and the arguments without it."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        option = arguments[at].lstrip("-")
        at += 1 if "=" in option or _EVERYWHERE.get(option) == _SWITCH else 2
    if at >= len(arguments):
        raise NotImplementedError("fleetctl's help")
    word = arguments[at]
    known = sorted({*_COMMANDS, *_NO_ROLE})
    meant = [word] if word in known else [name for name in known if name.startswith(word)]
    if len(meant) != 1:
        raise Misuse(f'unknown command "{word}" for "fleetctl"')
    if meant[0] in _NO_ROLE:
        raise NotImplementedError(meant[0])
    return meant[0], [*arguments[:at], *arguments[at + 1 :]]


def _parsed(known: Mapping[str, str], arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """The options, also those of the environment, and the other words."""
    variables = {name: f"FLEETCTL_{name.upper().replace('-', '_')}" for name in _EVERYWHERE}
    options = {name: os.environ[variable] for name, variable in variables.items() if os.environ.get(variable)}
    rest, words = list(arguments), []
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            words += rest
            break
        if not argument.startswith("-"):
            words.append(argument)
            continue
        if not argument.startswith("--"):
            raise Misuse(f"unknown shorthand flag: '{argument[1:2]}' in {argument}")
        name, equals, value = argument[2:].partition("=")
        if name not in known:
            raise Misuse(f"unknown flag: --{name}")
        if not equals and known[name] == _SWITCH:
            value = "true"
        elif not equals and not rest:
            raise Misuse(f"flag needs an argument: --{name}")
        elif not equals:
            value = rest.pop(0)
        if not re.fullmatch(_FORMS[known[name]], value, re.DOTALL):
            why = f'strconv.{known[name]}: parsing "{value}": invalid syntax'
            raise Misuse(f'invalid argument "{value}" for --{name}={value}: {why}')
        options[name] = value
    return options, words


def _run(command: str, api: Api, options: Options, words: Sequence[str]) -> None:
    try:
        if command == "version":
            print(_VERSION)
        elif command == "list-units":
            _list_units(api, options)
        elif command == "list-unit-files":
            _list_unit_files(api, options)
        elif command == "list-machines":
            _list_machines(api, options)
        elif command == "cat":
            _cat(api, words)
        elif not words:
            _complain("No units given")
        elif command == "submit":
            _submit(api, options, words, 0)
        elif command == "start":
            _start(api, options, words)
        else:
            _take_down(command, api, options, words)
    except Unreachable as error:
        raise Failed(_unreachable(command, words, str(error))) from error


def _unreachable(command: str, words: Sequence[str], why: str) -> str:
    if command in ("list-units", "list-unit-files"):
        return f"Error retrieving list of units from repository: {why}"
    if command == "list-machines":
        return (
            f"Error retrieving list of active machines from fleet API ({why})\nPossible issues:\n"
            "  etcd is unhealthy and/or lost quorum\n  connection cannot be established to any etcd servers"
        )
    if command == "cat":
        return f"Error retrieving Unit {_unit_name(words[0])}: {why}"
    if command in ("submit", "start"):
        return f"Error creating units: error retrieving Unit({_unit_name(words[0])}) from Registry: {why}"
    return why


def _list_units(api: Api, options: Options) -> None:
    columns = _columns(options, "unit,machine,active,sub", "active,hash,load,machine,sub,unit")
    rows = [
        {
            "unit": name,
            "machine": _machine(api, options),
            "active": loaded.active,
            "sub": loaded.sub,
            "load": loaded.load,
            "hash": _hash(loaded.hash, options),
        }
        for name, loaded in api.states().items()
    ]
    _print_table(columns, rows, options)


def _list_unit_files(api: Api, options: Options) -> None:
    columns = _columns(options, "unit,hash,dstate,state,target", "desc,dstate,global,hash,state,target,unit")
    units = api.units()
    states = api.progress(units)
    rows = [
        {
            "unit": name,
            "hash": _hash(unit.file.hash, options),
            "dstate": unit.desired,
            "state": states.get(name, "inactive"),  # where it was destroyed in this moment
            "target": _machine(api, options) if unit.target else "-",
            "desc": unit.file.description or "-",
            "global": "false",
        }
        for name, unit in units.items()
    ]
    _print_table(columns, rows, options)


def _list_machines(api: Api, options: Options) -> None:
    columns = _columns(options, "machine,ip,metadata", "ip,machine,metadata")
    rows = [
        {
            "machine": _machine_id(machine, options),
            "ip": machine.address,
            "metadata": ",".join(f"{key}={value}" for key, value in sorted(machine.metadata.items())) or "-",
        }
        for machine in api.machines()
    ]
    _print_table(columns, rows, options)


def _cat(api: Api, words: Sequence[str]) -> None:
    if len(words) != 1:
        raise Failed("One unit file must be provided")
    name = _unit_name(words[0])
    unit = api.unit(name)
    if unit is None:
        raise Failed(f"Unit {name} not found")
    print(unit.file.text, end="")


def _start(api: Api, options: Options, words: Sequence[str]) -> None:
    if _on(options, "replace"):
        raise NotImplementedError("start --replace")
    attempts = _attempts(options)
    _submit(api, options, words, max(0, attempts))
    units = api.units()
    names = [name for name in map(_unit_name, words) if units[name].desired != "launched"]
    if names:
        api.desire(names, "launched")
    try:
        _await_states(api, names, "launched", "start", attempts)
    except TimeoutError as late:
        raise Failed(f"Error waiting for units: {late}\nError waiting for unit states, exit status: {late}") from late
    _await_active(api, names, attempts)


def _take_down(command: str, api: Api, options: Options, words: Sequence[str]) -> None:
    units = api.units()
    names = [name for name in map(_unit_name, words) if name in units]
    if not names:
        _complain("Units not found in registry")
        return
    if command == "destroy":
        api.destroy(names)
        for name in names:
            print(f"Destroyed {name}")
        return
    desired, done = {"stop": ("loaded", "stopped"), "unload": ("inactive", "unloaded")}[command]
    states = api.progress(names)
    idle = next((name for name in names if command == "stop" and states[name] == "inactive"), None)
    told = names if idle is None else names[: names.index(idle)]
    waiting = [name for name in told if states[name] != desired]
    if waiting:
        api.desire(waiting, desired)
    if idle is not None:
        raise Failed(f"Unable to stop unit {idle} in state inactive")
    listed = f"[{' '.join(waiting)}]"
    try:
        _await_states(api, waiting, desired, command, _attempts(options))
    except TimeoutError as late:
        raise Failed(f"Error waiting for units: {late}\nFailed to {command} units {listed}. err: {late}") from late
    _complain(f"Successfully {done} units {listed}.")


def _submit(api: Api, options: Options, words: Sequence[str], attempts: int) -> None:
    created = []
    for word in words:
        path, name = Path(_typed(word)), _unit_name(word)
        there = api.unit(name)
        if there and not _is_to_be_replaced(options, path, name, there):
            continue
        try:
            file = read(path.read_bytes())
        except FileNotFoundError as error:
            raise Failed(f"Error creating units: unable to find Unit({name}) in Registry or on filesystem") from error
        except Refused as refused:
            raise Failed(f"Error creating units: failed getting Unit({path}) from file: {refused}") from refused
        if not file.options:
            raise NotImplementedError("a unit without options")  # what becomes of it depends on the driver
        if unplayed := file.unplayed_requirements():
            raise NotImplementedError(f"{unplayed[0]}=")
        try:
            validate(file, name)
            for unknown in file.unknown_requirements()[:1]:
                now = time.strftime("%Y/%m/%d %H:%M:%S")
                what = f'unrecognized requirement in [X-Fleet] section: "{unknown}"'
                _complain(f"{now} WARN fleetctl.go:674: Unit {name}: {what}")
        except Refused as refused:
            raise Failed(f"Error creating units: {refused}") from refused
        api.create(name, file)
        created.append(name)
    try:
        _await_states(api, created, "inactive", "submit", attempts)
    except TimeoutError as late:
        raise Failed(
            f"Error waiting on unit creation: {late}\nError creating units: One or more errors creating units"
        ) from late


def _is_to_be_replaced(options: Options, path: Path, name: str, there: Unit) -> bool:
    replacing = _on(options, "replace")
    try:
        same = read(path.read_bytes()).hash == there.file.hash
    except (OSError, Refused) as error:
        if replacing:
            what = f"error Unit {path} does not seem to be a template unit"
            raise Failed(f"Error creating units: {what}") from error
        return False
    if replacing and same:
        print(f"Found same Unit({name}) in Registry, nothing to do")
    elif replacing and there.desired != "inactive":
        state = there.desired
        _complain(f"Warning: can not replace Unit({name}) in state '{state}', use the appropriate command")
    elif not replacing and not same:
        difference = f"Unit {name} in registry differs from local unit file {path}"
        _complain(f"WARNING: {difference}. Add --replace to override.")
    else:
        return replacing
    return False


def _await_states(api: Api, names: Sequence[str], state: str, verb: str, attempts: int) -> None:
    """Tell when each unit has come to `state`. Raises `TimeoutError`; 0 attempts are as many as it takes."""
    if attempts < 0:
        for name in names:
            print(f"Triggered unit {name} {verb}")
        return
    deadline = time.monotonic() + (attempts * _ATTEMPT_SECONDS or float("inf"))
    waiting = list(names)
    while waiting:
        with suppress(Unreachable):
            states = api.progress(waiting)
            place = "" if state == "inactive" else f" on {_machine(api, {})}"
            for name in [name for name in waiting if states.get(name) == state]:
                print(f"Unit {name} {state}{place}", flush=True)
                waiting.remove(name)
        if waiting and time.monotonic() > deadline:
            raise TimeoutError(f"timed out waiting for unit {waiting[0]} to report state {state}")
        time.sleep(_ASK_AGAIN_SECONDS if waiting else 0)


def _await_active(api: Api, names: Sequence[str], attempts: int) -> None:
    if attempts < 0:
        for name in names:
            print(f"Triggered unit {name} start")
        return
    deadline = time.monotonic() + _ATTEMPT_SECONDS
    waiting = list(names)
    while waiting:
        states = api.states()
        waiting = [n for n in waiting if n not in states or (states[n].load, states[n].active) != ("loaded", "active")]
        if waiting and time.monotonic() > deadline:
            what = f"Failed to find an active unit {waiting[0]} within 2s, err: Failed to fetch states within 2s"
            raise Failed(f"Error waiting for units: {what}\nError waiting for systemd unit states, err: {what}")
        time.sleep(_ASK_AGAIN_SECONDS if waiting else 0)


def _attempts(options: Options) -> int:
    """How often to look: for ever if 0, not at all if negative."""
    return -1 if _on(options, "no-block") else max(0, int(options.get("block-attempts", "0")))


def _on(options: Options, switch: str) -> bool:
    return options.get(switch, "f")[0] in "1tT"


def _typed(word: str) -> str:
    return word if word.endswith(tuple(f".{each}" for each in _TYPES)) else f"{word}.service"


def _unit_name(word: str) -> str:
    name = _typed(Path(word).name)
    if "@" in name:
        raise NotImplementedError(f"templates: {name}")
    return name


def _machine(api: Api, options: Options) -> str:
    machine = api.machine()
    return f"{_machine_id(machine, options)}/{machine.address}"


def _machine_id(machine: Machine, options: Options) -> str:
    return machine.id if _on(options, "full") else f"{machine.id[:8]}..."


def _hash(hash: str, options: Options) -> str:
    return hash if _on(options, "full") else hash[:7]


def _columns(options: Options, usual: str, known: str) -> list[str]:
    columns = options.get("fields", usual)
    if not columns:
        raise Failed("Must define output format")
    for column in columns.split(","):
        if column not in known.split(","):
            raise Failed(f'Invalid key in output format: "{column}"')
    return columns.split(",")


def _print_table(columns: Sequence[str], rows: Iterable[Mapping[str, str]], options: Options) -> None:
    """As Go's tabwriter does with tabs of 8: each column as wide as its widest cell and at least one more."""
    lines = [] if _on(options, "no-legend") else [[column.upper() for column in columns]]
    lines += [[row[column] for column in columns] for row in rows]
    widths = [(max(map(len, cells)) // 8 + 1) * 8 for cells in zip(*lines, strict=True)]
    for line in lines:
        padded = [cell + "\t" * -(-(width - len(cell)) // 8) for cell, width in zip(line, widths, strict=True)]
        print("".join(padded).rstrip("\t"))


def _complain(words: str) -> None:
    sys.stdout.flush()
    print(words, file=sys.stderr, flush=True)
