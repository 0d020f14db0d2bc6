"""Checks of apps: what etcd says of them, and what runs of them."""

import threading
from unittest.mock import Mock

import msgspec
import pytest
from docker.errors import APIError

from nap_receiver.model.release import Instance, Outcome
from nap_receiver.upkeep.inventory import Process
from tests.fakes import LEASE
from tests.unit.upkeep.patient import DRAFT, Patient

ONE_OFF = "shop.v1.run.5"


def test_what_is_well_is_counted(patient: Patient) -> None:
    assert patient.well("announcements") == "2, each with a running container"
    assert patient.well("releases") == "1 of 1 app, all finished"
    assert patient.well("instances") == "2 of current releases, all healthy"
    assert patient.well("units") == "of 2 instances, all of current releases"
    assert patient.well("containers") == "2, each with a unit or the client of a one-off command"


def test_what_is_well_on_a_cluster_is_counted(cluster: Patient) -> None:
    assert cluster.well("announcements") == "2, each with a unit"
    assert cluster.well("containers") == (
        "0 one-off commands, each with its client; instances are on the cluster's machines"
    )


# Announcements


def test_an_announcement_of_an_instance_that_does_not_run_is_taken_away(patient: Patient) -> None:
    key = f"{patient.places.announcements_of('shop')}v9.web.1"
    patient.etcd.put(key, {"host": "10.0.0.1", "port": 1, "ports": {}}, lease=LEASE)
    done = patient.is_told_and_repaired(
        "announcements", f"shop: v9.web.1 is announced ({key}), but has no running container"
    )
    assert done == "The announcement was withdrawn."
    assert patient.etcd.get(key) is None


def test_a_worker_that_is_said_to_be_up_and_does_not_run_is_taken_away(cluster: Patient) -> None:
    key = f"{cluster.places.up_of('shop')}v9.worker.1"
    cluster.etcd.put(key, {}, lease=LEASE)
    cluster.is_told_and_repaired("announcements", f"shop: v9.worker.1 is announced ({key}), but has no unit")


def without_lease(patient: Patient) -> tuple[str, object]:
    """Announce the web instance by a key that never ends; that key, and its value."""
    key = f"{patient.places.announcements_of('shop')}v1.web.1"
    entry = patient.etcd.get(key)
    assert entry
    patient.etcd.put(key, entry.value)
    return key, entry.value


def test_an_announcement_that_would_never_end_is_written_again(patient: Patient) -> None:
    key, value = without_lease(patient)

    def discovery() -> None:
        """Write it again when it is gone, as the instance's discovery unit does."""
        for change in patient.etcd.changes([key], patient.etcd.revision(), 10):
            if change.value is None:
                patient.etcd.put(key, value, lease=LEASE)
                return

    about = f"shop: v1.web.1 is announced ({key}) without a lease, so it would stay announced after its end"
    (told,) = patient.wrong()
    assert (told.check, told.about, told.state) == ("announcements", about, "problem")
    thread = threading.Thread(target=discovery)
    thread.start()
    (repaired,) = patient.wrong(fix=True)
    thread.join()
    assert (repaired.state, repaired.advice) == ("repaired", "It is announced again.")
    assert patient.wrong() == []


def test_an_announcement_that_nobody_writes_again_is_told(patient: Patient) -> None:
    without_lease(patient)
    renewed, silent = patient.wrong(fix=True)
    assert renewed.advice == "The announcement was withdrawn. It was not announced again within 0.3 s."
    assert (silent.check, silent.state) == ("instances", "failed")
    assert silent.about == "shop: of v1, web.1 not healthy"
    assert silent.advice.startswith("Not repaired: v1.web.1 not healthy within 0.3 s. See ")


