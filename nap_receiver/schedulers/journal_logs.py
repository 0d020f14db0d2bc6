"""Read the output of instances from the journals of a cluster's machines, over ssh."""

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.process import piped
from nap_receiver.model.release import Instance
from nap_receiver.schedulers.log_source import Line, Wanted
from nap_receiver.schedulers.placement import Machine

_TRY_AGAIN_SECONDS = 1.0
_ALIVE = "ServerAliveInterval=15"


_SPARE_SECONDS = 25  # over the time to connect, for a journal to be searched


class Journals:
    """The journals of a cluster's machines, read by journalctl over ssh."""

    def __init__(self, destination: str, machines: Sequence[Machine], seconds: int) -> None:
        self._destination, self._machines, self._seconds = destination, machines, seconds
        self._from: dict[str, str] = {}  # by machine, the option that says where to follow from
        self._running: list[subprocess.Popen[str]] = []
        self._over = threading.Event()
        self._began = int(time.time())
        self.missing: list[str] = []

    def past(self, instances: Sequence[Instance], most: int) -> list[Line]:
        units = [f"_SYSTEMD_UNIT={instance.unit}.service" for instance in instances]
        # By the machine's own clock, because it is its journal that is followed from then on.
        command = "date +%s"
        if units:
            command += f" && {_journalctl(f'--lines={max(most, 1)}', *units)}"
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = list(pool.map(lambda machine: self._asked(machine, command), self._machines))
        if self._machines and len(self.missing) == len(self._machines):
            raise NapError(
                "nap cannot read the journal of any machine of the cluster",
                words=self.missing,
                advice="Operator: docs/logs.md describes what fleet.logs needs.",
            )
        return [line for lines in found for line in lines]

    def follow(self, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        for machine in self._machines:
            threading.Thread(target=self._follow, args=(machine, wanted, tell), daemon=True).start()

    def close(self) -> None:
        """End all processes that follow a journal."""
        self._over.set()
        running = list(self._running)  # those who read it take out what has ended
        for ssh in running:
            ssh.terminate()
        for ssh in running:
            ssh.wait()

    def _asked(self, machine: Machine, command: str) -> list[Line]:
        try:
            done = subprocess.run(
                self._ssh(machine, command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._seconds + _SPARE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.missing.append(f"{machine.address}: no answer in time")
            return []
        if done.returncode:
            why = done.stderr.decode("utf-8", "replace").strip().splitlines()
            self.missing.append(f"{machine.address}: {plain(why[-1]) if why else f'exit status {done.returncode}'}")
            return []
        clock, *entries = done.stdout.decode("utf-8", "replace").splitlines()
        read = [entry for entry in map(_journal_entry, entries) if entry]
        self._from[machine.id] = f"--after-cursor={read[-1][0]}" if read else f"--since=@{int(clock)}"
        return [Line(at, unit.split(".", 2)[2], text) for _, unit, at, text in read]

    def _follow(self, machine: Machine, wanted: Wanted, tell: Callable[[Line], None]) -> None:
        """Follow the journal of one machine, also after it was away."""
        while not self._over.is_set():
            begin = self._from.get(machine.id, f"--since=@{self._began}")
            command = self._ssh(machine, _journalctl("--follow", "--no-tail", begin))
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                errors="replace",
            ) as ssh:
                self._running.append(ssh)
                if self._over.is_set():
                    ssh.terminate()
                for entry in filter(None, map(_journal_entry, piped(ssh.stdout))):
                    cursor, unit, at, text = entry
                    self._from[machine.id] = f"--after-cursor={cursor}"
                    if (label := wanted.label(unit)) is not None:
                        tell(Line(at, label, text))
            self._running.remove(ssh)
            self._over.wait(_TRY_AGAIN_SECONDS)

    def _ssh(self, machine: Machine, command: str) -> list[str]:
        destination = self._destination.replace("{address}", machine.address)
        options = [f"-o{option}" for option in ("BatchMode=yes", f"ConnectTimeout={self._seconds}", _ALIVE)]
        # ssh must not outlive this process, however that ends.
        return ["setpriv", "--pdeathsig", "TERM", "ssh", "-T", *options, destination, command]


def _journalctl(*words: str) -> str:
    # What services print, the instances' among them; not what systemd says about them.
    chosen = ["--quiet", "--no-pager", "--all", "--output=json", "--output-fields=MESSAGE,_SYSTEMD_UNIT"]
    return shlex.join(["journalctl", *chosen, *words, "_TRANSPORT=stdout"])


def _journal_entry(line: str) -> tuple[str, str, str, str] | None:
    """Return cursor, unit, time and text of an entry; None if it is not from an instance."""
    try:
        entry = json.loads(line)
        seconds, fraction = divmod(int(entry["__REALTIME_TIMESTAMP"]), 1_000_000)
        message = entry["MESSAGE"]
        if isinstance(message, list):  # systemd.journal-fields(7): what is no text comes as its bytes
            message = bytes(message).decode("utf-8", "replace")
        unit = entry["_SYSTEMD_UNIT"].removesuffix(".service")
        at = datetime.fromtimestamp(seconds, UTC).strftime(f"%Y-%m-%dT%H:%M:%S.{fraction:06}000Z")
        return entry["__CURSOR"], unit, at, plain(message)
    except (ValueError, KeyError, TypeError):
        return None
