"""Firewall rules: containers reach neither this machine's own services nor link-local addresses.

A container's loopback is its own, but its packets to the machine's addresses reach whatever listens there on all of
them, and those to 169.254.169.254 reach a cloud's metadata service through the machine (RFC 3927). Docker has no rules
against either; `DOCKER-USER` is its place for such (docs.docker.com, "Packet filtering and firewalls").

The rules stand in two chains of each nap's own, and hold for packets that come from the bridge of apps and builds.
"""

import ipaddress
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import sh

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine import daemon
from nap_receiver.engine.container import bridge_of, suffix_of

_LINK_LOCAL = "169.254.0.0/16"
_PORTS_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")  # from these Docker gives a published port its number
_REJECT = ("-j", "REJECT")
_RETURN = ("-j", "RETURN")  # to Docker's own rules, or the operator's

Rule = tuple[str, ...]


def guard(state: State, settings: Settings) -> None:
    """Add the rules, if nap is root and the engine is on this machine. Raises `NapError`."""
    if daemon.is_root_there(settings.engine.url):
        raise_wall(state, settings, bridges(state, settings))


def bridges(state: State, settings: Settings) -> list[str]:
    """Return the interfaces of apps and builds. Raises `NapError` if they are on another machine."""
    from nap_receiver.engine.client import engine_at  # a quarter of a second, which `nap down` has no need of

    with engine_at(settings.engine.url) as near:
        found = [near.network(bridge_of(suffix_of(state, settings)))]
    if settings.engine.url == daemon.own_url(state):
        found.append(daemon.bridge(state))
    for bridge in found:
        if not Path("/sys/class/net", bridge).exists():
            raise NapError(
                f"the engine's network interface {bridge} is not on this machine",
                advice="Add the firewall rules on the engine's machine: docs/operating.md.",
            )
    return found


def rules(state: State, settings: Settings, behind: Sequence[str]) -> list[Rule]:
    """Return all rules as arguments of `iptables --append`: of both chains, then the two jumps to them."""
    to_machine, through = chains(state)
    return [
        *((to_machine, *rule) for rule in _to_the_machine(settings)),
        # A cloud's name server may be link-local: that of its metadata service, for one.
        *((through, "-d", _LINK_LOCAL, "-p", kind, "--dport", "53", *_RETURN) for kind in ("udp", "tcp")),
        (through, "-d", _LINK_LOCAL, *_REJECT),
        *(("INPUT", "-i", bridge, "-j", to_machine) for bridge in behind),
        *(("DOCKER-USER", "-i", bridge, "-j", through) for bridge in behind),
    ]


def chains(state: State) -> tuple[str, str]:
    """Return the names of the two chains: for packets to this machine, and through it."""
    return f"NAP-{state.name}-IN", f"NAP-{state.name}-THROUGH"


def _to_the_machine(settings: Settings) -> list[Rule]:
    """Return what containers may reach on this machine: name servers, published ports, the router, opened ports."""
    found: list[Rule] = [("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", *_RETURN), ("-p", "icmp", *_RETURN)]
    found += [("-p", kind, "--dport", "53", *_RETURN) for kind in ("udp", "tcp")]
    found += [("-p", "tcp", "--dport", str(port), *_RETURN) for port in settings.local.open_ports.ports]
    # nap's own services come before published ports, which may be given numbers next to theirs.
    etcd = [] if settings.etcd.address.socket else [settings.etcd.address]
    own = (*etcd, settings.registry.address, settings.ssh.address)
    found += [("-p", "tcp", "--dport", str(address.port), *_REJECT) for address in own]
    for address in filter(None, (settings.router.http, settings.router.https)):
        found.append(("-p", "tcp", "--dport", str(address.port), *_RETURN))
    if not ipaddress.IPv4Address(settings.local.host).is_loopback:
        given = ":".join(_PORTS_GIVEN.read_text().split())
        found += [
            ("-d", f"{settings.local.host}/32", "-p", kind, "--dport", given, *_RETURN) for kind in ("udp", "tcp")
        ]
    return [*found, _REJECT]


def raise_wall(state: State, settings: Settings, behind: Sequence[str]) -> None:
    """Replace the rules; the old ones stay in force until the new ones are. Raises `NapError`."""
    wanted = rules(state, settings, behind)
    own = set(chains(state))
    # iptables-restore(8): a chain that is named is emptied, and filled, in one step.
    text = ["*filter", *(f":{chain} - [0:0]" for chain in sorted(own))]
    text += [shlex.join(("-A", *rule)) for rule in wanted if rule[0] in own]
    try:
        _command("iptables-restore")("--wait", "--noflush", _in="\n".join([*text, "COMMIT", ""]), _tty_out=False)
        for rule in wanted:
            if rule[0] not in own and not _holds(rule):
                if rule[0] == "DOCKER-USER" and not _has(rule[0]):
                    _command("iptables")("--wait", "--new-chain", rule[0])
                _command("iptables")("--wait", "--insert", *rule)
    except (sh.ErrorReturnCode, sh.CommandNotFound) as error:
        raise NapError(
            f"the firewall rules for containers cannot be added: {_reason(error)}",
            advice="Containers can reach the services of this machine. To try again: nap doctor --fix",
        ) from error


def missing(state: State, settings: Settings, behind: Sequence[str]) -> list[Rule]:
    """Return the rules that are not in force. Raises `NapError` if that cannot be read."""
    try:
        return [rule for rule in rules(state, settings, behind) if not _holds(rule)]
    except sh.CommandNotFound as error:
        raise NapError("iptables is not installed") from error


def tear_down(state: State) -> None:
    """Remove the rules and the chains; does nothing without them or without root."""
    if os.geteuid() != 0:
        return
    own = {chain for chain in chains(state) if _has(chain)}
    if not own:
        return
    iptables = _command("iptables").bake("--wait", _tty_out=False)
    for rule in map(shlex.split, str(iptables("--list-rules")).splitlines()):
        if rule[0] == "-A" and rule[1] not in own and own & set(rule):
            iptables("--delete", *rule[1:])
    for chain in own:
        iptables("--flush", chain)
        iptables("--delete-chain", chain)


def _holds(rule: Sequence[str]) -> bool:
    try:
        _command("iptables")("--wait", "--check", *rule, _tty_out=False)
    except sh.ErrorReturnCode:
        return False
    return True


def _has(chain: str) -> bool:
    try:
        _command("iptables")("--wait", "--list-rules", chain, _tty_out=False)
    except (sh.ErrorReturnCode, sh.CommandNotFound):
        return False
    return True


def _command(program: str) -> sh.Command:
    return sh.Command(program, search_paths=[*os.get_exec_path(), "/usr/sbin", "/sbin"])


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
    return output[-1] if output else str(error)
