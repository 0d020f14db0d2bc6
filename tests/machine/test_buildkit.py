"""BuildKit on a real engine: what a Dockerfile may have, and what a pusher sees; the table of docs/builds.md."""

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nap_receiver.build.asked import Build
from nap_receiver.build.builder import builder_of
from nap_receiver.build.confine import confined
from nap_receiver.build.dockerfile import arguments_of
from nap_receiver.core.channel import Channel
from nap_receiver.core.errors import NapError
from nap_receiver.engine.client import Engine, engine_at
from nap_receiver.engine.control_group import end_steps, forget_groups
from nap_receiver.git.checkout import DOCKERFILE, check_out
from tests.nap import HTTPD, Nap, Pusher, eventually, processes
from tests.repositories import Repository

ARGUMENTS = {"GIT_REV": "1a2b3c4", "NAP_APP": "kit"}


class Told(list[str]):
    """The lines that a pusher read."""

    @property
    def text(self) -> str:
        return "\n".join(self)


def built(nap: Nap, folder: Path, dockerfile: str, app: str = "kit", **files: str) -> Told:
    """What is said while an image `kit` is built of these files; `_` in a name stands for a full stop."""
    repository = Repository(Path(tempfile.mkdtemp(dir=folder)) / "kit.git")
    named: dict[str | bytes, bytes | str] = {DOCKERFILE: dockerfile}
    commit = repository.commit(named | {name.replace("_", "."): content for name, content in files.items()})
    said = folder / "said"
    with said.open("wb") as file, Channel(file.fileno()) as channel, engine_at(nap.engine_url) as engine:
        builder = builder_of(engine, nap.state, nap.settings)
        try:
            with (
                check_out(repository.path, commit, app, nap.settings.commit) as checkout,
                confined(checkout, app, engine, nap.settings, channel, builder.frontend, ARGUMENTS) as instructions,
            ):
                wanted = {name: ARGUMENTS[name] for name in arguments_of(instructions) & ARGUMENTS.keys()}
                asked = Build(app, "kit:1", checkout, nap.settings.build, wanted, dockerfile, instructions)
                builder.build(asked, channel)
        except NapError as error:
            channel.failure(error)
    return Told(line[7:] for line in said.read_text().splitlines())


BASE = "FROM nap/busybox\n"


def test_mounts_of_a_step(nap: Nap, tmp_path: Path) -> None:
    said = built(
        nap,
        tmp_path,
        """\
FROM nap/busybox AS other
RUN echo theirs >/x
FROM nap/busybox
RUN --mount=type=bind,target=/context cat /context/a.txt
RUN --mount=type=bind,from=other,target=/other cat /other/x
RUN --mount=type=tmpfs,target=/t touch /t/x; grep ' /t tmpfs' /proc/mounts | cut -d' ' -f3
""",
        a_txt="ours",
    )
    assert "[stage-1 2/4] ours" in said, said.text
    assert "[stage-1 3/4] theirs" in said
    assert "[stage-1 4/4] tmpfs" in said


def test_a_cache_mount_is_kept_for_the_app_and_nobody_else(nap: Nap, tmp_path: Path) -> None:
    for app, marked, seen in (("one", "1", []), ("one", "2", ["one1"]), ("two", "3", [])):
        step = f"RUN --mount=type=cache,id=shared,target=/c cat /c/*; echo {app}{marked} >/c/f; sync\n"
        said = built(nap, tmp_path, BASE + step, app)
        assert [line for line in said if line.startswith(("one", "two"))] == seen, said.text


@pytest.mark.parametrize("mount", ["type=secret,id=npm", "type=ssh"])
def test_a_secret_that_nobody_gives_is_told_before_the_build(nap: Nap, tmp_path: Path, mount: str) -> None:
    said = built(nap, tmp_path, f"{BASE}RUN --mount={mount} true\n")
    assert said[0].startswith(f"kit: the build failed in the Dockerfile: line 2: RUN --mount={mount.partition(',')[0]}")
    assert "is not allowed: builds have no secrets and no ssh agent" in said[0]


