"""How long from `git push` to an answering address on a fleet cluster, beside fleet's own floor and the way of the
article that nap grew out of, in the same run. `make cluster-bench`.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import msgspec

from nap_receiver.engine.container import write_down
from nap_receiver.model.release import Instance, Release
from nap_receiver.schedulers.fleet import Fleet
from nap_receiver.schedulers.units import render
from nap_receiver.store.ledger import Ledger
from tests.bench import print_table
from tests.conftest import fresh_nap
from tests.fleet_apps import pushed, remove
from tests.fleet_cluster import FOLDER, Cluster, down, running, up
from tests.nap import HTTPD, Nap, Pusher, answer

RUNS = 10
ARTICLE_RUNS = 3

# The article's two units, with the image that nap built, and with etcd's v2 keys, which it used.
_ARTICLE_APP = """\
[Unit]
Description={app}
Requires=docker.service
After=docker.service

[Service]
TimeoutStartSec=0
ExecStartPre=-/usr/bin/docker pull {image}
ExecStart=/usr/bin/docker run --rm -P --name {app} {image}
ExecStop=/usr/bin/docker stop {app}
"""
_ARTICLE_DISCOVERY = """\
[Unit]
Description={app}_discovery
BindsTo={app}.service
After={app}.service

[Service]
Environment=ETCDCTL_API=2 ETCDCTL_ENDPOINTS=http://{etcd}
ExecStart=/bin/sh -c "while true; do port=$(docker port {app} | sed -n 's/.*://p' | head -n 1); \\
    etcdctl set /services/{app}/%H '{{\\"host\\": \\"%H\\", \\"port\\": '$port'}}' --ttl 60; sleep 45; done"
ExecStop=/usr/bin/etcdctl rm /services/{app}/%H

[X-Fleet]
MachineOf={app}.service
"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="nap-"))
    ours = running(FOLDER)
    cluster = ours or up(folder / "cluster", Path(os.environ["FLEET_BIN"]))
    nap = fresh_nap(folder / "receiver", **cluster.variables)
    nap.run("up")
    try:
        nap.import_busybox()
        pusher = Pusher(nap, "bench", folder)
        pusher.commit(Dockerfile=HTTPD, index_html="0")
        pushed(pusher)
        release = current(nap, pusher.app)
        floors = [floor(cluster, nap, release, 9000 + number) for number in range(RUNS)]
        pushes = [push(pusher, number) for number in range(RUNS)]
        article = [
            by_the_article(cluster, release.image, f"article-{number}", folder) for number in range(ARTICLE_RUNS)
        ]
    finally:
        remove(cluster, nap, "bench")
        nap.run("down")
        if not ours:
            down(folder / "cluster")
        shutil.rmtree(folder)
    print_table(
        "seconds",
        {
            f"fleet's floor: both units by hand, to the key, {RUNS} times": floors,
            f"git push nap master, to an address that answers, {RUNS}": pushes,
            f"the article's script, to the key that it reads, {ARTICLE_RUNS}": article,
        },
    )


def push(pusher: Pusher, number: int) -> float:
    """Seconds from the beginning of a push to the answer of the address that it prints."""
    pusher.commit(index_html=f"number {number}")
    started = time.monotonic()
    process = pusher.start_push()
    assert process.stdout
    lines = (line.removeprefix("remote: ").strip() for line in process.stdout)
    url = next(line for line in lines if line.startswith("http://"))
    assert answer(url) == f"number {number}"
    took = time.monotonic() - started
    assert process.wait(timeout=60) == 0
    return took


def current(nap: Nap, app: str) -> Release:
    """The app's release that serves."""
    etcd = nap.etcd()
    release = Ledger(etcd, nap.settings.etcd, app).current()
    etcd.close()
    assert release
    return release


def floor(cluster: Cluster, nap: Nap, release: Release, number: int) -> float:
    """Seconds from submitting nap's units, of an image that the machines have, to the announcement."""
    for machine in cluster.machines.values():
        machine.docker("pull", "--quiet", release.image)
    instance = Instance(msgspec.structs.replace(release, number=number), "web", 1)
    etcd = nap.etcd()
    ledger, adapt = Ledger(etcd, nap.settings.etcd, release.app), Fleet(nap.state, nap.settings).asked_of_engine
    digests = write_down(instance.release, ledger, nap.settings, adapt)
    etcd.close()
    both = render(instance, digests[instance.key], nap.settings)
    names = [f"{unit.name}.service" for unit in (both.app, both.discovery)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in names]
        for file, unit in zip(files, (both.app, both.discovery), strict=True):
            file.write_text(unit.text)
        etcd = nap.etcd()
        since = etcd.revision()
        started = time.monotonic()
        cluster.fleetctl("submit", *map(str, files))
        cluster.fleetctl("start", "--no-block", *names)
        next(etcd.changes([f"/services/{release.app}/{instance.key}"], since, 60))
        took = time.monotonic() - started
        etcd.close()
    Fleet(nap.state, nap.settings).destroy_when_stopped([instance.unit])
    return took


def by_the_article(cluster: Cluster, image: str, app: str, folder: Path) -> float:
    """Seconds that the article's script takes, which sleeps for 30 of them."""
    files = {}
    for name, text in ((app, _ARTICLE_APP), (f"{app}_discovery", _ARTICLE_DISCOVERY)):
        files[name] = folder / f"{name}.service"
        files[name].write_text(text.format(app=app, image=image, etcd=cluster.etcd))
    started = time.monotonic()
    cluster.fleetctl("submit", *map(str, files.values()))
    for name in files:
        cluster.fleetctl("start", f"{name}.service")
    time.sleep(30)
    host = cluster.services
    key = host.run("env", "ETCDCTL_API=2", "etcdctl", "ls", f"/services/{app}").stdout.strip()
    host.run("env", "ETCDCTL_API=2", "etcdctl", "get", key)
    took = time.monotonic() - started
    cluster.fleetctl("destroy", *(f"{name}.service" for name in files))
    return took


if __name__ == "__main__":
    main()