def test_an_announcement_that_somebody_writes_meanwhile_is_kept(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, value = without_lease(patient)
    write = patient.etcd.write

    def beaten(values: dict[str, object], **options: object) -> int:
        if key in values and "unchanged" in options:
            monkeypatch.setattr(patient.etcd, "write", write)
            patient.etcd.put(key, value, lease=LEASE)
        return write(values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(patient.etcd, "write", beaten)
    (finding,) = patient.wrong(fix=True)
    assert (finding.state, finding.advice) == ("failed", f"Not repaired: {key} has changed in the meantime.")
    assert patient.etcd.get(key)


def test_announcements_of_others_are_not_looked_at(patient: Patient) -> None:
    patient.etcd.put("/services/elsewhere/one", "http://10.0.0.9")
    assert patient.wrong() == []


# Releases


def test_a_release_whose_deploy_was_killed_is_taken_away_and_marked_failed(patient: Patient) -> None:
    left = patient.ledger.write(msgspec.structs.replace(DRAFT, image=patient.engine.add_image("shop", "b" * 64)), 2)
    instance = Instance(left, "web", 1)
    patient.scheduler.started[instance.unit] = instance
    done = patient.is_told_and_repaired("releases", "shop: v2 never finished: its deploy was killed")
    assert done == "Its leftovers were removed; it is recorded as failed."
    assert instance.unit not in patient.scheduler.started
    assert patient.ledger.history()[1][1] == Outcome("failed", "its deploy was killed")
    assert patient.scheduler.running("shop") == ["shop.v1.web.1", "shop.v1.worker.1"]


def test_a_record_that_is_no_release_is_told(patient: Patient) -> None:
    key = f"{patient.ledger.root}/releases/00000007"
    patient.etcd.put(key, "hello")
    advice = patient.is_told_and_left("releases", f"shop: {key} is not a record of a release; nap did not write it")
    assert f"etcdctl get {key}" in advice


# Instances


def test_an_instance_that_does_not_run_is_started_alone(patient: Patient) -> None:
    patient.scheduler.withdraw(["shop.v1.web.1"])
    patient.scheduler.started.pop("shop.v1.web.1")
    patient.scheduler.calls.clear()
    done = patient.is_told_and_repaired("instances", "shop: of v1, web.1 not started")
    assert done == "Started: web.1."
    assert patient.scheduler.calls == [("start", ["shop.v1.web.1"])]


def test_a_release_of_which_nothing_runs_is_started(patient: Patient) -> None:
    units = ["shop.v1.web.1", "shop.v1.worker.1"]
    patient.scheduler.withdraw(units)
    patient.scheduler.stop(units)
    patient.is_told_and_repaired("instances", "shop: v1 is the current release, but no instance of it runs")
    assert patient.scheduler.running("shop") == units


def test_an_instance_that_does_not_come_up_is_told_with_its_logs(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAP_DEPLOY_ANSWER_TIMEOUT", "1")
    patient.scheduler.withdraw(["shop.v1.web.1"])
    patient.scheduler.started.pop("shop.v1.web.1")
    patient.scheduler.outcome = lambda instance: "silent"
    (finding,) = patient.wrong(fix=True)
    assert (finding.check, finding.state) == ("instances", "failed")
    assert finding.advice == (
        "Not repaired: v1.web.1 not healthy within 1 s. "
        "See nap logs shop. Then push a fix, or restart it: nap ps:restart shop"
    )


def test_an_app_that_its_users_stopped_is_well(patient: Patient) -> None:
    units = ["shop.v1.web.1", "shop.v1.worker.1"]
    patient.scheduler.withdraw(units)
    patient.scheduler.stop(units)
    current = patient.ledger.current()
    assert current
    patient.etcd.put(f"{patient.ledger.root}/releases/00000001", msgspec.structs.replace(current, stopped=True))
    assert patient.wrong() == []
    assert patient.well("instances") == ("0 of current releases, all healthy, and 1 app stopped by their users")


# Units


def run(patient: Patient, unit: str, *, announced: bool) -> None:
    """Have the scheduler run an instance of this name."""
    app, version, process, _ = unit.split(".")
    release = msgspec.structs.replace(DRAFT, app=app, number=int(version[1:]))
    instance = Instance(release, process, 1)
    patient.scheduler.started[unit] = instance
    if announced:
        patient.etcd.put(*patient.scheduler._announcement(instance), lease=LEASE)


@pytest.mark.parametrize("announced", [True, False])
def test_a_unit_of_another_release_is_stopped(patient: Patient, announced: bool) -> None:
    run(patient, "shop.v9.web.1", announced=announced)
    done = patient.is_told_and_repaired("units", "shop: v9.web.1 has a unit, but v1 is the current release")
    assert done == "It was stopped and its unit removed."
    assert patient.scheduler.calls == [("withdraw", ["shop.v9.web.1"]), ("stop", ["shop.v9.web.1"])]


def test_a_unit_that_answers_stays_while_the_current_release_does_not(patient: Patient) -> None:
    run(patient, "shop.v9.web.1", announced=True)
    patient.scheduler.withdraw(["shop.v1.web.1"])
    patient.scheduler.calls.clear()
    told = {each.check: each for each in patient.wrong(fix=True)}
    assert told["units"].about == "shop: v9.web.1 has a unit, but v1 is the current release"
    assert told["units"].advice == "It is healthy, but the current release is not. To see that: nap ps shop"
    assert patient.scheduler.calls == []


def test_units_of_an_app_that_is_gone_are_stopped(patient: Patient) -> None:
    run(patient, "old.v3.worker.1", announced=False)
    patient.is_told_and_repaired("units", "old: v3.worker.1 has a unit, but etcd has no such app")
    assert patient.scheduler.running("old") == []


def test_units_stay_where_etcd_may_have_lost_its_data(patient: Patient) -> None:
    for prefix in ("/nap/", "/services/"):
        patient.etcd.delete_below(prefix)
    units = [each for each in patient.wrong(fix=True) if each.check == "units"]
    assert [each.about for each in units] == [
        f"shop: v1.{process}.1 has a unit, but etcd has no such app" for process in ("web", "worker")
    ]
    assert all(each.advice.startswith("If etcd has lost data, restore it") for each in units)
    assert patient.scheduler.running("shop") == ["shop.v1.web.1", "shop.v1.worker.1"]


def test_units_that_are_not_naps_or_are_being_stopped_are_left_alone(
    cluster: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cluster, "theirs.v3.worker.1", announced=False)
    run(cluster, "shop.v9.worker.1", announced=False)
    monkeypatch.setattr(cluster.scheduler, "is_ours", lambda unit: unit.startswith("shop."))
    monkeypatch.setattr(cluster.scheduler, "is_stopping", lambda unit: unit == "shop.v9.worker.1")
    assert cluster.wrong() == []


# Containers


def test_a_container_without_a_unit_is_removed(patient: Patient) -> None:
    patient.engine.others.append(patient.engine.container(ONE_OFF))
    name = f"{ONE_OFF}.{patient.state.name}"
    done = patient.is_told_and_repaired(
        "containers", f"shop: container {name} has no unit and belongs to no running one-off command"
    )
    assert done == "It was stopped and removed."
    assert patient.engine.others == []


@pytest.mark.parametrize(("parent", "is_well"), [(17, True), (1, False)])
def test_a_one_off_command_is_well_while_somebody_waits_for_it(patient: Patient, parent: int, is_well: bool) -> None:
    patient.engine.others.append(patient.engine.container(ONE_OFF))
    words = ["docker", "start", "--attach", f"{ONE_OFF}.{patient.state.name}"]
    patient.processes[21] = Process(parent, words)
    assert (patient.wrong() == []) == is_well


@pytest.mark.parametrize(("status", "state"), [(409, "repaired"), (500, "failed")])
def test_a_container_that_the_engine_removes_itself_is_well(patient: Patient, status: int, state: str) -> None:
    patient.engine.others.append(patient.engine.container(ONE_OFF))
    patient.engine.removing = APIError("no", Mock(status_code=status))
    (finding,) = patient.wrong(fix=True)
    assert (finding.check, finding.state) == ("containers", state)


def test_containers_of_an_engine_elsewhere_are_not_looked_at(cluster: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAP_ENGINE_URL", "tcp://10.0.0.5:2375")
    cluster.engine.others.append(cluster.engine.container(ONE_OFF))
    assert cluster.well("containers") == "not checked: they run on other machines"
