"""The real parsers of what nap writes, for tests: systemd's manager and supervisord's options."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.options import ServerOptions
from supervisor.process import Subprocess

_MANAGER = "/lib/systemd/systemd"
_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
_EVERY_SERVICE_NEEDS = {"basic.target": "[Unit]\nDescription=what every service comes after\n"}

_C_ESCAPES = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


@dataclass(frozen=True)
class Read:
    """A unit as systemd has read it."""

    description: str
    environment: dict[str, str]
    commands: dict[str, list[list[str]]]
    """The words of each command by kind, `ExecStart`, …, as the program gets them."""
    dependencies: set[tuple[str, str]]
    """`("BindsTo", "hello.service")`"""
    complaints: str


def systemd_reads(units: dict[str, str], name: str) -> Read:
    """What systemd makes of the unit `name`, where `units` are all that there are."""
    with tempfile.TemporaryDirectory(prefix="nap-units-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        for file, text in (_EVERY_SERVICE_NEEDS | units).items():
            (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
            (folder / file).chmod(0o644)
        (folder / "run").mkdir()
        (folder / "run").chmod(0o777)
        manager = subprocess.run(
            [*(_NOBODY if os.geteuid() == 0 else []), _MANAGER, "--test", "--user", f"--unit={name}"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": f"{folder}/run",
                "XDG_RUNTIME_DIR": f"{folder}/run",
                "SYSTEMD_LOG_TARGET": "console",
                "SYSTEMD_UNIT_PATH": str(folder),
            },
            capture_output=True,
            check=False,
        )
    dump = manager.stdout.decode("utf-8", "surrogateescape")
    dump = re.sub(r"^(\t*)→ ", r"\1-> ", dump, flags=re.MULTILINE)  # systemd 257 has arrows
    complaints = manager.stderr.decode("utf-8", "surrogateescape").replace(directory, "")
    complaints = re.sub(r"^Loaded units and determined initial transaction in .*\n", "", complaints, flags=re.MULTILINE)
    assert f"-> Unit {name}:\n" in dump, complaints
    return _read(re.split(r"\n\t?-> Unit ", dump.partition(f"-> Unit {name}:\n")[2])[0], complaints)


def _read(unit: str, complaints: str) -> Read:
    _, _, environment = unit.partition("\n\t\tEnvironment: ")
    environment = re.split(r"\n\t\t(?:EnvironmentFile|RuntimeDirectoryPreserve): ", environment)[0]
    pairs = [pair.partition("=") for pair in environment.split("\n\t\tEnvironment: ") if pair]
    commands: dict[str, list[list[str]]] = {}
    for kind, lines in re.findall(r"\n\t\t-> (Exec\w+):((?:\n\t\t\tCommand Line: [^\n]*)+)", unit):
        commands[kind] = [_words(line) for line in lines.split("\n\t\t\tCommand Line: ")[1:]]
    description = re.search(r"\t\tDescription: ([^\n]*)", unit)
    assert description
    return Read(
        description[1],
        {key: value for key, _, value in pairs},
        commands,
        set(re.findall(r"\n\t\t(\w+): (\S+) \(origin-file", unit)),
        complaints,
    )


def _words(line: str) -> list[str]:
    r"""The words that systemd shows quoted for a shell, `"a\$b\n\001"`, as the program gets them.

    What systemd does only when it runs a command is done here: it halves `$$`, and a single `$` would expand.
    """
    words = []
    for quoted, bare in re.findall(r'"((?:\\.|[^"\\])*)"(?= |$)|([^ ]+)', line):
        word = re.sub(rb"\\([0-7]{3}|.)", _unescaped, (quoted or bare).encode("utf-8", "surrogateescape"))
        assert re.fullmatch(rb"(?:[^$]|\$\$)*", word, re.DOTALL), f"{word!r} would be expanded"
        words.append(word.replace(b"$$", b"$").decode("utf-8", "surrogateescape"))
    return words


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1].isdigit():
        return bytes([int(match[1], 8)])
    return _C_ESCAPES.get(match[1], match[1])


def supervisor_reads(units: Mapping[str, str], folder: Path) -> dict[str, Subprocess]:
    """The programs that a supervisord knows which includes these files."""
    for file, text in units.items():
        (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder.parent / "programs" / "apps").mkdir(parents=True, exist_ok=True)  # where units keep their logs
    configuration = folder / "supervisord.conf"
    configuration.write_text(f"[supervisord]\n[include]\nfiles = {' '.join(units)}\n")
    options = ServerOptions()
    options.realize(["-c", str(configuration)])
    programs = [Subprocess(each) for group in options.process_group_configs for each in group.process_configs]
    return {program.config.name: program for program in programs}


def supervisor_runs(program: Subprocess) -> list[str]:
    """The words of a program's command, as supervisord would run it."""
    return list(program.get_execv_args()[1])
