"""An image with `VOLUME`: the push says what becomes of its data, and no container leaves its volumes behind."""

from nap_receiver.upkeep import leftover_checks
from nap_receiver.upkeep.finding import Finding
from nap_receiver.upkeep.inventory import Inventory
from tests.fleet_apps import pushed
from tests.nap import Nap, Pusher, eventually

WITH_VOLUME = """\
FROM nap/busybox
RUN mkdir /data && echo seed > /data/seed
VOLUME /data /var/cache/shop
RUN true
EXPOSE 8080
CMD ["sh", "-c", "echo much > /data/much; exec httpd -f -p 8080 -h /data"]
"""


def volumes(nap: Nap) -> set[str]:
    return set(nap.docker("volume", "ls", "--quiet").split())


def test_no_container_leaves_its_volumes_behind(nap: Nap, pusher: Pusher) -> None:
    def settled(running: int, kept: int = 0) -> bool:
        """As many containers, those that run and those that are kept for their output, each with its two volumes."""
        return len(nap.containers(pusher.app)) == running and len(volumes(nap) - before) == 2 * (running + kept)

    before = volumes(nap)
    pusher.commit(Dockerfile=WITH_VOLUME, Procfile="release: echo x > /data/x\n")
    done = pushed(pusher)
    where = "/data, /var/cache/shop"
    assert f"the image has VOLUME {where}: each deploy and restart deletes what the app wrote there" in done.trouble
    for _ in range(3):
        assert pusher.ssh_command("ps:restart", pusher.app).returncode == 0
    assert pusher.ssh_command("run", pusher.app, "touch", "/data/x").returncode == 0
    eventually(lambda: settled(1, kept=1), 20, "each container went with its volumes")
    nap.docker("kill", *nap.containers(pusher.app))
    eventually(lambda: settled(1, kept=1), 20, "it runs again, with its volumes")
    (pusher.repository / "Procfile").write_text("web: exit 3\n")
    pusher.commit()
    assert pusher.push().status == 1
    eventually(lambda: settled(1), 20, "a failed release leaves none, and the release before went too")
    nap.run("apps:destroy", pusher.app, "--confirm", pusher.app)
    eventually(lambda: settled(0), 20, "a destroyed app leaves none")


def test_doctor_finds_and_removes_volumes_that_are_left(nap: Nap) -> None:
    def found() -> dict[str, Finding]:
        return {each.state: each for each in leftover_checks.volumes(Inventory(nap.state, nap.settings))}

    left = {nap.docker("volume", "create") for _ in range(2)}
    named = nap.docker("volume", "create", "operators")
    try:
        problem = found()["problem"]
        assert problem.about.startswith("anonymous volumes without a container: ")
        assert left < volumes(nap)
        assert problem.repair
        problem.repair()
        assert not left & volumes(nap)
        assert "problem" not in found()
        assert named in volumes(nap)
    finally:
        nap.docker("volume", "rm", named)
