"""etcd over TLS, with certificates on both sides, as a cluster's may be."""

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.installed import path_of
from nap_receiver.core.settings import EtcdAddress, EtcdSettings, FilePath
from nap_receiver.core.templates import TEMPLATES
from nap_receiver.machine.programs import etcd_answers
from nap_receiver.store.etcd import EtcdAway, connect
from tests.conftest import free_address
from tests.nap import eventually

_CERTIFICATE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", "req", "-x509", *_CERTIFICATE, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdSettings]:
    """How to reach an etcd that lets in only those whose certificate its CA made."""
    folder = tmp_path_factory.mktemp("tls")
    openssl(folder, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        extensions = (
            "-addext",
            "basicConstraints=critical,CA:false",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
        )
        openssl(folder, "-subj", f"/CN={name}", *signed, *extensions, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    address, peer = free_address(), f"http://{free_address()}"
    etcd = subprocess.Popen(
        [
            path_of("etcd"),
            f"--data-dir={folder / 'data'}",
            f"--listen-client-urls=https://{address}",
            f"--advertise-client-urls=https://{address}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={folder / 'server.pem'}",
            f"--key-file={folder / 'server.key'}",
            f"--trusted-ca-file={folder / 'ca.pem'}",
            "--client-cert-auth",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    files = [FilePath(folder / name) for name in ("ca.pem", "client.pem", "client.key")]
    reached = EtcdSettings(EtcdAddress(address), timeout=2, ca=files[0], certificate=files[1], key=files[2])
    try:
        eventually(lambda: etcd_answers(reached), 10, "etcd answers")
        yield reached
    finally:
        etcd.terminate()
        etcd.wait()


def test_the_receiver_speaks_it(settings: EtcdSettings) -> None:
    with connect(settings) as etcd:
        etcd.put("/nap/x", {"a": 1})
        assert [entry.value for entry in etcd.below("/nap/").entries] == [{"a": 1}]


def test_who_has_no_certificate_is_kept_out(settings: EtcdSettings) -> None:
    for reached in (
        EtcdSettings(settings.address, timeout=2),
        EtcdSettings(settings.address, timeout=2, ca=settings.ca),
    ):
        assert not etcd_answers(reached)
        with connect(reached) as etcd, pytest.raises(EtcdAway):
            etcd.get("/nap/x")


def test_files_that_are_not_there_are_named(settings: EtcdSettings) -> None:
    missing = EtcdSettings(settings.address, ca=FilePath("/no/such/ca.pem"))
    with pytest.raises(NapError, match=r"/no/such/ca.pem: No such file or directory"), connect(missing):
        pass
    with pytest.raises(NapError, match=r"No such file or directory: /no/such/ca.pem"):
        etcd_answers(missing)
    half = EtcdSettings(settings.address, ca=settings.ca, certificate=settings.certificate)
    with pytest.raises(NapError, match=r"etcd.certificate needs etcd.key and etcd.ca"), connect(half):
        pass


def test_the_units_speak_it(settings: EtcdSettings) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "ETCDCTL_ENDPOINTS": settings.url,
        "ETCDCTL_CACERT": str(settings.ca),
        "ETCDCTL_CERT": str(settings.certificate),
        "ETCDCTL_KEY": str(settings.key),
        "NAP_CONTAINER": "none",
        "NAP_ERROR": "",
        "NAP_OUTPUT": "its last words",
        "NAP_STATUS": "3",
        "NAP_EXIT_KEY": "/nap/exits/x",
    }
    subprocess.run(["sh", str(TEMPLATES / "report_exit.sh")], env=environment, check=True, timeout=20)
    with connect(settings) as etcd:
        told = etcd.get("/nap/exits/x")
    assert told and base64.b64decode(told.value["output"]).decode().strip() == "its last words"
    asks = (TEMPLATES / "announce.sh").read_text().partition("# fleet keeps")[0] + "etcd_says health\n"
    said = subprocess.run(["sh", "-c", asks], env=environment, text=True, capture_output=True, check=True, timeout=20)
    assert '"health":"true"' in said.stdout
