"""What versions of etcdctl print, as recorded from them, is read."""

from pathlib import Path

import pytest

from nap_receiver.core.settings import EtcdSettings
from nap_receiver.store.etcdctl import Entry, read

RECORDED = """\
{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":3,"raft_term":2},\
"succeeded":true,"responses":[\
{"Response":{"RANGE":{"header":{"revision":3},"kvs":\
[{"key":"L2E=","create_revision":2,"mod_revision":2,"version":1,"value":"MQ=="}],"count":1}}},\
{"Response":{"RANGE":{"header":{"revision":3},"kvs":\
[{"key":"L2IvYw==","create_revision":3,"mod_revision":3,"version":1,"value":"Mg=="}],"count":1}}}]}
"""


@pytest.mark.parametrize(("version", "name"), [("3.4.23", "ResponseRange"), ("3.5.16", "response_range")])
def test_answer_of_each_version_is_read(
    version: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "etcdctl"
    program.write_text(f"#!/bin/sh\ncat >/dev/null\ncat <<'END'\n{RECORDED.replace('RANGE', name)}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert read(EtcdSettings(), ["/a", "/b/"]) == ({"/a": Entry("/a", 1, 2), "/b/c": Entry("/b/c", 2, 3)}, 3), version
