"""Domains: names that owners bring, each one app's, and what becomes of them."""

import http.client
import json
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import DomainName, EtcdSettings, RouterSettings
from nap_receiver.routing.caddy_configuration import Site, behind, route
from nap_receiver.routing.domains import _in_line, add_domains, checked_domain, domains_of, normal, token_of
from nap_receiver.routing.router import Known
from nap_receiver.store.etcd import Entry, connect
from tests.machine.test_router import ask, own, served
from tests.nap import COMMAND, Nap, Pushed, Pusher, eventually

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
        ("*", "a * stands for all of the first label, and for no other"),
        ("a.*.b", "a * stands for all of the first label, and for no other"),
        ("*.*.example.org", "a * stands for all of the first label, and for no other"),
        ("w*.example.org", "a * stands for all of the first label, and for no other"),
        ("org", "it has one label, and needs two"),
        ("*.org", "it has one label, and needs two besides the *"),
        (f"{'a' * 64}.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("a_b.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("-a.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("www.\x1b[2J.example", "a label has up to 63 letters, digits and, between them, dashes"),
        ("www.example\n", "a label has up to 63 letters, digits and, between them, dashes"),
        (f"{'a.' * 126}ab", "it has more than 253 characters"),
        (f"*.{'a.' * 125}ab", "it has more than 253 characters"),
        ("ü" * 5000, "it has more than 253 characters"),
        ("☃.example", "it has letters, or an order of them, that domains do not have"),
        ("xn--a.example", "it has letters, or an order of them, that domains do not have"),
    ],
)
def test_what_is_no_domain_is_refused(written: str, fault: str) -> None:
    with pytest.raises(NapError) as refused:
        checked_domain(written, ROUTER)
    assert str(refused.value) == f"{written[:80]!a} is no domain: {fault}"
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name", ["apps.example.org", "*.apps.example.org", "Shop.apps.example.org", "a.b.apps.example.org"]
)
def test_names_below_the_routers_are_its_own_to_give(name: str) -> None:
    with pytest.raises(NapError, match=f"^{re.escape(name.lower())} is nap's own to give$"):
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
        with pytest.raises(NapError, match=r" is not one owner's: anybody can register names below "):
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


def listed(nap: Nap, app: str) -> list[str]:
    """The domains that were added to an app."""
    rows = json.loads(nap.run("domains", app, "--json").stdout)
    assert rows[0] == {"domain": f"{app}.localhost", "origin": "own"}
    assert {row["origin"] for row in rows[1:]} <= {"added"}
    return [row["domain"] for row in rows[1:]]


def another(pusher: Pusher, folder: Path) -> Pusher:
    """Someone else, who owns an app that was never deployed."""
    folder.mkdir()
    other = Pusher(pusher.nap, f"{pusher.app}-2", folder)
    other.commit(index_html="kept")
    other.git("push", "--quiet", "-o", "nap.deploy=no", "nap", "HEAD:master")
    return other