def test_what_this_engine_is_too_old_for_is_named_with_what_would_help(nap: Nap, tmp_path: Path) -> None:
    with engine_at(nap.engine_url) as engine:
        if engine.about().version >= (1, 42):
            pytest.skip("this engine's BuildKit has here-documents")
    said = built(nap, tmp_path, f"{BASE}RUN <<EOF\ntrue\nEOF\n")
    too_old = "line 2: this engine is too old for a here-document"
    assert f"{too_old}, and docker/dockerfile:1, which supports it, cannot be pulled: " in said.text
    assert "COPY --link" in built(nap, tmp_path, f"{BASE}COPY --link Dockerfile /\n").text


def test_a_syntax_that_cannot_be_had_is_done_without(nap: Nap, tmp_path: Path) -> None:
    said = built(nap, tmp_path, f"# syntax=docker/dockerfile:1\n# check=skip=all\n{BASE}RUN echo built\n")
    why = "# syntax=docker/dockerfile:1 is ignored: docker/dockerfile:1 cannot be pulled: "
    assert said[0].startswith(why), said.text
    assert said[-1] == "built"


def test_files_are_copied_with_their_mode_and_owner(nap: Nap, tmp_path: Path) -> None:
    said = built(
        nap,
        tmp_path,
        """\
FROM nap/busybox AS before
COPY a.txt /there
FROM nap/busybox
COPY --chmod=640 --chown=12:34 a.txt /here
COPY --from=before --chown=5 /there /
USER 7
WORKDIR /mine
RUN stat -c '%n %a %u %g' /here /there /mine
""",
        a_txt="x",
    )
    assert "[stage-1 5/5] /here 640 12 34" in said, said.text
    assert "[stage-1 5/5] /there 644 5 5" in said
    assert "[stage-1 5/5] /mine 755 7 0" in said or "[stage-1 5/5] /mine 755 7 7" in said, "the user's, not root's"


def test_arguments_and_the_platform(nap: Nap, tmp_path: Path) -> None:
    said = built(
        nap,
        tmp_path,
        """\
ARG BASE=nap/busybox
FROM --platform=$BUILDPLATFORM $BASE
ARG TARGETARCH
ARG TARGETPLATFORM
ARG GIT_REV
ARG NAP_APP=nobody
ARG OTHER=default
RUN echo "$TARGETARCH $TARGETPLATFORM $GIT_REV $NAP_APP $OTHER"
""",
    )
    machine = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert said[-1] == f"{machine} linux/{machine} 1a2b3c4 kit default", said.text
    foreign = built(nap, tmp_path, "FROM --platform=linux/riscv64 nap/busybox\n")
    assert f"FROM --platform=linux/riscv64: this nap builds only for linux/{machine}" in foreign.text


