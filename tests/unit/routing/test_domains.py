"""Domains: which names an app may have, and which app a name leads to."""

import re
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import DomainName, EtcdSettings, RouterSettings
from nap_receiver.routing.caddy_configuration import Site, behind, route
from nap_receiver.routing.domains import _in_line, checked_domain, normal
from nap_receiver.routing.router import Known
from nap_receiver.store.etcd import Entry

ROUTER = RouterSettings(domain=DomainName("apps.example.org"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("www.example.org", "www.example.org"),
        ("WWW.Example.ORG.", "www.example.org"),
        ("*.example.com", "*.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a--b.1.example", "a--b.1.example"),
        ("myapps.example.org", "myapps.example.org"),
        (f"{'a' * 63}.example", f"{'a' * 63}.example"),
    ],
)
def test_domains_are_written_in_one_way(written: str, name: str) -> None:
    assert checked_domain(written, ROUTER) == name


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("https://www.example.org", "it is a URL"),
        ("www.example.org/shop", "it is a URL"),
        ("www.example.org:443", "it has a port"),
        ("10.0.0.1", "it is an address"),
        ("[::1]", "it is an address"),
        ("::1", "it is an address"),
        ("0x7f.1", "it is an address"),
        ("", "one of its labels is empty"),
        (".", "one of its labels is empty"),
        ("*.", "one of its labels is empty"),
        (".example.org", "one of its labels is empty"),
        ("www..example.org", "one of its labels is empty"),
        ("example.org..", "one of its labels is empty"),
        ("*", "a * can only be the whole first label"),
        ("a.*.b", "a * can only be the whole first label"),
        ("*.*.example.org", "a * can only be the whole first label"),
        ("w*.example.org", "a * can only be the whole first label"),
        ("org", "it needs at least two labels"),
        ("*.org", "it needs at least two labels after the *"),
        (f"{'a' * 64}.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("a_b.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("-a.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("www.\x1b[2J.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("www.example\n", "a label has up to 63 letters, digits and, between them, dashes"),
        (f"{'a.' * 126}ab", "it has more than 253 characters"),
        (f"*.{'a.' * 125}ab", "it has more than 253 characters"),
        ("ü" * 5000, "it has more than 253 characters"),
        ("☃.example", "it has letters, or a mix of writing directions, that domains cannot have"),
        ("xn--a.example", "it has letters, or a mix of writing directions, that domains cannot have"),
    ],
)
def test_what_is_no_domain_is_refused(written: str, fault: str) -> None:
    with pytest.raises(NapError) as refused:
        checked_domain(written, ROUTER)
    assert str(refused.value) == f"{written[:80]!a} is not a domain: {fault}"
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name", ["apps.example.org", "*.apps.example.org", "Shop.apps.example.org", "a.b.apps.example.org"]
)
def test_names_below_the_routers_are_its_own_to_give(name: str) -> None:
    with pytest.raises(NapError, match=f"^{re.escape(name.lower())} cannot be added: nap assigns the names below "):
        checked_domain(name, ROUTER)
    assert normal(name) == name.lower(), "it can be removed where it was added before"
    assert checked_domain(name, RouterSettings()) == name.lower()


@pytest.mark.parametrize("name", ["example.org", "*.example.org", "*.EXAMPLE.org"])
def test_a_name_above_the_routers_is_the_operators_to_add(name: str) -> None:
    with pytest.raises(NapError, match=r"example\.org is above apps\.example\.org, "):
        checked_domain(name, ROUTER)
    assert checked_domain(name, ROUTER, is_operator=True) == name.lower()


@pytest.mark.parametrize("name", ["co.uk", "*.co.uk", "github.io", "*.github.io", "*.s3.amazonaws.com", "公司.cn"])
def test_nobody_gets_a_name_below_which_anybody_can_register(name: str) -> None:
    for is_operator in (False, True):
        with pytest.raises(NapError, match=r" cannot be added: anybody can register names below "):
            checked_domain(name, ROUTER, is_operator=is_operator)
    below = f"shop.{name.removeprefix('*.')}"
    assert checked_domain(below, ROUTER) == normal(below)


