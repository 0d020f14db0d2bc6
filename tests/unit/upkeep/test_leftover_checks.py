"""Checks for leftovers: images, volumes and logs."""

import json

import pytest

from nap_receiver.core.deploy_log import logs
from nap_receiver.engine.daemon import own_url
from tests.unit.upkeep.patient import Patient

REGISTRY = "127.0.0.1:15000"


def test_what_is_well_is_counted(patient: Patient) -> None:
    assert patient.well("images") == "1 on the engine, all of kept releases"
    assert patient.well("volumes") == "no anonymous one without a container"
    assert patient.well("logs") == "of 1 apps"


# Images


def test_images_of_old_releases_are_removed(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.deploy("b" * 64)
    patient.deploy("c" * 64)
    patient.scheduler.calls.clear()
    assert patient.wrong() == []
    monkeypatch.setenv("NAP_DEPLOY_KEEP_RELEASES", "1")
    about = "shop: images of old releases (deploy.keep_releases is 1): "
    patient.is_told_and_repaired("images", f"{about}2 on the engine and 2 in the registry")
    assert list(patient.engine.kept) == ["c" * 64]
    assert patient.registry.deleted == [f"{REGISTRY}/shop@sha256:{letter * 64}" for letter in "ab"]
    patient.deploy("d" * 64)
    patient.scheduler.calls.clear()
    patient.is_told_and_repaired("images", f"{about}1 on the engine and 1 in the registry")
    assert patient.registry.deleted[2:] == [f"{REGISTRY}/shop@sha256:{'c' * 64}"]


def test_the_registry_keeps_images_while_an_older_release_still_stops(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = dict(patient.scheduler.started)
    patient.deploy("b" * 64)
    patient.deploy("c" * 64)
    patient.scheduler.started |= stopping
    monkeypatch.setattr(patient.scheduler, "is_stopping", lambda unit: unit in stopping)
    monkeypatch.setenv("NAP_DEPLOY_KEEP_RELEASES", "1")
    (problem,) = patient.wrong()
    assert problem.about.endswith(" (deploy.keep_releases is 1): 1 on the engine")


def test_an_image_that_a_container_uses_is_kept(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.engine.add_image("shop", "b" * 64)
    patient.engine.others.append(
        {"Id": "x", "Names": ["/x"], "Labels": {"nap.app": "x"}, "Image": "", "ImageID": "b" * 64, "State": "running"}
    )
    assert patient.wrong() == []
    patient.engine.others.clear()
    assert [each.check for each in patient.wrong()] == ["images"]


def in_registry(patient: Patient, app: str, digest: str) -> None:
    """Have nap's own registry keep an image that nap built for the app."""
    root = patient.state.root / "registry/docker/registry/v2"

    def blob(name: str, content: object) -> None:
        path = root / "blobs/sha256" / name[:2] / name / "data"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))

    blob(digest, {"config": {"digest": f"sha256:{digest[::-1]}"}})
    blob(digest[::-1], {"config": {"Labels": {"nap.app": app}}})
    link = root / "repositories" / app / "_manifests/revisions/sha256" / digest / "link"
    link.parent.mkdir(parents=True)
    link.write_text(f"sha256:{digest}")


def test_images_of_an_app_that_is_gone_are_removed(patient: Patient) -> None:
    digest = "b" * 63 + "1"
    patient.engine.add_image("old", digest)
    in_registry(patient, "old", digest)
    (told,) = patient.wrong()
    assert told.about == "old: images of an app that is gone: 1 on the engine and 1 in the registry"
    (repaired,) = patient.wrong(fix=True)
    assert (repaired.check, repaired.state) == ("images", "repaired")
    assert patient.registry.deleted == [f"{REGISTRY}/old@sha256:{digest}"]


def test_images_that_others_put_into_the_registry_stay(patient: Patient) -> None:
    patient.engine.add_image("theirs", "b" * 64)
    patient.engine.kept["b" * 64]["Labels"] = {}
    assert patient.wrong() == []


def test_images_of_an_app_that_is_gone_stay_while_it_has_a_repository(patient: Patient) -> None:
    patient.engine.add_image("old", "b" * 64)
    (patient.state.repositories / "old.git").mkdir(parents=True)
    assert patient.wrong() == []


# Volumes


def test_volumes_that_no_container_uses_are_removed_from_naps_own_engine(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAP_ENGINE_URL", own_url(patient.state))
    patient.engine.unused_volumes += ["1" * 64, "named", "2" * 64]
    done = patient.is_told_and_repaired("volumes", "anonymous volumes without a container: 2")
    assert done == "They were removed."
    assert patient.engine.unused_volumes == ["named"]


def test_volumes_of_another_engine_stay(patient: Patient) -> None:
    patient.engine.unused_volumes.append("1" * 64)
    assert patient.well("volumes") == (
        "1 anonymous without a container, kept because the engine is not nap's own: docker volume prune"
    )
    assert patient.wrong(fix=True) == []
    assert len(patient.engine.unused_volumes) == 1


# Logs


def test_logs_of_deploys_long_past_are_removed(patient: Patient) -> None:
    folder = patient.state.deploy_logs / "shop"
    for number in range(100):
        (folder / f"20200101T0000{number:02}-1a2b3c4.log").touch()
    assert len(logs(patient.state, "shop")) == 101
    done = patient.is_told_and_repaired("logs", "shop: logs of old deploys")
    assert done == "They were removed."
    assert len(logs(patient.state, "shop")) <= 100


def test_logs_of_an_app_that_is_gone_are_removed(patient: Patient) -> None:
    folder = patient.state.deploy_logs / "old"
    folder.mkdir()
    (folder / "20200101T000000-1a2b3c4.log").touch()
    assert patient.is_told_and_repaired("logs", f"old: logs of an app that is gone ({folder})") == "They were removed."
    assert not folder.exists()


def test_logs_of_an_app_that_is_gone_stay_while_it_has_units(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    (patient.state.deploy_logs / "old").mkdir()
    patient.engine.others.append(patient.engine.container("old.v1.run.5"))
    assert [each.check for each in patient.wrong()] == ["containers"]
