"""Proof of whose a domain is, asked of a name server of the tests' own."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.routing.ownership import is_reserved, require_proof

TOKEN = "0123456789abcdef0123456789abcdef"
PROOF = f'"nap={TOKEN}"'


@contextmanager
def name_server(records: Mapping[str, list[str]]) -> Iterator[tuple[dns.resolver.Resolver, list[str]]]:
    """What asks a name server that has these TXT records, and the names that it was asked for."""
    asked: list[str] = []
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            query, client = server.recvfrom(4096)
            if not query:
                return
            message = dns.message.from_wire(query)
            name = message.question[0].name.to_text().rstrip(".")
            asked.append(name)
            reply = dns.message.make_response(message)
            if name not in records:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            elif records[name] == ["broken"]:
                reply.set_rcode(dns.rcode.SERVFAIL)
            elif records[name] == ["silent"]:
                continue
            elif records[name]:
                reply.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "TXT", *records[name]))
            server.sendto(reply.to_wire(), client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], server.getsockname()[1]
    try:
        yield resolver, asked
    finally:
        server.sendto(b"", server.getsockname())
        thread.join()
        server.close()


def refused(resolver: dns.resolver.Resolver, *domains: str, seconds: float = 5) -> tuple[str, list[str]]:
    with pytest.raises(NapError) as error:
        require_proof("shop", domains, TOKEN, seconds, resolver)
    return str(error.value), error.value.advice


def test_a_record_beside_the_domain_proves_it_and_one_beside_the_registered_name_all_below() -> None:
    records = {
        "_nap.www.one.com": ['"v=spf1"', PROOF],
        "_nap.two.co.uk": [PROOF],
        "_nap.three.org": ['"nap=" "0123456789abcdef" "0123456789abcdef"'],
    }
    with name_server(records) as (resolver, asked):
        require_proof("shop", ["www.one.com", "*.www.one.com"], TOKEN, 5, resolver)
        assert asked == ["_nap.www.one.com"], "once"
        require_proof("shop", ["two.co.uk", "*.two.co.uk", "a.b.two.co.uk", "three.org"], TOKEN, 5, resolver)


@pytest.mark.parametrize(
    "wrong", [[], ['"nap=00000000000000000000000000000000"'], [f'"{TOKEN}"'], [f'"x nap={TOKEN}"']]
)
def test_without_that_record_the_refusal_says_which_is_missing(wrong: list[str]) -> None:
    with name_server({"_nap.www.one.com": wrong, "_nap.com": [PROOF], "www.one.com": [PROOF]}) as (resolver, asked):
        assert refused(resolver, "*.www.one.com", "www.one.com") == (
            "no DNS record proves that shop may use *.www.one.com and 1 more",
            [f"Add this record, then try again: _nap.www.one.com. TXT {PROOF}"],
        )
        assert asked == ["_nap.www.one.com", "_nap.one.com"], "and of no public suffix"


def test_a_record_of_another_owner_proves_nothing_beside_it() -> None:
    with name_server({"_nap.me.github.io": [PROOF], "_nap.github.io": [PROOF]}) as (resolver, _):
        require_proof("shop", ["www.me.github.io"], TOKEN, 5, resolver)
        assert refused(resolver, "you.github.io")[0].startswith("no DNS record proves that shop may use you.github.io")


@pytest.mark.parametrize("how", ["broken", "silent"])
def test_name_servers_that_do_not_answer_hold_nobody_up(how: str) -> None:
    names = [f"n{number}.one.com" for number in range(40)]
    with name_server({f"_nap.{name}": [how] for name in names}) as (resolver, _):
        began = time.monotonic()
        said, _advice = refused(resolver, *names, seconds=0.5)
        assert said.startswith("the DNS does not answer for _nap.n0.one.com (")
        assert time.monotonic() - began < 2


def test_a_name_too_long_for_the_record_has_none() -> None:
    long = ".".join(["a" * 61] * 4) + ".com"
    with name_server({}) as (resolver, asked):
        assert refused(resolver, long)[0].startswith("no DNS record proves that ")
        assert len(asked) == 1


@pytest.mark.parametrize("name", ["shop.test", "*.shop.test", "www.example.org", "db.internal", "nas.home.arpa"])
def test_reserved_names_are_nobodys(name: str) -> None:
    assert is_reserved(name)
    assert not is_reserved(f"{name}.com")
    assert not is_reserved("myexample.org")
