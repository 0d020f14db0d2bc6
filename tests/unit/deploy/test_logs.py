"""Lines that instances print: read, merged and chosen."""

import json
import re
from pathlib import Path

import click
import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import load
from nap_receiver.deploy.logs import merged
from nap_receiver.frontends import cli  # noqa: F401 -- it puts all commands into the table
from nap_receiver.frontends.commands.table import nap as nap_command
from nap_receiver.schedulers.container_logs import _stamp
from nap_receiver.schedulers.journal_logs import _journal_entry
from nap_receiver.schedulers.log_source import Line, Wanted


def test_lines_are_merged_by_time_and_the_last_are_kept() -> None:
    web, worker = (
        [Line(_stamp(at), label, "") for at in ats] for label, ats in (("web.1", "148"), ("worker.1", "2359"))
    )
    assert [line.at[0] for line in merged([*web, *worker], 5)] == ["3", "4", "5", "8", "9"]
    assert merged([*web, *worker], 0) == []
    line = Line(_stamp("2026-11-25T01:02:03.1234567Z"), "web.1", "hi")
    assert line.at == "2026-11-25T01:02:03.123456700Z"
    assert str(line) == "2026-11-25T01:02:03.123456Z web.1: hi"


@pytest.mark.parametrize(
    ("wanted", "units"),
    [
        (Wanted("hello"), ["hello.v3.web.1", "hello.v3.web.12", "hello.v4.worker.1"]),
        (Wanted("hello", "v3"), ["hello.v3.web.1", "hello.v3.web.12"]),
        (Wanted("hello", "", "web.1"), ["hello.v3.web.1"]),
        (Wanted("hello", "", "worker"), ["hello.v4.worker.1"]),
    ],
)
def test_instances_are_chosen(wanted: Wanted, units: list[str]) -> None:
    there = ["hello.v3.web.1", "hello.v3.web.12", "hello.v4.worker.1", "hello-2.v3.web.1", "hell"]
    there += ["hello.v3.web.1-discovery"]
    assert [unit for unit in there if wanted.label(unit)] == units


def test_entries_of_a_journal() -> None:
    entry = {"__CURSOR": "s=1", "__REALTIME_TIMESTAMP": "1764032523000042", "_SYSTEMD_UNIT": "hello.v3.web.1.service"}
    there = ("s=1", "hello.v3.web.1", "2025-11-25T01:02:03.000042000Z")
    assert _journal_entry(json.dumps(entry | {"MESSAGE": "\x1b[1mhi"})) == (*there, "hi")
    assert _journal_entry(json.dumps(entry | {"MESSAGE": list(b"hi\xff")})) == (*there, "hi\ufffd")
    for none in ("", "-- No entries --", "{}", json.dumps(entry | {"MESSAGE": None}), "[]"):
        assert _journal_entry(none) is None


def test_where_journals_are_read_is_checked(tmp_path: Path) -> None:
    for good in ("", "ssh://{address}", "ssh://nap@{address}:2222"):
        assert load(State(tmp_path), {"NAP_FLEET_LOGS": good}).settings.fleet.logs == good
    for bad in ("ssh://root@10.0.0.11", "-oProxyCommand=x", "ssh://-x@y@{address}", "tcp://{address}"):
        with pytest.raises(NapError, match=r'expected where to log in, such as "ssh://root@\{address\}"'):
            load(State(tmp_path), {"NAP_FLEET_LOGS": bad})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-n", "x"], "expected a number of lines from 0 to 10000, got 'x'"),
        (["-n", "10001"], "expected a number of lines from 0 to 10000, got '10001'"),
        (["-p", "web.x"], "expected a process such as web or web.1, got 'web.x'"),
        (["-p", "../x"], "expected a process such as web or web.1, got '../x'"),
        (["--release", "x"], "expected a release such as v3, got 'x'"),
    ],
)
def test_bad_values_are_refused(words: list[str], why: str) -> None:
    with pytest.raises(click.UsageError, match=f"^{re.escape(why)}$"):
        nap_command.main(["logs", "hello", *words], standalone_mode=False)
