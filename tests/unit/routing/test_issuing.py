"""Turns of names at the authorities that give certificates."""

import itertools
from pathlib import Path

from nap_receiver.core.paths import State
from nap_receiver.core.settings import Address, OptionalAddress, RouterSettings
from nap_receiver.routing.caddy_configuration import Site
from nap_receiver.routing.front import Certificate, asked_for, whole
from nap_receiver.routing.issuing import Turns, certified, owners_of

MINUTE, HOUR = 60.0, 3600.0
HOSTILE = {f"n{number}.hostile.com": "hostile.com" for number in range(1000)}
OTHERS = {"www.shop.com": "shop.com", "blog.apps.site.com": "blog"}


def test_a_thousand_names_of_one_owner_keep_no_other_waiting() -> None:
    turns = Turns(60)
    waiting = turns.waiting(HOSTILE, (), 0)
    assert len(waiting) == 997, "three at a time"
    assert not turns.waiting(HOSTILE | OTHERS, (), 1) & OTHERS.keys()


def test_a_thousand_names_of_one_owner_leave_others_their_share_of_the_hour() -> None:
    turns, asked = Turns(60), set[str]()
    for second in range(0, 3600, 10):
        asked |= HOSTILE.keys() - turns.waiting(HOSTILE, (), second)
    assert len(asked) == 15
    assert not turns.waiting(HOSTILE | OTHERS, (), 3599) & OTHERS.keys()


def test_names_of_many_owners_take_turns_ten_at_a_time() -> None:
    turns, names = Turns(60), {f"www.n{number}.com": f"n{number}.com" for number in range(24)}
    seen = set[str]()
    for turn in range(3):
        asked = names.keys() - turns.waiting(names, (), turn * 100.0)
        assert len(asked) == (10, 10, 4)[turn]
        assert not asked & seen
        seen |= asked
    assert seen == names.keys()


def test_a_name_that_has_its_certificate_makes_room_at_once() -> None:
    turns = Turns(60)
    first = HOSTILE.keys() - turns.waiting(HOSTILE, (), 0)
    second = HOSTILE.keys() - turns.waiting(HOSTILE, first, 1) - first
    assert (len(first), len(second)) == (3, 3)
    assert not turns.waiting(HOSTILE, HOSTILE.keys(), 2)
    assert not turns.asked


def test_a_name_that_gets_none_rests_longer_each_time() -> None:
    turns, names, asked, before = Turns(60), {"www.shop.com": "shop.com"}, list[int](), False
    for minute in range(48 * 60):
        now = not turns.waiting(names, (), minute * MINUTE)
        if now and not before:
            asked.append(minute)
        before = now
    assert [after - at for at, after in itertools.pairwise(asked)] == [12, 62, 362, 1442]
    assert not turns.waiting({}, (), 50 * HOUR)
    assert not turns.waiting(names, (), 50 * HOUR + 1), "it was taken away and added again"


def test_no_more_turns_begin_in_an_hour_than_the_operator_says() -> None:
    turns, had = Turns(20), set[str]()
    names = {f"www.n{number}.com": f"n{number}.com" for number in range(100)}
    for second in range(0, 7200, 10):
        had |= names.keys() - turns.waiting(names, had, second)
        assert len(had) <= (20 if second < HOUR else 40)
    assert len(had) == 40


def test_what_comes_and_goes_is_not_always_first() -> None:
    turns = Turns(60)
    for second in range(10):
        turns.waiting({f"n{second}.hostile.com": "hostile.com"}, (), second)
        turns.waiting({}, (), second + 0.5)
    names = HOSTILE | {f"www.n{number}.com": f"n{number}.com" for number in range(10)}
    assert turns.waiting(names, (), 20) == HOSTILE.keys()


def test_for_which_names_an_authority_is_asked(tmp_path: Path) -> None:
    router = RouterSettings(http=Address("127.0.0.1:80"), https=OptionalAddress("127.0.0.1:443"))
    sites = [
        Site("shop", ("shop.apps.com", "www.shop.com", "*.shop.com", "shop.test", "brought.com"), ()),
        Site("blog", ("blog.localhost",), ()),
    ]
    brought = [Certificate("shop", ["brought.com"], "chain", "")]
    names = asked_for(sites, brought)
    assert names == [("shop.apps.com", "shop"), ("www.shop.com", "shop")]
    assert owners_of(names, "apps.com") == {"shop.apps.com": "shop", "www.shop.com": "shop.com"}
    told = whole(sites, brought, State(tmp_path), router, {"www.shop.com"})["apps"]
    assert told["http"]["servers"]["web"]["automatic_https"]["skip_certificates"] == [
        *("*.shop.com", "brought.com", "www.shop.com")
    ]
    assert told["tls"]["automation"]["policies"] == [
        {"subjects": ["blog.localhost", "shop.test"], "issuers": [{"module": "internal"}]}
    ]


def test_which_names_have_a_certificate(tmp_path: Path) -> None:
    assert certified(tmp_path) == set()
    for name in ("www.shop.com", "half.com"):
        folder = tmp_path / "certificates" / "acme-v02.api.letsencrypt.org-directory" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.key").touch()
    (tmp_path / "certificates/acme-v02.api.letsencrypt.org-directory/www.shop.com/www.shop.com.crt").touch()
    assert certified(tmp_path) == {"www.shop.com"}
