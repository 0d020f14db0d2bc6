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
from nap_receiver.routing.domains import add_domains, domains_of, token_of
from nap_receiver.store.etcd import connect
from tests.machine.test_router import ask, own, served
from tests.nap import COMMAND, Nap, Pushed, Pusher, eventually


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


def test_a_domain_is_one_apps(nap: Nap, pusher: Pusher, live: Pushed, tmp_path: Path) -> None:
    other, www = another(pusher, tmp_path / "other"), f"www.{pusher.app}.test"
    assert pusher.ssh_command("domains:add", pusher.app, f"'*.{pusher.app}.test'").returncode == 0
    served(nap, www, 200, "one")
    mine, nothing = f"*.{pusher.app}.test", "The owner of that app can remove it"
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
    served(nap, www, 503, f"{other.app} does not answer: no healthy instance")
    served(nap, f"other.{pusher.app}.test", 200, "one")

    refused = pusher.ssh_command("domains:add", pusher.app, f"new.{pusher.app}.test", www)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines() == [
        f" !     {www} belongs to another app",
        " !     The owner of that app can remove it: domains:remove",
    ]
    assert listed(nap, pusher.app) == [f"*.{pusher.app}.test"], "all or none"
    foreign = pusher.ssh_command("domains:remove", pusher.app, www)
    assert foreign.stderr.splitlines()[0] == f" !     {pusher.app} has no domain {www}"
    assert nap.run("domains:add", other.app, f"b.{pusher.app}.test").returncode == 0, "the operator may"


def test_an_app_has_no_more_domains_than_the_operator_says(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    many = nap.run("domains:add", pusher.app, *(f"n{n}.{pusher.app}.test" for n in range(41)), ok=False)
    assert many.stderr == " !     got 41 domains; one command takes at most 40\n"
    nap.run("domains:add", pusher.app, *(f"n{n}.{pusher.app}.test" for n in range(40)))
    refused = pusher.ssh_command("domains:add", pusher.app, *(f"m{n}.{pusher.app}.test" for n in range(11)))
    assert refused.stderr.splitlines()[0] == (
        f" !     {pusher.app} has 40 domains; the limit is 50 (router.max_domains)"
    )
    assert len(listed(nap, pusher.app)) == 40
    again = (f"n{n}.{pusher.app}.test" for n in range(11))
    assert pusher.ssh_command("domains:add", pusher.app, *again).returncode == 0, "which it has"


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
                assert str(error).endswith("belongs to another app")

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
