"""Procfile and app.json: what they say, and each mistake with its place."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.engine.container import asked_by
from nap_receiver.model.health import Check
from nap_receiver.model.manifest import Manifest, _mistake, manifest_of

PROCFILE = "web: ./serve --port $PORT\n\n# in the background\nworker:  ./work\n"


def read(procfile: str | None = None, document: Any = None) -> Manifest:
    files = {}
    if procfile is not None:
        files["Procfile"] = procfile.encode()
    if document is not None:
        files["app.json"] = document if isinstance(document, bytes) else json.dumps(document).encode()
    return manifest_of("shop", files)


def test_neither_is_there() -> None:
    manifest = read()
    assert manifest.commands == {"web": ""}
    assert manifest.formation({}) == {"web": 1}
    assert manifest.unset("shop", {}) == {}


def test_a_procfile_names_process_types() -> None:
    manifest = read(PROCFILE + "release: ./migrate\r\n")
    assert manifest.commands == {"web": "./serve --port $PORT", "worker": "./work"}
    assert manifest.release_command == "./migrate"
    assert manifest.formation({"worker": 3, "gone": 2}) == {"web": 1, "worker": 3}


@pytest.mark.parametrize(
    ("procfile", "mistake"),
    [
        ("web ./serve", "Procfile: line 1: expected NAME: COMMAND, got 'web ./serve'"),
        ("\nweb:   \n", "Procfile: line 2: expected NAME: COMMAND, got 'web:'"),
        ("web: a\nweb: b", "Procfile: line 2: web is defined twice"),
        ("w.b: a", "Procfile: line 1: expected NAME: COMMAND, got 'w.b: a'"),
        ("-web: a", "Procfile: line 1: expected NAME: COMMAND, got '-web: a'"),
        ("web: a\x1b[2J", r"Procfile: line 1: expected NAME: COMMAND, got 'web: a\x1b[2J'"),
        (f"{'w' * 32}: a", f"Procfile: line 1: expected NAME: COMMAND, got '{'w' * 32}: a'"),
    ],
)
def test_a_mistake_in_the_procfile(procfile: str, mistake: str) -> None:
    with pytest.raises(NapError) as refused:
        read(procfile)
    assert str(refused.value) == f"shop: {mistake}"
    assert refused.value.advice[-1].startswith("Fix it, commit, and push again")


def test_a_procfile_that_is_no_text() -> None:
    with pytest.raises(NapError, match=r"^shop: Procfile: not UTF-8: byte 6$"):
        manifest_of("shop", {"Procfile": b"web: \xff"})


def test_app_json_says_counts_checks_variables_and_scripts() -> None:
    manifest = read(
        PROCFILE,
        {
            "name": "Shop",
            "formation": {"worker": {"quantity": 2, "size": "large"}},
            "healthchecks": {
                "web": [{"type": "startup", "name": "up", "path": "/health?a=b", "initialDelay": 3, "attempts": 5}],
                "worker": [{"command": ["./alive", "a b"], "timeout": 2, "wait": 0}, {"uptime": 9}],
            },
            "env": {"A": "1", "B": {"value": "2", "description": "Two"}, "C": {"generator": "secret"}},
            "scripts": {"postdeploy": "./seed", "test": "./test"},
            "addons": [],
        },
    )
    assert manifest.formation({}) == {"web": 1, "worker": 2}
    assert manifest.checks["web"] == [
        Check(type="startup", name="up", path="/health?a=b", initial_delay=3, attempts=5),
    ]
    checks = [check for checks in manifest.checks.values() for check in checks]
    assert [(check.line(7, "8080"), asked_by(check, ""), check.shown("8080")) for check in checks] == [
        ("7 startup http 3 5 5 5 8080", "/health?a=b", "http 8080 /health?a=b"),
        (
            "7 both command 0 0 2 3",
            {"Cmd": ["./alive", "a b"], "AttachStdout": True, "AttachStderr": True},
            "command ./alive 'a b'",
        ),
        ("7 startup uptime 0 5 5 3 9", None, "uptime 9"),
    ]
    assert manifest.postdeploy == "./seed"
    assert manifest.ignored == ["addons", "formation.worker.size", "scripts.test"]
    assert manifest.warnings == []
    values = manifest.unset("shop", {"A": "mine"})
    assert values["B"] == "2"
    assert "A" not in values
    assert len(values["C"]) == 64
    assert values["C"] != manifest.unset("shop", {})["C"]


def test_required_variables_that_are_not_set() -> None:
    manifest = read(None, {"env": {"URL": {"required": True}, "KEY": {"description": "?"}, "X": {"required": False}}})
    assert manifest.unset("shop", {"URL": "u", "KEY": ""}) == {}
    with pytest.raises(NapError) as refused:
        manifest.unset("shop", {})
    assert str(refused.value) == "shop: app.json: env.URL: required, and not set; nor are KEY"
    assert refused.value.advice[0] == "Set what is missing, then push again: config:set shop URL=… KEY=…"


@pytest.mark.parametrize(
    ("document", "mistake"),
    [
        (b"{\n  'a': 1}", "line 2, column 3: not JSON: expecting property name enclosed in double quotes"),
        (b"[" * 100_000, "not valid JSON for nap: it is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON for nap: a number has too many digits"),
        (b"\xff{}", "not UTF-8: byte 1"),
        ([], "expected an object, got []"),
        ({"formation": []}, "formation: expected an object, got []"),
        ({"formation": {"web": []}}, "formation.web.quantity: expected a whole number, got []"),
        ({"formation": {"web": {"quantity": "two"}}}, 'formation.web.quantity: expected a whole number, got "two"'),
        ({"formation": {"web": {"quantity": 1.5}}}, "formation.web.quantity: expected a whole number, got 1.5"),
        ({"formation": {"web": {"quantity": True}}}, "formation.web.quantity: expected a whole number, got true"),
        (
            {"formation": {"web": {"quantity": -1}}},
            "formation.web.quantity: expected a whole number, 0 or more, got -1",
        ),
        (
            {"formation": {"web": {"quantity": 101}}},
            "formation.web.quantity: expected a whole number, 100 or less, got 101",
        ),
        ({"healthchecks": {"web": {}}}, "healthchecks.web: expected a list, got {}"),
        (
            {"healthchecks": {"web": [{}] * 21}},
            f"healthchecks.web: expected a list of at most 20 entries, got {json.dumps([{}] * 21)[:80]}",
        ),
        (
            {"healthchecks": {"web": [{"path": "/"}, {"path": 1}]}},
            "healthchecks.web[1].path: expected text, got 1",
        ),
        (
            {"healthchecks": {"web": [{"type": "ready", "path": "/"}]}},
            'healthchecks.web[0].type: expected "startup", "readiness" or "liveness", got "ready"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "scheme": "ftp"}]}},
            'healthchecks.web[0].scheme: expected "http" or "https", got "ftp"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "content": "x" * 4097}]}},
            f'healthchecks.web[0].content: expected text of at most 4096 characters, got "{"x" * 79}',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "content": "\0"}]}},
            "healthchecks.web[0].content: a NUL character is not possible",
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "httpHeaders": [{"name": "A"}, {"value": "b"}]}]}},
            "healthchecks.web[0].httpHeaders[1]: name is missing",
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "httpHeaders": [{"name": "A: b", "value": "c"}]}]}},
            'healthchecks.web[0].httpHeaders[0].name: expected the name of a header, got "A: b"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "httpHeaders": [{"name": "A", "value": "c\r\nB: d"}]}]}},
            'healthchecks.web[0].httpHeaders[0].value: a header cannot contain control characters, got "c\\r\\nB: d"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "listening": True}]}},
            "healthchecks.web[0]: expected one of path, listening, command, uptime to choose the kind of check",
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "onFailure": {"url": "file:///etc/passwd"}}]}},
            'healthchecks.web[0].onFailure.url: expected http://… or https://…, got "file:///etc/passwd"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/a\nb"}]}},
            'healthchecks.web[0].path: expected a path such as /health, got "/a\\nb"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "wait": 3601}]}},
            "healthchecks.web[0].wait: expected a whole number, 3600 or less, got 3601",
        ),
        (
            {"healthchecks": {"web": [{"command": ["a", 1]}]}},
            "healthchecks.web[0].command[1]: expected text, got 1",
        ),
        (
            {"healthchecks": {"web": [{"command": ["a\0"]}]}},
            "healthchecks.web[0].command: a NUL character is not possible",
        ),
        ({"env": {"A": [1]}}, "env.A.value: expected text, got [1]"),
        ({"env": {"A": {"value": {}}}}, "env.A.value: expected text, got {}"),
        ({"env": {"A": {"required": "yes"}}}, 'env.A.required: expected true or false, got "yes"'),
        ({"env": {"1A": ""}}, "env: '1A' is not a valid variable name"),
        ({"env": {"A": "\0"}}, "env: A: a variable cannot hold a NUL character"),
        ({"scripts": []}, "scripts: expected an object, got []"),
        ({"scripts": {"postdeploy": ["a"]}}, 'scripts.postdeploy: expected text, got ["a"]'),
        ({"scripts": {"postdeploy": "a\0"}}, "scripts.postdeploy: a command cannot contain a NUL character"),
    ],
)
def test_a_mistake_in_app_json(document: Any, mistake: str) -> None:
    with pytest.raises(NapError) as refused:
        read(PROCFILE, document)
    assert str(refused.value) == f"shop: app.json: {mistake}"


def refusal(procfile: str, document: Any) -> list[str]:
    """What the pusher reads."""
    with pytest.raises(NapError) as refused:
        read(procfile, document)
    return [str(refused.value), *refused.value.advice]


def test_all_mistakes_are_told_at_once() -> None:
    document = {
        "formation": {"web": {"quantity": "two"}, "worker": {"quantity": 101}},
        "healthchecks": {
            "web": [{"path": "/", "attempts": [], "wait": 3601}, {"path": 1, "port": 65536}],
            "worker": {},
        },
        "env": {"1A": "", "A": {"value": [], "required": 2}, "B": []},
        "scripts": [],
    }
    procfile = refusal("web ./serve\nworker: ./work\nworker: ./work\nrouter: ./route\n", None)
    assert procfile[:-1] == [
        "shop: Procfile: line 1: expected NAME: COMMAND, got 'web ./serve'",
        "shop: Procfile: line 3: worker is defined twice",
        "shop: Procfile: line 4: nap uses the name router itself",
        "Give the process type another name.",
    ]
    assert procfile[-1].startswith("Fix them, commit, and push again")
    told = [line.removeprefix("shop: app.json: ") for line in refusal(PROCFILE, document)]
    assert told[:-2] == [
        'formation.web.quantity: expected a whole number, got "two"',
        "formation.worker.quantity: expected a whole number, 100 or less, got 101",
        "healthchecks.web[0].attempts: expected a whole number, got []",
        "healthchecks.web[0].wait: expected a whole number, 3600 or less, got 3601",
        "healthchecks.web[1].path: expected text, got 1",
        "healthchecks.web[1].port: expected a whole number, 65535 or less, got 65536",
        "healthchecks.worker: expected a list, got {}",
        "env: '1A' is not a valid variable name",
        "Use A to Z, a to z, 0 to 9 and _, and no digit at its beginning.",
        "env.A.value: expected text, got []",
        "env.A.required: expected true or false, got 2",
    ]
    assert told[-2] == "shop: and 2 more"


def test_mistakes_of_both_files_are_told() -> None:
    told = refusal("web ./serve", {"formation": {"worker": {"quantity": -1}}, "env": {"A": []}})
    assert told[:-1] == [
        "shop: Procfile: line 1: expected NAME: COMMAND, got 'web ./serve'",
        "shop: app.json: formation.worker.quantity: expected a whole number, 0 or more, got -1",
        "shop: app.json: env.A.value: expected text, got []",
    ]


def test_comments_and_last_commas_are_taken() -> None:
    text = """// The shop
    {
        "formation": {"web": {"quantity": 2,},}, /* more
        than one */
        "env": {"URL": "http://x//y /* z */", "LIST": "[1,]",}, // all of them
    }
    """
    manifest = read(PROCFILE, text.encode())
    assert manifest.quantities == {"web": 2}
    assert {name: each.value for name, each in manifest.variables.items()} == {
        "URL": "http://x//y /* z */",
        "LIST": "[1,]",
    }
    told = refusal(PROCFILE, b'{\n  // first\n  /* second */ "a": b\n}')
    assert told[0] == "shop: app.json: line 3, column 21: not JSON: expecting value"


def test_other_spellings_are_taken() -> None:
    document = {
        "formation": {"web": 2, "worker": {"quantity": "3"}},
        "healthchecks": {
            "web": [
                {"path": "health", "attempts": 0, "timeout": -1, "wait": "2", "description": "Up?", "name": None},
                {"command": "./alive | grep yes", "port": 0},
                {"content": "Hello", "scheme": "HTTPS", "port": 8443},
                {"name": "runs"},
            ],
            "worker": None,
        },
        "env": {"A": 1, "B": True, "C": 1.5, "D": {"value": 2}, "E": {"generator": None, "required": "false"}},
        "scripts": None,
    }
    manifest = read(PROCFILE, document)
    assert manifest.quantities == {"web": 2, "worker": 3}
    assert manifest.checks == {
        "web": [
            Check(path="/health", wait=2),
            Check(command=["/bin/sh", "-c", "./alive | grep yes"]),
            Check(path="/", content="Hello", scheme="https", port=8443),
            Check(name="runs", uptime=5),
        ]
    }
    assert manifest.unset("shop", {}) == {"A": "1", "B": "true", "C": "1.5", "D": "2"}
    assert manifest.ignored == []
    for nothing in (b"", b" \n", b"{}", b"\xef\xbb\xbf{}\r\n"):
        assert read(PROCFILE, nothing).commands == read(PROCFILE).commands


def test_what_means_nothing_here_is_named_and_skipped() -> None:
    document = {
        "cron": [{"command": "./tidy", "schedule": "@daily"}],
        "buildpacks": [{"url": "heroku/python"}],
        "formation": {"wroker": {"quantity": 1}, "web": {"max_parallel": 1, "autoscaling": {}, "service": {}}},
        "healthchecks": {
            "db": [],
            "web": [
                {"path": "/", "pth": "/", "onFailure": {"url": "https://example.org", "command": ["./tell"]}},
                {"uptime": 3, "type": "liveness"},
            ],
        },
        "env": {"PORT": "1", "A": {"generator": "uuid", "value": "x", "example": "y"}},
        "scripts": {"dokku": {"predeploy": "./a", "postdeploy": "./b", "other": "./c"}, "pr-predestroy": "./d"},
    }
    manifest = read(PROCFILE, document)
    assert manifest.ignored == [
        "cron",
        "buildpacks",
        "formation.wroker (no such process type)",
        "formation.web.max_parallel",
        "formation.web.autoscaling",
        "formation.web.service",
        "healthchecks.db (no such process type)",
        "healthchecks.web[0].pth",
        "healthchecks.web[1] (uptime is asked at the start only)",
        "env.PORT",
        "env.A.example",
        "env.A.generator",
        "scripts.pr-predestroy",
        "scripts.dokku.other",
    ]
    assert [check.failure_command for check in manifest.checks["web"]] == [["./tell"]]
    assert manifest.unset("shop", {}) == {"A": "x"}
    assert (manifest.before_each, manifest.after_each) == ("./a", "./b")


def test_a_variable_may_be_set_by_each_deploy() -> None:
    manifest = read(None, {"env": {"A": {"value": "new", "sync": True}, "B": "new"}})
    assert manifest.unset("shop", {"A": "old", "B": "old"}) == {"A": "new"}


@pytest.mark.parametrize("procfile", ["", "# nothing yet\n", "release: ./migrate"])
def test_a_procfile_without_process_types_leaves_the_images_own_command_to_web(procfile: str) -> None:
    assert read(procfile).commands == {"web": ""}


def test_process_types_that_look_like_web_or_release_are_named() -> None:
    manifest = read("Web: ./serve\nRELEASE: ./migrate\nworker: ./work\n")
    assert set(manifest.commands) == {"Web", "RELEASE", "worker"}
    assert manifest.warnings == [
        "Procfile: Web is not the process type web, so nothing answers requests; write web: …",
        "Procfile: RELEASE is not the process type release, so it runs all the time; write release: …",
    ]
    assert read("web: ./serve\nWEB: ./serve\n").warnings == []


def test_what_app_json_has_twice_is_refused() -> None:
    text = '{"formation": {"web": {"quantity": 2, "quantity": 3}}, "env": {}, "x": [{"y": 1, "y": 1}], "env": {}}'
    assert refusal(PROCFILE, text.encode())[:-1] == [
        "shop: app.json: env is defined twice",
        "shop: app.json: formation.web.quantity is defined twice",
        "shop: app.json: x[0].y is defined twice",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (r'{"name": "\ud800"}', r"\ud800 is half a character; the other half is missing"),
        (r'{"env": {"A": "x\udc00"}}', r"\udc00 is half a character; the other half is missing"),
        (r'{"\udfff": 1}', r"\udfff is half a character; the other half is missing"),
    ],
)
def test_odd_text_in_app_json_is_refused(text: str, mistake: str) -> None:
    with pytest.raises(NapError) as refused:
        read(PROCFILE, text.encode())
    assert str(refused.value).startswith(f"shop: app.json: {mistake}")
    assert read(PROCFILE, rb'{"env": {"A": "\ud83d\ude00"}}').variables["A"].value == "\U0001f600"


NUMBERS = range(60_000)
LONG = "k" * 400_000


@pytest.mark.parametrize(
    ("procfile", "document"),
    [
        ("x\n" * 500_000, None),
        ("".join(f"p{number}: x\n" for number in NUMBERS), None),
        (None, {"env": {"A": {str(number): 1 for number in NUMBERS}}}),
        (None, {"env": {f"V{number}": 1 for number in NUMBERS}}),
        (None, {"formation": {f"p{number}": {} for number in NUMBERS}}),
        (None, {str(number): 1 for number in NUMBERS}),
        (None, ("{" + ", ".join(f'"{number % 30_000}": 1' for number in NUMBERS) + "}").encode()),
        (None, {"healthchecks": {"web": [{"pth": "/"}] * 40_000}}),
        (None, {LONG: [1] * 100_000}),
        (None, {"formation": {LONG: {str(number): 1 for number in NUMBERS}}}),
        (None, b"[" * 500_000),
        (None, b'{"a":' * 100_000),
    ],
    ids=range(12),
)
def test_megabyte_of_mistakes_is_read_in_time(procfile: str | None, document: Any) -> None:
    started = time.thread_time()
    with suppress(NapError):
        read(procfile, document).unset("shop", {})
    assert time.thread_time() - started < 30, "0.3 s, more beside others; minutes where each were compared with each"


def test_a_complaint_of_an_unknown_form_is_shown_as_it_is() -> None:
    assert (
        _mistake("Something new", "$.formation", "app.json", {"formation": {}}) == "app.json.formation: Something new"
    )
