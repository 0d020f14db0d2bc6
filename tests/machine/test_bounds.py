"""What one app has is in no other app's way, and what one user has is bounded."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nap_receiver.auth.access import Access, require_few_apps, set_right
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import EtcdSettings, LimitSettings, RouterSettings
from nap_receiver.model.release import Release
from nap_receiver.routing.router import Known, _all
from nap_receiver.store.etcd import Etcd
from nap_receiver.store.ledger import Ledger
from tests.machine.test_router import own, served
from tests.nap import HTTPD, Nap, Pushed, Pusher, fill

LIMITS = LimitSettings()


@pytest.fixture
def ledger(etcd: Etcd, places: EtcdSettings, request: pytest.FixtureRequest) -> Ledger:
    """That of an app of the test's own."""
    return Ledger(etcd, places, request.node.name.replace("_", "-"))


def draft(ledger: Ledger, config: int = 0) -> Release:
    about: dict[str, Any] = {"commit": "c", "image": "i", "ports": ["80/tcp"], "has_healthcheck": False}
    return Release(app=ledger.app, formation={"web": 1}, by="", why="", config=config, **about)


def configurations(ledger: Ledger) -> list[int]:
    return ledger._numbers_below("configs")


def test_a_configuration_stays_as_long_as_a_release_names_it(ledger: Ledger) -> None:
    ledger.set_first_config(ledger.write_configuration({"A": "first"}))
    releases = [ledger.write(draft(ledger, ledger.write_configuration({"A": str(i)})), i) for i in range(1, 5)]
    assert configurations(ledger) == [1, 2, 3, 4, 5]
    ledger.forget(releases[:2])
    assert configurations(ledger) == [1, 4, 5], "the first release's stays, and those of what is left"
    assert [release.number for release, _ in ledger.history()] == [3, 4]
    assert ledger.next_number([]) == 5
    ledger.forget(releases[2:])
    assert ledger.write_configuration({"A": "again"}) == 2, "the numbers of what nothing names are free"


def test_no_number_of_a_configuration_is_used_while_a_release_names_it(ledger: Ledger) -> None:
    release = ledger.write(draft(ledger, ledger.write_configuration({"A": "1"})), 1)
    ledger.etcd.delete(ledger.places.config_of(ledger.app, release.config))
    assert ledger.write_configuration({"A": "2"}) == release.config + 1


def test_configurations_that_nothing_names_do_not_add_up(ledger: Ledger) -> None:
    for i in range(5):
        ledger.set_first_config(ledger.write_configuration({"A": str(i)}))
        ledger.write_configuration({"A": "of a change that was refused"})
    assert len(configurations(ledger)) == 2
    assert ledger.configuration(ledger.first_config()) == {"A": "4"}


def test_an_app_has_so_many_users_and_a_user_so_many_apps(etcd: Etcd, places: EtcdSettings) -> None:
    limits = msgspec.structs.replace(LIMITS, users=2, apps=2)
    key = places.access_of("bounds-users")
    etcd.put(key, asdict(Access("bounds-users", {"ann": "owner", "bob": "read"})))
    assert set_right(etcd, key, "bob", "owner", limits).owners == ["ann", "bob"]
    with pytest.raises(NapError) as error:
        set_right(etcd, key, "eve", "read", limits)
    assert str(error.value) == "bounds-users would have 3 users; the limit is 2 (limits.users)"
    for app in ("bounds-one", "bounds-two"):
        etcd.put(places.access_of(app), asdict(Access(app, {"bob": "owner", "ann": "owner"})))
    require_few_apps(etcd, places.access, "bob", limits)
    with pytest.raises(NapError) as error:
        set_right(etcd, key, "ann", None, limits)
    assert str(error.value) == "bob would have 3 apps; the limit is 2 (limits.apps)", "it would count for bob"
    with pytest.raises(NapError):
        require_few_apps(etcd, places.access, "bob", limits, another=1)
    etcd.delete_below(f"{places.access}/")


FLOODED = "bounds-flooded"
"""An app that has 5 MB below each prefix."""


