"""A pusher who leaves never blocks the deploy, and all of its output is kept."""

import os
import signal
import subprocess
import time

from tests.nap import HTTPD, Nap, Pusher, eventually

# 4 MB of output, and some time in which the pusher is gone.
LOUD = HTTPD.replace(
    "EXPOSE", "RUN echo begin; sleep 1; yes 'much output from a build' | head -n 160000; echo end\nEXPOSE"
)


def loud_push(pusher: Pusher) -> "subprocess.Popen[str]":
    """A push whose build has just begun to be loud."""
    pusher.commit(Dockerfile=LOUD)
    process = pusher.start_push()
    assert process.stdout
    for line in process.stdout:
        if "begin" in line and "RUN" not in line:
            break
    return process


def test_pusher_who_disconnects_does_not_block_the_deploy(nap: Nap, pusher: Pusher) -> None:
    process = loud_push(pusher)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    eventually(pusher.announcements, 60, "deployed all the same")
    (log,) = (nap.state.deploy_logs / pusher.app).iterdir()
    eventually(lambda: f"=====> {pusher.app} v1 is live" in log.read_text(), 10, "the log is whole")
    said = log.read_text()
    assert said.count("much output from a build") >= 160000 or "[output clipped, log limit" in said


def test_pusher_who_stops_reading_does_not_block_the_deploy(nap: Nap, pusher: Pusher) -> None:
    process = loud_push(pusher)
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        eventually(pusher.announcements, 60, "deployed all the same")
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said[-2000:]


def test_silent_build_is_not_silence(pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE", "RUN sleep 13\nEXPOSE"))
    process = pusher.start_push()
    assert process.stdout
    last, longest = time.monotonic(), 0.0
    for _ in process.stdout:
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert process.wait(timeout=10) == 0
    assert 9 < longest < 12


def test_nothing_a_build_prints_reaches_the_terminal_as_control(pusher: Pusher) -> None:
    loud = r"printf '\033[31mred\033[0m \033]0;title\007 10%%\r50%%\r100%%\n\302\233 c1 \342\200\256 bidi \377 bad\n'"
    pusher.commit(Dockerfile=HTTPD.replace("EXPOSE", f"RUN {loud}\nEXPOSE"))
    pushed = pusher.push()
    assert pushed.status == 0, pushed.text
    assert "       100%" in pushed.lines
    assert all(character.isprintable() for line in pushed.lines for character in line)