@pytest.mark.machine
def test_an_app_answers_to_the_domains_that_its_owner_adds(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    app, www, wild = pusher.app, f"www.{pusher.app}.test", f"*.{pusher.app}.test"
    assert ask(nap, www)[0] == 404
    added = pusher.ssh_command("domains:add", app, www.upper() + ".", f"'{wild}'")
    assert (added.returncode, added.stdout) == (0, f"{app} is reachable at {www}, {wild}\n")
    served(nap, www, 200, "one")
    served(nap, www.upper(), 200, "one")
    served(nap, f"anything.{app}.test", 200, "one")
    assert ask(nap, f"a.b.{app}.test")[0] == 404
    assert ask(nap, f"{app}.test")[0] == 404
    assert listed(nap, app) == [wild, www]
    assert nap.run("domains:add", app, www).stdout == f"{app} is reachable at {www}\n", "again"

    absent = pusher.ssh_command("domains:remove", app, www, "not.example.test")
    assert (absent.returncode, absent.stderr.splitlines()[0]) == (1, f" !     {app} has no domain not.example.test")
    assert listed(nap, app) == [wild, www], "all or none"
    assert pusher.ssh_command("domains:remove", app, f"'{wild}'").stdout == f"{app} is no longer reachable at {wild}\n"
    served(nap, f"anything.{app}.test", 404)
    assert ask(nap, www)[0] == 200
    assert nap.run("domains:remove", app, www).returncode == 0
    served(nap, www, 404)
    assert ask(nap, own(pusher))[0] == 200


@pytest.mark.machine
def test_a_domain_is_one_apps(nap: Nap, pusher: Pusher, live: Pushed, tmp_path: Path) -> None:
    other, www = another(pusher, tmp_path / "other"), f"www.{pusher.app}.test"
    assert pusher.ssh_command("domains:add", pusher.app, f"'*.{pusher.app}.test'").returncode == 0
    served(nap, www, 200, "one")
    mine, nothing = f"*.{pusher.app}.test", "Its owner can give it up"
    for name, where in ((www, "below"), (f"a.{www}", "below"), (f"'*.{www}'", "below"), (mine[2:], "above")):
        refused = other.ssh_command("domains:add", other.app, name)
        assert (refused.returncode, refused.stdout) == (1, "")
        first, second = refused.stderr.splitlines()
        assert first == f" !     {name.strip(chr(39))} is {where} {mine}, a domain of another app"
        assert second.startswith(f" !     {nothing}")
    # Who made the other one an owner does not own the other's.
    assert other.ssh_command("access:add", other.app, pusher.user, "owner").returncode == 0
    assert other.ssh_command("domains:add", other.app, www).returncode == 1
    assert pusher.ssh_command("domains:add", other.app, www).returncode == 0, "the same owner's apps may share a line"
    served(nap, www, 503, f"{other.app}: no instance")
    served(nap, f"other.{pusher.app}.test", 200, "one")

    refused = pusher.ssh_command("domains:add", pusher.app, f"new.{pusher.app}.test", www)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        f" !     {www} is another app's",
        " !     Its owner can give it up: domains:remove",
    ]
    assert listed(nap, pusher.app) == [f"*.{pusher.app}.test"], "all or none"
    foreign = pusher.ssh_command("domains:remove", pusher.app, www)
    assert foreign.stderr.splitlines()[0] == f" !     {pusher.app} has no domain {www}"
    assert nap.run("domains:add", other.app, f"b.{pusher.app}.test").returncode == 0, "the operator may"