@pytest.fixture
def flooded(nap: Nap, tmp_path: Path) -> Iterator[Pusher]:
    """Its owner. What is written is nothing that nap would write."""
    (tmp_path / "flooded").mkdir()
    pusher = Pusher(nap, FLOODED, tmp_path / "flooded")
    pusher.commit(Dockerfile=HTTPD)
    assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    places, value = nap.settings.etcd, {"x": "x" * 100_000, "app": FLOODED}
    root = places.root_of(FLOODED)
    below = [f"{root}/{what}" for what in ("releases", "configs", "outcomes", "up", "exits", "elsewhere")]
    below += [places.announcements_of(FLOODED).rstrip("/"), places.access, places.domains, places.certificates]
    with closing(nap.etcd()) as etcd:
        for prefix in below:
            fill(etcd, prefix, 50, value if prefix != places.access else asdict(Access("x" * 100_000)))
        fill(etcd, f"{root}/many", 5000, 1)
        try:
            yield pusher
        finally:
            for prefix in below:
                etcd.delete_below(f"{prefix}/0")


def test_what_one_app_has_is_in_no_others_way(nap: Nap, pusher: Pusher, live: Pushed, flooded: Pusher) -> None:
    with closing(nap.etcd()) as etcd:
        known = Known(nap.settings.etcd, RouterSettings())
        known.begin(_all(etcd, known.prefixes))
    assert pusher.app in {site.app for site in known.sites()}
    done = pusher.ssh_command("config:set", pusher.app, "A=1")
    assert done.returncode == 0, done.stdout + done.stderr
    served(nap, own(pusher), 200, "one")
    domain = f"{pusher.app}.example.org"
    nap.run("domains:add", pusher.app, domain)
    assert domain in pusher.ssh_command("domains", pusher.app).stdout
    assert pusher.app in pusher.ssh_command("apps").stdout
    found = json.loads(nap.run("doctor", "--json", ok=False).stdout)
    assert not [each for each in found if each["state"] == "unseen" or "nap itself" in str(each)]
    assert [each for each in found if f"{FLOODED}/releases/" in str(each)], "what is no release is told"

    gone = flooded.ssh_command("apps:destroy", FLOODED, "--confirm", FLOODED)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert f"=====> {FLOODED} is destroyed" in gone.stdout
    assert not nap.keys(f"/nap/apps/{FLOODED}/")
    assert not nap.keys(f"/nap/access/{FLOODED}")


def test_who_has_as_many_apps_as_a_user_may_have_creates_no_other(nap: Nap, pusher: Pusher) -> None:
    access = asdict(Access("bounds-quota", {pusher.user: "owner"}))
    below = f"{nap.settings.etcd.access}/bounds-quota"
    with closing(nap.etcd()) as etcd:
        fill(etcd, below, LIMITS.apps, access)
        pusher.commit(Dockerfile=HTTPD)
        refusal = pusher.push().trouble
        assert refusal[0] == f"{pusher.user} would have 101 apps; the limit is 100 (limits.apps)"
        created = pusher.ssh_command("apps:create", pusher.app)
        assert (created.returncode, created.stderr.splitlines()[0]) == (1, f" !     {refusal[0]}")
        assert not pusher.bare.exists()
        assert not etcd.get(nap.settings.etcd.access_of(pusher.app))
        etcd.delete(f"{below}/00000000")
        assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
        etcd.delete_below(f"{below}/")


def test_a_push_or_a_command_that_asks_for_too_much_changes_nothing(nap: Nap, pusher: Pusher) -> None:
    processes = [f"p{i}" for i in range(LIMITS.process_types + 1)]
    pusher.commit(Dockerfile=HTTPD, Procfile="".join(f"{each}: sleep 9\n" for each in processes))
    many = pusher.push()
    assert (many.status, many.trouble[0]) == (
        1,
        f"{pusher.app} would have 51 process types; the limit is 50 (limits.process_types)",
    )
    pusher.commit(
        Procfile="".join(f"{each}: sleep 9\n" for each in processes[:3]),
        app_json=json.dumps({"formation": {each: {"quantity": 100} for each in processes[:3]}}),
    )
    told = pusher.push().trouble
    assert told[0] == f"{pusher.app} would have 300 instances; the limit is 200 (limits.instances)"
    nap.run("config:set", pusher.app, f"A={'a' * 60_000}", f"B={'b' * 60_000}")
    refusal = pusher.ssh_command("config:set", pusher.app, f"C={'c' * 20_000}")
    assert refusal.returncode == 1
    assert f"{pusher.app} would have variables of 140003 bytes in all; the limit is 131072" in refusal.stdout
    assert json.loads(nap.run("config", pusher.app, "--json").stdout)[-1]["name"] == "B"
    assert not nap.keys(f"/nap/apps/{pusher.app}/releases/")