def test_triggers_run_and_a_stage_that_nothing_needs_does_not(nap: Nap, tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    trigger.write_text(f"{BASE}ONBUILD RUN echo triggered\n")
    nap.docker("build", "--tag", "kit-trigger:1", "--file", str(trigger), str(tmp_path))
    said = built(
        nap, tmp_path, "FROM nap/busybox AS unused\nRUN echo never; exit 1\nFROM kit-trigger:1\nRUN echo built\n"
    )
    assert said[-1].endswith("built"), said.text
    assert any(line.endswith("triggered") for line in said)
    assert "never" not in said.text


def test_a_step_that_was_done_before_says_so(nap: Nap, tmp_path: Path) -> None:
    dockerfile = f"{BASE}RUN echo once >/once\nCOPY a.txt /\n"
    built(nap, tmp_path, dockerfile, a_txt=str(time.time()))
    said = built(nap, tmp_path, dockerfile, a_txt=str(time.time()))
    assert "[2/3] RUN echo once >/once (CACHED)" in said, said.text
    assert "[3/3] COPY a.txt /" in said


def test_a_failure_shows_the_step_its_lines_and_the_status(nap: Nap, tmp_path: Path) -> None:
    said = built(nap, tmp_path, f"{BASE}# why\nRUN echo one; \\\n  echo two >&2; \\\n  exit 3\n")
    assert sorted(said[-8:-6]) == ["one", "two"], "two streams, whose order nobody keeps"
    assert said[-6:-1] == [
        "Dockerfile, lines 3 to 5:",
        "RUN echo one; \\",
        "  echo two >&2; \\",
        "  exit 3",
        "kit: the build failed at [2/2] RUN echo one;   echo two >&2;   exit 3: it exited with status 3",
    ], said.text
    said = built(nap, tmp_path, f"{BASE}COPY nothere /\n")
    assert "kit: the build failed at [2/2] COPY nothere /: " in said.text
    assert '"/nothere" not found' in said.text


def test_the_cache_is_bounded_also_by_builds_that_fail(nap: Nap, tmp_path: Path) -> None:
    def cached(engine: Engine) -> int:
        return sum(each["Size"] for each in engine.api.df()["BuildCache"] if not each["InUse"])

    with settings_of(nap, "cache_size = 20000000"), engine_at(nap.engine_url) as engine:
        for number in range(4):
            built(nap, tmp_path, f"{BASE}RUN head -c 10000000 /dev/urandom >/{number}; sync\nRUN exit 1\n")
            assert cached(engine) <= 20_000_000
        assert cached(engine) > 5_000_000


@contextmanager
def settings_of(nap: Nap, line: str) -> Iterator[None]:
    nap.state.settings_file.write_text(f"[build]\n{line}\n")
    try:
        yield
    finally:
        nap.state.settings_file.unlink()


def test_the_classic_builder_names_what_needs_buildkit(nap: Nap, tmp_path: Path) -> None:
    with settings_of(nap, 'engine = "classic"'):
        for step, what in (
            ("RUN --mount=type=cache,target=/c true", "RUN --mount"),
            ("RUN <<E\ntrue\nE", "a here-document"),
            ("COPY --link Dockerfile /", "COPY --link"),
            ("ARG TARGETARCH", "ARG TARGETARCH"),
        ):
            said = built(nap, tmp_path, f"{BASE}{step}\n")
            assert f"line 2: {what} needs BuildKit, and this nap builds without it" in said[0], said.text
            assert "(build.engine)" in said[1]
        assert "Step 1/3 : FROM nap/busybox" in built(nap, tmp_path, f"{BASE}RUN true\n")


def test_a_build_that_is_cancelled_leaves_nothing_running(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=f"{BASE}RUN echo begun; sleep 4242\n")
    push = pusher.start_push()
    eventually(sleeping, 60, "the step runs")
    started = time.monotonic()
    assert pusher.ssh_command("builds:cancel", pusher.app).returncode == 0
    push.wait(timeout=30)
    eventually(lambda: not sleeping(), 5, "the step has ended")
    assert time.monotonic() - started < 10
    pusher.commit(Dockerfile=HTTPD, index_html="after")
    assert pusher.push().status == 0


def test_a_step_does_not_outlive_its_engine(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=f"{BASE}RUN echo begun; sleep 4242\n")
    push = pusher.start_push()
    eventually(sleeping, 60, "the step runs")
    engine = nap.process("engine")
    os.kill(engine, signal.SIGKILL)
    push.wait(timeout=30)
    assert push.returncode == 1
    eventually(lambda: not sleeping(), 30, "the step has ended")
    eventually(lambda: nap.answers("engine"), 30, "the engine is back")


def test_when_nap_is_taken_down_no_step_goes_on() -> None:
    machine = secrets.token_hex(4)
    top = Path("/sys/fs/cgroup") if Path("/sys/fs/cgroup/cgroup.controllers").exists() else Path("/sys/fs/cgroup/pids")
    group = top / f"nap{machine}" / "buildkit" / "step"
    group.mkdir(parents=True)
    with subprocess.Popen(["sleep", "4242"]) as step:
        (group / "cgroup.procs").write_text(str(step.pid))
        end_steps(machine)
        assert step.wait(timeout=5) == -signal.SIGKILL
    forget_groups(machine)
    assert not (top / f"nap{machine}").exists()


def sleeping() -> bool:
    return any(words == ["sleep", "4242"] for _, _, words in processes())
