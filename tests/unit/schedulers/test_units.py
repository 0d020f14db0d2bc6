"""The rendered units, read by the programs that they are for: systemd and sh."""

import json
import os
import re
import subprocess
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nap_receiver.core.errors import NapError
from nap_receiver.core.escape import FLEET_LINE_BYTES
from nap_receiver.core.settings import (
    DeploySettings,
    EtcdAddress,
    EtcdSettings,
    FilePath,
    KeyPrefix,
    Settings,
)
from nap_receiver.core.templates import TEMPLATES
from nap_receiver.model.release import Instance, Release
from nap_receiver.schedulers import units
from nap_receiver.schedulers.placement import Placement
from tests.parsers import Read, systemd_reads
from tests.releases import RELEASE

WEB = Instance(RELEASE, "web", 1)
BODY = "0123456789abcdef"
LOCAL = Settings()
FLEET = msgspec.structs.replace(LOCAL, scheduler="fleet")
STUBS = {
    "docker.service": "[Service]\nExecStart=/bin/true\n",
    "sysinit.target": "[Unit]\nDescription=stub\n",
    "basic.target": "[Unit]\nDescription=stub\n",
    "shutdown.target": "[Unit]\nDescription=stub\n",
}


def fleet_files(instance: Instance = WEB, settings: Settings = FLEET) -> dict[str, str]:
    both = units.render(instance, BODY, settings)
    return {f"{unit.name}.service": unit.text for unit in (both.app, both.discovery)}


@cache
def fleet_app() -> Read:
    return systemd_reads(STUBS | fleet_files(), "team-shop.v3.web.1.service")


@cache
def fleet_discovery() -> Read:
    return systemd_reads(STUBS | fleet_files(), "team-shop.v3.web.1-discovery.service")


def test_systemd_has_nothing_to_say_against_the_fleet_units(tmp_path: Path) -> None:
    files = {name: text.replace("/usr/bin/docker", "/usr/bin/env") for name, text in fleet_files().items()}
    for name, text in (STUBS | files).items():
        (tmp_path / name).write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    assert fleet_app().complaints == fleet_discovery().complaints == ""


def test_fleet_takes_every_line_of_its_units() -> None:
    longest = Release(**(msgspec.structs.asdict(RELEASE) | {"app": "a" * 40, "number": 99_999_999}))
    settings = msgspec.structs.replace(FLEET, etcd=EtcdSettings(EtcdAddress("host.example" * 9 + ":2379")))
    for text in fleet_files(Instance(longest, "release-phase", 100), settings).values():
        assert max(len(line.encode()) for line in text.splitlines()) < FLEET_LINE_BYTES


def test_the_fleet_app_unit_starts_the_container_that_its_body_asks_for() -> None:
    app = fleet_app()
    assert "docker rm --force" in app.commands["ExecStartPre"][0][2]
    assert app.environment["NAP_IMAGE"] == RELEASE.image
    assert app.environment["NAP_BODY_KEY"] == "/nap/apps/team-shop/containers/v3.web.1"
    assert app.commands["ExecStart"] == [["/usr/bin/docker", "start", "--attach", "team-shop.v3.web.1"]]
    assert (app.environment["NAP_DRAIN"], app.environment["NAP_GRACE"]) == ("2", "30")


def test_the_fleet_units_hold_together() -> None:
    app, discovery = fleet_app(), fleet_discovery()
    assert {
        ("Wants", "docker.service"),
        ("After", "docker.service"),
        ("Wants", "team-shop.v3.web.1-discovery.service"),
    } <= app.dependencies
    assert {
        ("BindsTo", "team-shop.v3.web.1.service"),
        ("After", "team-shop.v3.web.1.service"),
    } <= discovery.dependencies
    [app_text, discovery_text] = fleet_files().values()
    assert discovery_text.endswith("\n[X-Fleet]\nMachineOf=team-shop.v3.web.1.service\n")
    assert "X-Fleet" not in app_text
    assert "\nStartLimitIntervalSec=0\n" in app_text  # held back, but never given up
    for text in (app_text, discovery_text):
        assert "\nRestart=always\n" in text
    assert app.description == "team-shop v3 web.1"
    assert discovery.description == "team-shop v3 web.1 announced"


def test_the_fleet_app_unit_gives_the_instance_its_grace_and_the_report_some_time() -> None:
    settings = msgspec.structs.replace(FLEET, deploy=DeploySettings(drain=7, grace=120))
    text = fleet_files(settings=settings)["team-shop.v3.web.1.service"]
    assert "NAP_GRACE=120" in text
    stop_seconds = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop_seconds and int(stop_seconds[1]) > 127