@pytest.mark.machine
def test_an_app_has_no_more_domains_than_the_operator_says(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    many = nap.run("domains:add", pusher.app, *(f"n{n}.{pusher.app}.test" for n in range(41)), ok=False)
    assert many.stderr == " !     those are 41 domains, and one command takes 40\n"
    nap.run("domains:add", pusher.app, *(f"n{n}.{pusher.app}.test" for n in range(40)))
    refused = pusher.ssh_command("domains:add", pusher.app, *(f"m{n}.{pusher.app}.test" for n in range(11)))
    assert refused.stderr.splitlines()[0] == (
        f" !     {pusher.app} has 40 domains and may have 50 (router.max_domains)"
    )
    assert len(listed(nap, pusher.app)) == 40
    again = (f"n{n}.{pusher.app}.test" for n in range(11))
    assert pusher.ssh_command("domains:add", pusher.app, *again).returncode == 0, "which it has"


@pytest.mark.machine
def test_a_public_domain_takes_a_proof_that_its_owner_can_give(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    name = f"www.{pusher.app}.invalid.com"
    token = re.compile(r'_nap\.\S+ TXT "nap=([0-9a-f]{32})"')
    with connect(nap.settings.etcd) as etcd:
        made = token_of(etcd, nap.settings.etcd, pusher.app)
        assert token_of(etcd, nap.settings.etcd, pusher.app) == made
    refused = pusher.ssh_command("domains:add", pusher.app, name)
    assert (refused.returncode, refused.stdout) == (1, "")
    first, second = refused.stderr.splitlines()
    found = token.search(second)
    # On a network without a name server, the DNS does not answer.
    assert first.startswith(" !     the DNS does not answer for ") or (found and found[1] == made)
    assert nap.run("domains:add", pusher.app, name).returncode == 0, "the operator may"
    assert pusher.ssh_command("domains:add", pusher.app, name).returncode == 0, "which it has"
    new = f"{pusher.app}-new"
    assert pusher.ssh_command("apps:rename", pusher.app, new).returncode == 0
    assert nap.keys(nap.settings.etcd.proof_of(new)) == {nap.settings.etcd.proof_of(new): {"token": made}}
    assert pusher.ssh_command("apps:destroy", new, "--confirm", new).returncode == 0
    assert not nap.keys(nap.settings.etcd.proof_of(new))


@pytest.mark.machine
def test_two_owners_who_want_names_of_one_line_at_once(nap: Nap, pusher: Pusher) -> None:
    places, apps = nap.settings.etcd, [f"{pusher.app}-{letter}" for letter in "abcd"]
    together = threading.Barrier(len(apps))
    won: list[str] = []

    def add(app: str, name: str) -> None:
        with connect(places) as etcd:
            together.wait()
            with suppress(NapError):
                add_domains(etcd, places, app, [name], 50, app)
                won.append(app)

    with connect(places) as etcd:
        for app in apps:
            etcd.put(places.access_of(app), {"repository": "", "users": {app: "owner"}})
        for turn in range(10):
            base = f"{turn}.{pusher.app}.test"
            names = [base, f"*.{base}", f"a.{base}", f"b.a.{base}"]
            threads = [threading.Thread(target=add, args=each) for each in zip(apps, names, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == turn + 1, "one of them has its name"
        for app in apps:
            etcd.write({places.access_of(app): None})
            etcd.write({f"{places.domains}/{name}": None for name in domains_of(etcd, places, app)})


@pytest.mark.machine
def test_only_the_owner_changes_domains(nap: Nap, pusher: Pusher, live: Pushed, tmp_path: Path) -> None:
    other, www = another(pusher, tmp_path / "other"), f"www.{pusher.app}.test"
    nap.run("domains:add", pusher.app, www)
    assert other.ssh_command("domains", pusher.app).returncode == 1
    nap.run("access:add", pusher.app, other.user, "push")
    assert www in other.ssh_command("domains", pusher.app).stdout
    assert other.ssh_command("open", pusher.app).stdout == f"http://{own(pusher)}:{nap.settings.router.http.port}\n"
    for words in (["domains:add", pusher.app, f"2.{www}"], ["domains:remove", pusher.app, www]):
        refused = other.ssh_command(*words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.splitlines()[0] == f" !     {other.user} may not administer {pusher.app}"
    assert listed(nap, pusher.app) == [www]


@pytest.mark.machine
def test_what_others_write_beside_domains_stops_nobody(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    places, www = nap.settings.etcd, f"www.{pusher.app}.test"
    unfit = [f"{places.domains}/{name}.{pusher.app}.test" for name in ("bad", "worse")]
    etcd = nap.etcd()
    etcd._client.put(unfit[0], "ghostapp")
    etcd.put(unfit[1], {"app": 1})
    nap.run("domains:add", pusher.app, www)
    assert listed(nap, pusher.app) == [www]
    assert nap.run("logs", pusher.app, "-p", "router").returncode == 0
    nap.run("domains:remove", pusher.app, www)
    assert nap.run("domains:remove", pusher.app, f"bad.{pusher.app}.test", ok=False).returncode == 1
    nap.run("domains:add", pusher.app, f"bad.{pusher.app}.test")
    assert listed(nap, pusher.app) == [f"bad.{pusher.app}.test"], "it was nobody's"
    etcd.delete(unfit[1])
    etcd.close()


@pytest.mark.machine
def test_two_who_want_the_same_domains_at_once(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    apps = [f"{pusher.app}-{letter}" for letter in "abcd"]
    places = nap.settings.etcd
    together = threading.Barrier(len(apps))
    won: list[str] = []

    def add(app: str, names: list[str]) -> None:
        with connect(places) as etcd:
            together.wait()
            try:
                add_domains(etcd, places, app, names, 50, "someone")
                won.append(app)
            except NapError as error:
                assert str(error).endswith("is another app's")

    with connect(places) as etcd:
        for app in apps:
            etcd.put(places.access_of(app), {"repository": "", "users": {}})
        for turn in range(5):
            names = [f"n{n}.{turn}.{pusher.app}.test" for n in range(10)]
            # Each in an order of its own.
            threads = [threading.Thread(target=add, args=(app, names[at:] + names[:at])) for at, app in enumerate(apps)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            had = {app: [name for name in domains_of(etcd, places, app) if f".{turn}." in name] for app in apps}
            assert sorted(map(len, had.values())) == [0, 0, 0, 10], "one has all of them"
            assert len(had[won[turn]]) == 10
            assert len(won) == turn + 1
        etcd.delete(places.access_of(won[0]))
        heir = next(app for app in apps if app != won[0])
        add_domains(etcd, places, heir, [f"n0.0.{pusher.app}.test"], 50, "someone")
        with pytest.raises(NapError, match=f"^app {won[0]} does not exist$"):
            add_domains(etcd, places, won[0], [f"new.{pusher.app}.test"], 50, "someone")
        for app in apps:
            etcd.write({places.access_of(app): None})
            etcd.write({f"{places.domains}/{name}": None for name in domains_of(etcd, places, app)})


@contextmanager
def visited(nap: Nap, name: str) -> Iterator[set[int | str]]:
    """For the block, the statuses that one visitor of `name` got who asks all the time, and what else came of it."""
    over, found = threading.Event(), set[int | str]()

    def visit() -> None:
        while not over.wait(0.02):
            try:
                found.add(ask(nap, name)[0])
            except (OSError, http.client.HTTPException) as error:
                found.add(f"{time.strftime('%X')} {error!r}")

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.machine
def test_domains_stay_with_a_renamed_app_and_go_with_a_destroyed_one(
    nap: Nap, pusher: Pusher, live: Pushed, tmp_path: Path
) -> None:
    other, www, new = another(pusher, tmp_path / "other"), f"www.{pusher.app}.test", f"{pusher.app}-new"
    nap.run("domains:add", pusher.app, www)
    etcd = nap.etcd()
    etcd.put(nap.settings.etcd.certificate_of(pusher.app), {"names": [www], "chain": "", "key": ""})
    served(nap, www, 200, "one")
    with visited(nap, www) as found:
        assert pusher.ssh_command("apps:rename", pusher.app, new).returncode == 0
        served(nap, f"{new}.localhost", 200, "one")
    assert found == {200}
    served(nap, own(pusher), 404)
    assert listed(nap, new) == [www]
    assert list(nap.keys("/nap/certificates/")) == [f"/nap/certificates/{new}"]
    assert other.ssh_command("domains:add", other.app, www).returncode == 1
    assert pusher.ssh_command("apps:destroy", new, "--confirm", new).returncode == 0
    assert not nap.keys(f"/nap/domains/{www}")
    assert not nap.keys("/nap/certificates/")
    served(nap, www, 404)
    assert other.ssh_command("domains:add", other.app, www).returncode == 0
    etcd.close()


@pytest.mark.machine
def test_open_shows_it_on_a_desktop_only(nap: Nap, pusher: Pusher, tmp_path: Path) -> None:
    pusher.commit(index_html="kept")
    pusher.git("push", "--quiet", "-o", "nap.deploy=no", "nap", "HEAD:master")
    url = f"http://{own(pusher)}:{nap.settings.router.http.port}"
    shown, browser = tmp_path / "shown", tmp_path / "bin" / "xdg-open"
    browser.parent.mkdir()
    browser.write_text(f'#!/bin/sh\necho "$1" >>{shown}\n')
    browser.chmod(0o755)
    plain = {name: value for name, value in nap.environment.items() if not name.endswith("DISPLAY")}
    plain["PATH"] = f"{browser.parent}:{plain['PATH']}"

    def opened(environment: dict[str, str], terminal: bool) -> str:
        ours, theirs = pty.openpty() if terminal else os.pipe()
        subprocess.run([str(COMMAND), "open", pusher.app], env=environment, stdout=theirs, check=True, timeout=60)
        said = os.read(ours, 1000).decode().strip()
        os.close(ours)
        os.close(theirs)
        return said

    assert opened(plain, terminal=True) == url
    assert opened(plain | {"DISPLAY": ":0"}, terminal=False) == url
    assert opened(plain | {"WAYLAND_DISPLAY": "wayland-0"}, terminal=True) == url
    eventually(shown.exists, 5, "a browser was started")
    assert shown.read_text() == f"{url}\n", "once"
