"""Which firewall rules containers are behind."""

import shlex
from pathlib import Path

from nap_receiver.core.paths import State
from nap_receiver.core.settings import BuildSettings, HostAddress, LocalSettings, Ports, Settings
from nap_receiver.machine.firewall import chains, rules


def written(settings: Settings) -> list[str]:
    """The rules for two interfaces, as an operator types them."""
    return [shlex.join(rule) for rule in rules(State(Path("/var/lib/nap")), settings, ["nap1a", "nap1"])]


def test_containers_reach_name_servers_the_router_and_nothing_else_of_the_machine() -> None:
    to_machine, through = chains(State(Path("/var/lib/nap")))
    assert max(map(len, (to_machine, through))) < 29, "iptables takes no longer names"
    assert written(Settings(build=BuildSettings())) == [
        f"{to_machine} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        f"{to_machine} -p icmp -j RETURN",
        f"{to_machine} -p udp --dport 53 -j RETURN",
        f"{to_machine} -p tcp --dport 53 -j RETURN",
        f"{to_machine} -p tcp --dport 12379 -j REJECT",
        f"{to_machine} -p tcp --dport 15000 -j REJECT",
        f"{to_machine} -p tcp --dport 2222 -j REJECT",
        f"{to_machine} -p tcp --dport 12080 -j RETURN",
        f"{to_machine} -j REJECT",
        f"{through} -d 169.254.0.0/16 -p udp --dport 53 -j RETURN",
        f"{through} -d 169.254.0.0/16 -p tcp --dport 53 -j RETURN",
        f"{through} -d 169.254.0.0/16 -j REJECT",
        f"INPUT -i nap1a -j {to_machine}",
        f"INPUT -i nap1 -j {to_machine}",
        f"DOCKER-USER -i nap1a -j {through}",
        f"DOCKER-USER -i nap1 -j {through}",
    ]


def test_containers_reach_what_the_operator_opens_and_apps_published_on_an_address_of_the_machine() -> None:
    local = LocalSettings(host=HostAddress("192.0.2.10"), open_ports=Ports("5432 6379"))
    found = written(Settings(local=local))
    opened = next(i for i, rule in enumerate(found) if rule.endswith("-p tcp --dport 5432 -j RETURN"))
    closed = next(i for i, rule in enumerate(found) if rule.endswith("-p tcp --dport 15000 -j REJECT"))
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    published = next(i for i, rule in enumerate(found) if f"-d 192.0.2.10/32 -p tcp --dport {':'.join(given)}" in rule)
    assert opened < closed < published
    assert any(rule.endswith("--dport 6379 -j RETURN") for rule in found)