def x_fleet(placement: Placement, process: str = "web") -> str:
    both = units.render(Instance(RELEASE, process, 1), BODY, FLEET, placement)
    assert both.discovery.text.endswith(f"\n[X-Fleet]\nMachineOf={both.app.name}.service\n")
    return both.app.text.partition("\n[X-Fleet]\n")[2]


def test_the_fleet_app_unit_says_where_it_may_run() -> None:
    assert x_fleet(Placement(("region=east", "disk=ssd"))) == "MachineMetadata=region=east\nMachineMetadata=disk=ssd\n"
    assert x_fleet(Placement(machine="ab" * 16)) == f"MachineID={'ab' * 16}\n"
    spread = Placement(spread=frozenset({"web"}))
    assert x_fleet(spread, "worker") == ""
    conflicts = x_fleet(spread).strip().removeprefix("Conflicts=")
    others = ["team-shop.v3.web.2.service", "team-shop.v3.web.10.service"]
    apart = ["team-shop.v3.web.1-discovery.service", "team-shop.v2.web.2.service", "team-shop.v3.worker.2.service"]
    assert [name for name in others + apart if fnmatchcase(name, conflicts)] == others


def test_the_fleet_units_speak_tls_with_etcd_where_they_are_told() -> None:
    etcd = EtcdSettings(
        EtcdAddress("10.0.0.2:2379"), ca=FilePath("/tls/ca"), certificate=FilePath("/c"), key=FilePath("/k")
    )
    files = fleet_files(settings=msgspec.structs.replace(FLEET, etcd=etcd))
    for name in files:
        known = systemd_reads(STUBS | files, name).environment
        assert known["ETCDCTL_ENDPOINTS"] == "https://10.0.0.2:2379"
        assert [known[f"ETCDCTL_{file}"] for file in ("CACERT", "CERT", "KEY")] == ["/tls/ca", "/c", "/k"]


def test_what_the_discovery_unit_knows() -> None:
    environment = fleet_discovery().environment
    assert environment["NAP_CONTAINER"] == "team-shop.v3.web.1"
    assert environment["NAP_KEY"] == "/services/team-shop/v3.web.1"
    assert environment["NAP_PORT"] == "8080/tcp"
    assert 0 < int(environment["NAP_LEASE"]) <= 60
    assert environment["ETCDCTL_ENDPOINTS"] == "http://127.0.0.1:12379"
    assert json.loads(f"{{{environment['NAP_FACTS']}}}") == {
        "app": "team-shop",
        "release": 3,
        "process": "web",
        "instance": "web.1",
    }


def test_the_app_unit_knows_where_to_tell_how_an_instance_ended() -> None:
    environment = fleet_app().environment
    assert environment["NAP_EXIT_KEY"] == "/nap/apps/team-shop/exits/v3.web.1"
    assert environment["ETCDCTL_ENDPOINTS"] == "http://127.0.0.1:12379"


def inlined_programs() -> dict[str, str]:
    """The programs in the fleet units, by the file that each ends with."""
    app = fleet_app().commands
    commands = [command for kind in ("ExecStartPre", "ExecStop", "ExecStopPost") for command in app[kind]]
    commands += fleet_discovery().commands["ExecStart"]
    assert fleet_app().commands["ExecStopPost"][-1] == fleet_discovery().commands["ExecStopPost"][-1] == ["/bin/false"]
    names = ["hold_back.sh", "created.sh", "drain.sh", "ended.sh", "tidy.sh", "announce.sh"]
    return dict(zip(names, [words[2] for words in commands if words[:2] == ["/bin/sh", "-c"]], strict=True))


def test_the_inlined_programs_reach_sh_whole() -> None:
    programs = inlined_programs()
    programs["report_exit.sh"] = programs.pop("ended.sh")
    programs["created.sh"] = programs["created.sh"].rpartition("\n set -u\n")[0]
    for name, inlined in programs.items():
        subprocess.run(["sh", "-n", "-c", inlined], check=True)
        lines = [line.strip() for line in inlined.splitlines()]
        (path,) = (path for path in TEMPLATES.rglob(name) if path.parent.name != "local")
        source = path.read_text().splitlines()
        program = [line.strip() for line in source if line.strip() and not line.strip().startswith("#")]
        assert lines[-len(program) :] == program


@pytest.mark.parametrize("program", sorted(TEMPLATES.rglob("*.sh")), ids=lambda path: path.name)
def test_the_programs_are_shell(program: Path) -> None:
    subprocess.run(["sh", "-n", str(program)], check=True)


@pytest.mark.parametrize(("status", "told"), [("0", "0"), ("3", "3"), ("KILL", "137"), ("", "0")])
def test_the_fleet_app_unit_tells_a_signal_as_a_status(tmp_path: Path, status: str, told: str) -> None:
    (tmp_path / "created").touch()
    assert ended(tmp_path, status) == f"{told}\n"


