"""The Docker Engine of a single machine: find the one that runs, or start nap's own."""

import ipaddress
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Set
from pathlib import Path

import sh

from nap_receiver.core.errors import NapError
from nap_receiver.core.http import answers_well
from nap_receiver.core.paths import State
from nap_receiver.engine.container import bridge_of
from nap_receiver.engine.control_group import end_steps, forget_groups, group_of, steps_killed

USUAL = "unix:///var/run/docker.sock"

# A private range (RFC 1918) that Docker's own default pools leave alone, for one small network a nap.
_NETWORKS = ipaddress.IPv4Network("10.213.0.0/16")
_ANSWER_SECONDS = 3


def engine_of_the_machine(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of an engine that already answers: `DOCKER_HOST`, else the default; None if none does."""
    url = environ.get("DOCKER_HOST") or USUAL
    return url if answers(url) else None


def own_url(state: State) -> str:
    """Return the address of nap's own engine."""
    return f"unix://{state.run / 'docker.sock'}"


def answers(url: str) -> bool:
    """Return whether an engine at `url` answers a ping within 3 s."""
    if not url.startswith("unix://"):
        return _answers_elsewhere(url)
    return answers_well(url.removeprefix("unix://"), "/_ping", _ANSWER_SECONDS)


def _answers_elsewhere(url: str) -> bool:
    import docker  # a quarter of a second, needed only for engines behind TCP or ssh

    try:
        return bool(docker.DockerClient(url, timeout=_ANSWER_SECONDS).ping())
    except (docker.errors.DockerException, OSError):
        return False


def is_root_there(url: str) -> bool:
    """Return whether this process is root on the machine of the engine at `url`, so that it can limit builds."""
    return os.geteuid() == 0 and (url or USUAL).startswith("unix://")


def own_command(state: State) -> list[str]:
    """Return the command of nap's own engine: its data, sockets and network are separate from any other engine."""
    # After a kill, dockerd's containerd dies with it, but a pid file is left behind. Where its number is still, or
    # again, a process's, dockerd takes that for its containerd and waits 16 s for it to answer. And what BuildKit's
    # steps ran goes on without anybody.
    first = f'rm -f "$0"; {steps_killed(state.name)}; exec "$@"'
    return [
        *("/bin/sh", "-c", first, f"{state.run / 'engine/containerd/containerd.pid'}"),
        _dockerd(),
        f"--host={own_url(state)}",
        f"--data-root={state.root / 'engine'}",
        f"--exec-root={state.run / 'engine'}",
        f"--pidfile={state.run / 'docker.pid'}",
        f"--bridge={bridge(state)}",
        "--icc=false",  # containers of its own bridge reach each other no more than those of apps
        # For BuildKit, whose steps' groups can be limited nowhere else.
        f"--cgroup-parent={group_of(state.name)}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        "--live-restore",  # apps outlive a crash of the engine
        "--log-opt=max-size=10m",
        "--log-opt=max-file=2",
    ]


def bridge(state: State) -> str:
    """Return the network interface of nap's own engine."""
    return f"nap{state.name}"


def make_bridge(state: State) -> None:
    """Create that interface on a network without a route on this machine; does nothing if it exists."""
    links = {link["ifname"] for link in json.loads(str(sh.ip("-json", "link")))}
    if bridge(state) in links:
        return
    free = free_network(_NETWORKS, state.name)
    if free is None:
        raise NapError(f"no network of {_NETWORKS} is free for the engine", advice="Start a Docker Engine of your own.")
    sh.ip("link", "add", bridge(state), "type", "bridge")
    sh.ip("address", "add", f"{free[1]}/{free.prefixlen}", "dev", bridge(state))
    sh.ip("link", "set", bridge(state), "up")


def free_network(pool: ipaddress.IPv4Network, name: str) -> ipaddress.IPv4Network | None:
    """Return a network of `pool` without a route on this machine, with 254 addresses; `name`, hexadecimal, chooses the
    first candidate."""
    routes = [route["dst"] for route in json.loads(str(sh.ip("-json", "route"))) if route["dst"] != "default"]
    taken = [ipaddress.IPv4Network(route, strict=False) for route in routes]
    networks = list(pool.subnets(new_prefix=24))
    first = int(name, 16) % len(networks)  # two that start at once do not begin with the same
    ordered = networks[first:] + networks[:first]
    return next((network for network in ordered if not any(network.overlaps(t) for t in taken)), None)


def stop_containers(url: str) -> None:
    """Stop all containers of nap's own engine: with `--live-restore` they would outlive it."""
    docker = sh.Command("docker").bake("--host", url, _tty_out=False)
    if answers(url) and (running := str(docker("ps", "--quiet")).split()):
        docker("stop", *running)


def clean_up(state: State) -> None:
    """Remove the remains of nap's own engine: interface, firewall rules and, after a kill, mounts."""
    for path in reversed(_mounts(state)):
        sh.umount("--lazy", path)
    end_steps(state.name)
    forget_groups(state.name)
    if not Path("/sys/class/net", bridge(state)).exists():
        return
    for interface in (bridge(state), bridge_of(state.name)):
        if Path("/sys/class/net", interface).exists():
            sh.ip("link", "delete", interface)
    forget_rules({bridge(state), bridge_of(state.name)})


def forget_rules(interfaces: Set[str]) -> None:
    """Remove the firewall rules that name one of these interfaces; dockerd does not remove its own."""
    iptables = sh.Command("iptables", search_paths=[*os.get_exec_path(), "/usr/sbin", "/sbin"]).bake("--wait")
    for table in ("nat", "filter"):
        for rule in map(shlex.split, str(iptables("-t", table, "-S", _tty_out=False)).splitlines()):
            if rule[0] == "-A" and interfaces & set(rule):
                iptables("-t", table, "-D", *rule[1:])


def _mounts(state: State) -> list[str]:
    """Return the mounts of the engine (proc(5), mountinfo), without a disk that an operator mounted for it."""
    data, sockets = f"{state.root}/engine", f"{state.run}/engine"
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        root, path = line.split()[3:5]
        if path.startswith((f"{data}/", f"{sockets}/")) or (path == data and root != "/"):
            found.append(path)
    return found


def _dockerd() -> str:
    program = shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        raise NapError(
            f"no Docker Engine answers at {os.environ.get('DOCKER_HOST') or USUAL}, and nap can start one only as root "
            "and with dockerd installed",
            advice="Install and start one (apt-get install docker.io), or name one: NAP_ENGINE_URL=unix:///…",
        )
    return program