def test_which_names_are_in_one_line() -> None:
    others = ["example.com", "*.b.example.com", "c.b.example.com", "d.example.com", "example.net"]

    def in_line(*names: str) -> set[tuple[str, str]]:
        return set(_in_line(names, others))

    assert in_line("*.d.example.com") == {("*.d.example.com", "example.com"), ("*.d.example.com", "d.example.com")}
    assert {other for _, other in in_line("b.example.com")} == set(others[:3])
    assert {other for _, other in in_line("*.example.com")} == set(others[:4])
    assert {other for _, other in in_line("x.c.b.example.com")} == set(others[:3])
    assert in_line("com", "example.org", "bexample.net", "*.xexample.com") - in_line("com") == set()
    assert in_line("notexample.com", "ample.net") == set()


def hosts(sites: list[Site]) -> list[tuple[str, str]]:
    """Each name that Caddy asks for, in its order, and where it passes on what is for it."""
    told = behind(sites, State(Path("/nap")), ROUTER)
    routes = told["apps"]["http"]["servers"]["web"]["routes"]
    found = []
    while routes:
        each, *routes = routes
        handler = each["handle"][0]
        routes = [*handler.get("routes", []), *routes]
        if "upstreams" in handler:
            found += [(name, handler["upstreams"][0]["dial"]) for name in each["match"][0]["host"]]
    return found


@pytest.mark.parametrize("others", [0, 100])
def test_a_name_is_its_apps_before_a_wildcard(others: int) -> None:
    wild = Site("aaa", ("aaa.localhost", "*.example.org"), ("127.0.0.1:1",))
    exact = Site("zzz", ("zzz.localhost", "www.example.org"), ("127.0.0.1:2",))
    between = [Site(f"b{n}", (f"b{n}.localhost",), ("127.0.0.1:3",)) for n in range(others)]
    found = hosts([wild, *between, exact])
    assert found.index(("www.example.org", "127.0.0.1:2")) < found.index(("*.example.org", "127.0.0.1:1"))
    assert len(found) == others + 4


def test_the_router_knows_no_domains_of_apps_that_are_gone_nor_below_its_own() -> None:
    known = Known(EtcdSettings(), ROUTER)
    domains = {"www.example.org": "shop", "old.example.org": "gone", "blog.apps.example.org": "shop"}
    known.begin(
        {"/nap/access/shop": {}, "/nap/access/blog": {}}
        | {f"/nap/domains/{domain}": {"app": app} for domain, app in domains.items()}
    )
    assert [(site.app, list(site.names)) for site in known.sites()] == [
        ("blog", ["blog.apps.example.org"]),
        ("shop", ["shop.apps.example.org", "www.example.org"]),
    ]


def test_visitors_are_led_to_instances_of_one_protocol() -> None:
    known = Known(EtcdSettings(), ROUTER)
    known.begin({"/nap/access/shop": {}})

    def led(*protocols: str) -> tuple[list[str], str, list[str]]:
        """Where visitors are led when instances 1, 2, … speak these, what is spoken there, and what Caddy is told."""
        known.values.pop("/services/", None)
        for number, protocol in enumerate(protocols, 1):
            value = {"host": "10.0.0.9", "port": number} | ({"protocol": protocol} if protocol else {})
            known.change(Entry(f"/services/shop/v1.web.{number}", value, 1))
        (site,) = known.sites()
        versions = route(site, True, False)["handle"][0].get("transport", {}).get("versions", [])
        return [address.rpartition(":")[2] for address in site.instances], site.protocol, versions

    assert led() == ([], "http", [])
    assert led("", "http") == (["1", "2"], "http", [])
    assert led("h2c", "h2c") == (["1", "2"], "h2c", ["h2c", "2"])
    assert led("h2c", "") == (["2"], "http", [])
    assert led("h2c", "", "h2c") == (["1", "3"], "h2c", ["h2c", "2"])
    assert led("", "carrier pigeon") == (["1"], "http", []), "of no use"