def test_the_fleet_app_unit_tells_no_end_that_was_asked_for(tmp_path: Path) -> None:
    assert ended(tmp_path, "1") == "", "created.sh has told already"
    (tmp_path / "created").touch()
    (tmp_path / "answered").touch()
    assert ended(tmp_path, "143") == "143\n"
    (tmp_path / "asked").touch()
    assert ended(tmp_path, "143") == ""
    (tmp_path / "answered").unlink()
    assert ended(tmp_path, "143") == "143\n", "why it never answered is worth knowing"


def ended(runtime: Path, status: str) -> str:
    """The status that the app unit tells of an instance whose main process ended with `status`."""
    program = inlined_programs()["ended.sh"]
    beginning = program[: program.index("journalctl")] + "echo $NAP_STATUS"
    environment = {"EXIT_STATUS": status, "RUNTIME_DIRECTORY": str(runtime)}
    return subprocess.run(["sh", "-c", beginning], env=environment, capture_output=True, check=True, text=True).stdout


def test_what_never_answers_is_held_back_longer_each_time(tmp_path: Path) -> None:
    def delay() -> str:
        program = "docker() { :; }\nsleep() { echo $1; }\n" + inlined_programs()["hold_back.sh"]
        environment = {"RUNTIME_DIRECTORY": str(tmp_path), "PATH": os.environ["PATH"], "NAP_CONTAINER": "c"}
        return subprocess.run(["sh", "-c", program], env=environment, capture_output=True, check=True, text=True).stdout

    assert [delay().strip() for _ in range(7)] == ["0", "1", "3", "7", "15", "30", "30"]
    (tmp_path / "answered").touch()
    assert [delay().strip() for _ in range(2)] == ["0", "1"]


hostile = st.lists(
    st.sampled_from(["'", '"', "\\", "$", "%", ";", "#", "\n", "\t", " ", "`", "%(here)s", "$(id)", " ; ", "\n[x]\n"])
    | st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=["Cn"]),
    max_size=12,
).map("".join)


# Without shrinking: an example takes four processes.
@hypothesis_settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(hostile, hostile, hostile)
def test_hostile_values_stay_inside_their_words(image: str, prefix: str, host: str) -> None:
    release = msgspec.structs.replace(RELEASE, image=image)
    etcd = EtcdSettings(EtcdAddress(host), announcements=KeyPrefix(f"/a{prefix}"), prefix=KeyPrefix(f"/b{prefix}"))
    instance = Instance(release, "web", 1)
    files = fleet_files(instance, msgspec.structs.replace(FLEET, etcd=etcd))
    app = systemd_reads(STUBS | files, "team-shop.v3.web.1.service")
    discovery = systemd_reads(STUBS | files, "team-shop.v3.web.1-discovery.service")
    assert app.complaints == discovery.complaints == ""
    assert [command[0] for command in app.commands["ExecStart"]] == ["/usr/bin/docker"]
    assert app.environment["NAP_IMAGE"] == image
    assert discovery.environment["NAP_KEY"] == f"/a{prefix}/team-shop/v3.web.1"
    assert app.environment["NAP_EXIT_KEY"] == f"/b{prefix}/apps/team-shop/exits/v3.web.1"
    assert app.environment["ETCDCTL_ENDPOINTS"] == f"http://{host}"


@pytest.mark.parametrize(
    ("app", "process"),
    [
        ("shop\n[program:x]\ncommand=/bin/sh", "web"),
        ("shop", "web\nExecStart=/bin/sh"),
        ("shop", "we b"),
        ("shop", 'w"eb'),
        ("shop", "web%n"),
        ("shop", "../web"),
        ("", "web"),
        ("shop", "wéb"),
    ],
)
def test_a_name_that_is_no_units_is_refused(app: str, process: str) -> None:
    instance = Instance(msgspec.structs.replace(RELEASE, app=app), process, 1)
    with pytest.raises(NapError, match="is not a valid unit name"):
        units.render(instance, BODY, FLEET)


def test_names_carry_app_release_process_and_index() -> None:
    both = units.render(Instance(RELEASE, "worker", 2), BODY, FLEET)
    assert (both.app.name, both.discovery.name) == ("team-shop.v3.worker.2", "team-shop.v3.worker.2-discovery")


def test_a_template_with_an_unknown_name_is_an_error_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "app.service.j2").write_text("{{ instance.unit }} {{ instnace.unit }}")
    monkeypatch.setattr(units, "TEMPLATES", tmp_path)
    with pytest.raises(NapError, match="'instnace' is undefined") as error:
        fleet_files()
    assert str(tmp_path / "fleet" / "app.service.j2") in str(error.value)
    assert error.value.advice
