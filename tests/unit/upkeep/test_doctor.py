"""How the doctor makes its checks, and repairs what they find."""

from collections.abc import Iterator

import pytest

from nap_receiver.core.deploy_log import logs
from nap_receiver.core.errors import NapError
from nap_receiver.deploy.rollout import Deploy
from nap_receiver.upkeep import doctor
from nap_receiver.upkeep.finding import Finding, ok, problem
from nap_receiver.upkeep.inventory import Inventory
from tests.unit.upkeep.patient import Patient


def only(monkeypatch: pytest.MonkeyPatch, *checks: doctor.DoctorCheck) -> None:
    """Have the doctor make these checks and no others."""
    monkeypatch.setattr(doctor, "CHECKS", {check.__name__: check for check in checks})


def test_a_healthy_nap_has_one_good_finding_for_each_check(patient: Patient) -> None:
    assert [(each.check, each.state) for each in patient.examine()] == [
        ("programs", "ok"),
        ("versions", "ok"),
        ("clocks", "ok"),
        ("announcements", "ok"),
        ("releases", "ok"),
        ("instances", "ok"),
        ("units", "ok"),
        ("containers", "ok"),
        ("images", "ok"),
        ("volumes", "ok"),
        ("logs", "ok"),
        ("privacy", "ok"),
        ("firewall", "ok"),
        ("disk", "ok"),
    ]


def test_a_healthy_cluster_has_no_problem(cluster: Patient) -> None:
    assert cluster.wrong() == []
    assert cluster.wrong(fix=True) == []


def test_a_check_that_fails_does_not_keep_others_from_being_made(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(there: Inventory) -> Iterator[Finding]:
        yield ok("seen before it failed")
        raise NapError("etcd does not answer", advice="Start it.")

    def broken(there: Inventory) -> Iterator[Finding]:
        raise KeyError("x")

    def well(there: Inventory) -> Iterator[Finding]:
        yield ok("all of it")

    only(monkeypatch, away, broken, well)
    assert [(each.check, each.state, each.about, each.advice) for each in patient.examine()] == [
        ("away", "ok", "seen before it failed", ""),
        ("away", "failed", "not checked: etcd does not answer", "Start it."),
        ("broken", "failed", "not checked, because nap itself failed: KeyError: 'x'", ""),
        ("well", "ok", "all of it", ""),
    ]


def test_a_problem_is_told_only_if_it_is_seen_twice(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([("passing", "lasting"), ("lasting", "new")])

    def changing(there: Inventory) -> Iterator[Finding]:
        for subject in next(looks):
            yield problem(subject, f"{subject} is wrong", "Wait.")

    only(monkeypatch, changing)
    assert [each.about for each in patient.examine()] == ["lasting is wrong"]


def test_an_etcd_that_does_not_answer_fails_the_checks_that_need_it_alone(patient: Patient) -> None:
    patient.etcd_answers = False
    failed = {each.check: each.about for each in patient.wrong()}
    assert list(failed) == ["announcements", "releases", "instances", "units", "containers", "images", "logs"]
    assert set(failed.values()) == {"not checked: etcd at 127.0.0.1:12379 does not answer"}


def test_an_engine_that_does_not_answer_fails_the_checks_that_need_it(patient: Patient) -> None:
    patient.engine.is_away = True
    failed = {each.check: each.about for each in patient.wrong()}
    assert {"announcements", "containers", "images", "volumes"} <= set(failed)
    assert failed["containers"] == "not checked: the engine cannot list its containers: no answer"


def test_an_app_that_somebody_changes_is_left_alone(patient: Patient) -> None:
    patient.scheduler.started.pop("shop.v1.web.1")
    patient.begin_deploy()
    found = {each.check: each for each in patient.examine(fix=True)}
    assert {each.state for each in found.values()} == {"ok"}
    assert found["instances"].about.endswith("; not checked during a change: shop")
    assert patient.scheduler.calls == []


def wrong_app(there: Inventory) -> Iterator[Finding]:
    """A check that finds something wrong with the app until it is repaired."""

    def repair(deploy: Deploy) -> str:
        deploy.etcd.put("/repaired", deploy.lock.turn.who)
        return "It is repaired."

    if there.etcd.get("/repaired") is None:
        yield problem("app", "shop is wrong", "nap doctor --fix repairs it.", app="shop", repair=repair)


def test_an_app_is_repaired_under_its_lock_and_that_is_logged(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, wrong_app)
    before = len(logs(patient.state, "shop"))
    assert patient.is_told_and_repaired("wrong_app", "shop is wrong") == "It is repaired."
    entry = patient.etcd.get("/repaired")
    assert entry and entry.value == "ann"
    log = logs(patient.state, "shop")[before]
    assert log.stem.endswith("-doctor")
    assert patient.etcd.get(f"{patient.ledger.root}/lock") is None


def test_each_app_is_repaired_under_its_own_lock(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[str] = []

    def repair(*deploy: Deploy) -> str:
        locks.extend(each.lock.key for each in deploy)
        return "It is repaired."

    def wrong(there: Inventory) -> Iterator[Finding]:
        for app in ("shop", "", "blog"):
            yield problem(f"of {app}", f"{app} is wrong", "nap doctor --fix repairs it.", app=app, repair=repair)

    only(monkeypatch, wrong)
    assert [(each.state, each.about) for each in patient.wrong(fix=True)] == [
        ("repaired", "shop is wrong"),
        ("repaired", " is wrong"),
        ("repaired", "blog is wrong"),
    ]
    assert locks == ["/nap/apps/shop/lock", "/nap/apps/blog/lock"]


def test_an_app_whose_lock_is_held_stays_as_it_is(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, wrong_app)
    patient.begin_deploy()
    (finding,) = patient.wrong(fix=True)
    assert (finding.state, finding.about) == ("failed", "shop is wrong")
    assert finding.advice.startswith("Not repaired: ")
    assert patient.etcd.get("/repaired") is None


def test_a_problem_that_is_gone_once_the_lock_is_held_needs_no_repair(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repair(deploy: Deploy) -> str:
        raise AssertionError("it was gone")

    def passing(there: Inventory) -> Iterator[Finding]:
        if not there.app:
            yield problem("app", "shop is wrong", "nap doctor --fix repairs it.", app="shop", repair=repair)

    only(monkeypatch, passing)
    (finding,) = patient.wrong(fix=True)
    assert (finding.state, finding.advice) == ("repaired", "The problem was gone at the second check.")


@pytest.mark.parametrize("app", ["", "shop"])
def test_a_repair_that_fails_says_why_and_what_to_do(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, app: str
) -> None:
    def repair(*deploy: Deploy) -> str:
        raise NapError("the disk is full", advice="Make room.")

    def wrong(there: Inventory) -> Iterator[Finding]:
        yield problem("it", "it is wrong", "nap doctor --fix repairs it.", app=app, repair=repair)

    only(monkeypatch, wrong)
    (finding,) = patient.wrong(fix=True)
    assert (finding.state, finding.advice) == ("failed", "Not repaired: the disk is full. Make room.")
