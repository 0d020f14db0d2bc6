"""Procfile and app.json: what they say, and each mistake with its place."""

import json
from typing import Any

import pytest

from nap_receiver.errors import NapError
from nap_receiver.health import Check
from nap_receiver.manifest import Manifest, manifest_of

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
        ("web: a\nweb: b", "Procfile: line 2: web is there twice"),
        ("w.b: a", "Procfile: line 1: expected NAME: COMMAND, got 'w.b: a'"),
        ("-web: a", "Procfile: line 1: expected NAME: COMMAND, got '-web: a'"),
        ("web: a\x1b[2J", r"Procfile: line 1: expected NAME: COMMAND, got 'web: a\x1b[2J'"),
        (f"{'w' * 32}: a", f"Procfile: line 1: expected NAME: COMMAND, got '{'w' * 32}: a'"),
        ("", "Procfile: it names no process type"),
        ("release: ./migrate", "Procfile: it names no process type"),
    ],
)
def test_a_mistake_in_the_procfile(procfile: str, mistake: str) -> None:
    with pytest.raises(NapError) as refused:
        read(procfile)
    assert str(refused.value) == f"shop: {mistake}"
    assert refused.value.advice[-1].startswith("Mend it, commit, and push again")


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
    lines = [check.line("8080") for checks in manifest.checks.values() for check in checks]
    assert lines == [
        "startup http 3 5 5 5 8080 /health?a=b",
        "both command 0 0 2 3 ./alive 'a b'",
        "startup uptime 0 5 5 3 9",
    ]
    assert manifest.postdeploy == "./seed"
    assert manifest.ignored == ["addons", "formation.worker.size", "scripts.test"]
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
        (b"", "line 1, column 1: not JSON: expecting value"),
        (b"[" * 100_000, "not JSON that anybody would write: it is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON that anybody would write: a number has too many digits"),
        (b"\xff{}", "not UTF-8: byte 1"),
        ([], "expected an object, got []"),
        ({"formation": []}, "formation: expected an object, got []"),
        ({"formation": {"web": 2}}, "formation.web: expected an object, got 2"),
        ({"formation": {"web": {}}}, "formation.web: quantity is missing"),
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
        (
            {"formation": {"wroker": {"quantity": 1}}},
            "formation.wroker: there is no such process type; there are web, worker",
        ),
        ({"healthchecks": {"web": {}}}, "healthchecks.web: expected a list, got {}"),
        ({"healthchecks": {"db": []}}, "healthchecks.db: there is no such process type; there are web, worker"),
        (
            {"healthchecks": {"web": [{"path": "/"}, {"path": 1}]}},
            "healthchecks.web[1].path: expected text, got 1",
        ),
        (
            {"healthchecks": {"web": [{"pth": "/"}]}},
            "healthchecks.web[0].pth: no such setting; there are type, name, path, port, listening, command, uptime, "
            "initialDelay, timeout, attempts, wait",
        ),
        (
            {"healthchecks": {"web": [{"type": "readiness", "path": "/"}]}},
            'healthchecks.web[0].type: expected "startup" or "liveness", got "readiness"',
        ),
        (
            {"healthchecks": {"web": [{"attempts": 2}]}},
            "healthchecks.web[0]: expected one of path, listening, command, uptime to say what is asked",
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "listening": True}]}},
            "healthchecks.web[0]: expected one of path, listening, command, uptime to say what is asked",
        ),
        (
            {"healthchecks": {"web": [{"path": "health"}]}},
            'healthchecks.web[0].path: expected a path such as /health, got "health"',
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "attempts": 0}]}},
            "healthchecks.web[0].attempts: expected a whole number, 1 or more, got 0",
        ),
        (
            {"healthchecks": {"web": [{"path": "/", "initialDelay": -1}]}},
            "healthchecks.web[0].initialDelay: expected a whole number, 0 or more, got -1",
        ),
        (
            {"healthchecks": {"web": [{"command": ["a", 1]}]}},
            "healthchecks.web[0].command[1]: expected text, got 1",
        ),
        (
            {"healthchecks": {"web": [{"command": ["a\0"]}]}},
            "healthchecks.web[0].command: a command cannot hold a NUL character",
        ),
        (
            {"healthchecks": {"worker": [{"uptime": 3, "type": "liveness"}]}},
            'healthchecks.worker[0].type: uptime can only be asked at the start, got "liveness"',
        ),
        ({"env": {"A": 1}}, "env.A: expected text or an object, got 1"),
        ({"env": {"A": {"value": 1}}}, "env.A.value: expected text, got 1"),
        ({"env": {"A": {"required": "yes"}}}, 'env.A.required: expected true or false, got "yes"'),
        ({"env": {"A": {"generator": "uuid"}}}, 'env.A.generator: expected "secret", got "uuid"'),
        (
            {"env": {"A": {"generate": "secret"}}},
            "env.A.generate: no such setting; there are description, value, required, generator, sync",
        ),
        ({"env": {"1A": ""}}, "env: '1A' cannot be the name of a variable"),
        ({"env": {"PORT": "1"}}, "env: PORT is nap's own to set"),
        ({"env": {"A": "\0"}}, "env: A: a variable cannot hold a NUL character"),
        ({"scripts": []}, "scripts: expected an object, got []"),
        ({"scripts": {"postdeploy": ["a"]}}, 'scripts.postdeploy: expected text, got ["a"]'),
        ({"scripts": {"postdeploy": "a\0"}}, "scripts.postdeploy: a command cannot hold a NUL character"),
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
        "formation": {"web": {"quantity": "two"}, "worker": {"quantity": 101}, "db": {"quantity": 1}},
        "healthchecks": {
            "web": [{"path": "/", "attempts": 0, "wait": -1}, {"pth": "/", "port": 65536}],
            "worker": {},
        },
        "env": {"1A": "", "A": {"value": 1, "required": 2}},
        "scripts": [],
    }
    procfile = refusal("web ./serve\nworker: ./work\nworker: ./work\nrouter: ./route\n", None)
    assert procfile[:-1] == [
        "shop: Procfile: line 1: expected NAME: COMMAND, got 'web ./serve'",
        "shop: Procfile: line 3: worker is there twice",
        "shop: Procfile: line 4: router is what nap calls its own",
        "Give the process type another name.",
    ]
    assert procfile[-1].startswith("Mend them, commit, and push again")
    told = [line.removeprefix("shop: app.json: ") for line in refusal(PROCFILE, document)]
    assert told[:-2] == [
        'formation.web.quantity: expected a whole number, got "two"',
        "formation.worker.quantity: expected a whole number, 100 or less, got 101",
        "formation.db: there is no such process type; there are web, worker",
        "healthchecks.web[0].attempts: expected a whole number, 1 or more, got 0",
        "healthchecks.web[0].wait: expected a whole number, 0 or more, got -1",
        "healthchecks.web[1].pth: no such setting; there are type, name, path, port, listening, command, uptime, "
        "initialDelay, timeout, attempts, wait",
        "healthchecks.web[1].port: expected a whole number, 65535 or less, got 65536",
        "healthchecks.worker: expected a list, got {}",
        "env: '1A' cannot be the name of a variable",
        "Use A to Z, a to z, 0 to 9 and _, and no digit at its beginning.",
        "env.A.value: expected text, got 1",
    ]
    assert told[-2] == "shop: and 2 more"


def test_mistakes_of_both_files_are_told() -> None:
    told = refusal("web ./serve", {"formation": {"worker": {}}, "env": {"PORT": "1"}})
    assert told[:-1] == [
        "shop: Procfile: line 1: expected NAME: COMMAND, got 'web ./serve'",
        "shop: app.json: formation.worker: quantity is missing",
        "shop: app.json: env: PORT is nap's own to set",
    ]


def test_what_app_json_has_twice_is_refused() -> None:
    text = '{"formation": {"web": {"quantity": 2, "quantity": 3}}, "env": {}, "x": [{"y": 1, "y": 1}], "env": {}}'
    assert refusal(PROCFILE, text.encode())[:-1] == [
        "shop: app.json: env: it is there twice",
        "shop: app.json: formation.web.quantity: it is there twice",
        "shop: app.json: x[0].y: it is there twice",
    ]
