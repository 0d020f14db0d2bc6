"""Variables of an app: unchanged in its environment, and nowhere where somebody else reads them."""

import json
import subprocess
import sys

import pytest

from nap_receiver.model.env_file import FORMS, read_env_file
from tests.fleet_apps import pushed
from tests.nap import HTTPD, Nap, Pushed, Pusher, answer, eventually, processes

SECRET = "s3cret-of-the-tests"
VALUES = {
    "PLAIN": SECRET,
    "LINES": f"one\ntwo {SECRET}\n\nfour\n",
    "QUOTES": f"""'single' "double" `back` {SECRET} \\ \\n \\\\""",
    "SIGNS": f"$HOME ${{PATH}} $(id) %h %% %(here)s ; # & | > {SECRET}",
    "LETTERS": f"é ñ 日本 🎉 {SECRET}\t\x01\x1b[31m",
    "PATH": "/bin:/usr/bin",  # means something to what starts it
    "IFS": "abc",
    "HOME": "/home/somebody",
    "docker": "/bin/false",
    "names": "x",
    "name": "y",
    "pair": "z",
    "EMPTY": "",
}


def environment_of(nap: Nap, app: str) -> dict[str, str]:
    """What is in the environment of the instance that runs, as the engine has it."""
    container = nap.docker("ps", "--filter", f"label=nap.app={app}", "--format", "{{.ID}}").split()[0]
    found = json.loads(nap.docker("inspect", "--format", "{{json .Config.Env}}", container))
    return dict(variable.split("=", 1) for variable in found)


def quoted(word: str) -> str:
    """One word for a shell, as someone would write it in an ssh command."""
    return "'" + word.replace("'", "'\\''") + "'"


def test_values_reach_the_app_unchanged_and_are_one_release(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    done = nap.run("config:set", pusher.app, *(f"{name}={value}" for name, value in VALUES.items()))
    assert f"=====> {pusher.app} v2 is live" in done.stdout
    found = environment_of(nap, pusher.app)
    assert {name: found.get(name) for name in VALUES} == VALUES
    assert found["PORT"] == "8080"
    assert answer(done.stdout.split()[-1]) == "one"
    rows = json.loads(pusher.ssh_command("config", pusher.app, "--json").stdout)
    assert {row["name"]: row["value"] for row in rows} == VALUES

    image = f"{nap.settings.registry.address}/{pusher.app}"
    elsewhere = [
        *(" ".join(words) for _, _, words in processes()),
        str(nap.keys("/nap/machines/")),
        *(path.read_text() for path in (nap.state.deploy_logs / pusher.app).iterdir()),
        nap.docker("history", "--no-trunc", f"{image}:{pusher.git('rev-parse', 'HEAD')}"),
        nap.run("releases", pusher.app, "--json").stdout,
        nap.run("releases:info", pusher.app, "--json").stdout,
    ]
    assert not [text for text in elsewhere if SECRET in text]
    assert json.loads(elsewhere[-1])["variables"] == ", ".join(sorted(VALUES))

    pusher.commit(index_html="two")
    pushed(pusher)
    assert environment_of(nap, pusher.app)["LINES"] == VALUES["LINES"], "a deploy keeps them"


def test_a_long_value_from_standard_input(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    value = "é\n" * 21845 + "x"  # 65,536 bytes
    words = pusher.ssh_words("config:set", pusher.app, "LONG", "SHORT=1")
    done = subprocess.run(words, input=value.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert environment_of(nap, pusher.app) | {"LONG": value, "SHORT": "1"} == environment_of(nap, pusher.app)
    assert pusher.ssh_command("config:get", pusher.app, "LONG").stdout == value + "\n"
    longer = subprocess.run(words, input=value.encode() + b"x", capture_output=True, timeout=60)
    assert b" !     LONG: the value has 65537 bytes; the limit is 65536\n" in longer.stderr


def test_a_value_that_is_no_text_is_refused_with_a_hint(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    for words, value in ((["A=1", "B"], b"\xff\n"), (["TYPED='\udcff'"], b"")):
        refused = subprocess.run(
            pusher.ssh_words("config:set", pusher.app, *words), input=value, capture_output=True, timeout=60
        )
        assert refused.returncode == 1
        said = refused.stderr.decode().splitlines()
        name = words[-1].partition("=")[0]
        assert said[0] == f" !     {name}: expected UTF-8, got other bytes"
        assert f"base64 -w0 FILE | … config:set APP {name}" in said[1]
    assert json.loads(pusher.ssh_command("config", pusher.app, "--json").stdout) == []


def test_variables_go_and_come_back_with_a_rollback(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    assert pusher.ssh_command("config:set", pusher.app, "A=1", quoted("B=it's two")).returncode == 0
    assert pusher.ssh_command("config:unset", pusher.app, "A").returncode == 0
    assert environment_of(nap, pusher.app)["B"] == "it's two"
    assert "A" not in environment_of(nap, pusher.app)
    whys = [row["why"] for row in json.loads(nap.run("releases", pusher.app, "--json").stdout)]
    assert whys[:2] == ["Config remove A", "Config add A, B"]
    same = pusher.ssh_command("config:set", pusher.app, quoted("B=it's two"))
    assert same.stdout == f"=====> {pusher.app}: nothing changed\n"
    skipped = pusher.ssh_command("config:unset", pusher.app, "A", "b")
    assert (skipped.returncode, skipped.stdout) == (0, f"=====> {pusher.app}: nothing changed\n")
    assert skipped.stderr.splitlines() == [f" !     {pusher.app} has no variable {name!a}: skipped" for name in "Ab"]
    pusher.ssh_command("rollback", pusher.app, "v2")
    assert environment_of(nap, pusher.app)["A"] == "1"
    pusher.ssh_command("rollback", pusher.app, "v1")
    assert "B" not in environment_of(nap, pusher.app)


def test_variables_before_the_first_release(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD, index_html="one")
    assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    done = pusher.ssh_command("config:set", pusher.app, "EARLY=yes")
    assert done.stdout == f"=====> {pusher.app} has EARLY, for its first release\n"
    pushed(pusher)
    assert environment_of(nap, pusher.app)["EARLY"] == "yes"


def test_values_come_from_files_and_go_to_files_as_they_are(nap: Nap, pusher: Pusher) -> None:
    assert pusher.ssh_command("apps:create", pusher.app).returncode == 0

    def said(*words: str, stdin: str = "") -> tuple[int, list[str]]:
        done = subprocess.run(pusher.ssh_words(*words), input=stdin, text=True, capture_output=True, timeout=60)
        return done.returncode, done.stderr.splitlines()

    left_out = " !     A: removed the newline at the end; --raw keeps it"
    for stdin, options, value, told in (
        ("one\n", [], "one", [left_out]),
        ("one\n\n", [], "one\n", [left_out]),
        ("one\r\n", [], "one", [left_out]),
        ("one", [], "one", []),
        ("one\n", ["--raw"], "one\n", []),
        ("\n", ["--raw"], "\n", []),
    ):
        assert said("config:set", pusher.app, "A", *options, stdin=stdin) == (0, told)
        assert pusher.ssh_command("config:get", pusher.app, "A").stdout == f"{value}\n"
    nothing = [
        " !     no value for A on standard input",
        f" !     To set it empty: config:set {pusher.app} A=",
    ]
    assert said("config:set", pusher.app, "A", stdin="\n") == (1, nothing)

    file = f"# of the tests\nexport B='two\nlines'\nPORT=3000\nC=\"it's ${{HOME}}\"\nSECRET={SECRET}\n"
    assert said("config:import", pusher.app, stdin=file) == (
        0,
        [
            " !     line 4: PORT is set by nap: skipped",
            " !     line 5: C keeps ${…} as written: nap does not expand it",
        ],
    )
    values = {"A": "\n", "B": "two\nlines", "C": "it's ${HOME}", "SECRET": SECRET}
    exported = {form: nap.run("config:export", pusher.app, "--format", form).stdout for form in FORMS}
    assert json.loads(exported["json"]) == values
    assert read_env_file(pusher.ssh_command("config:export", pusher.app).stdout.encode()).values == values
    script = exported["shell"] + f"{sys.executable} -c 'import os, json; print(json.dumps(dict(os.environ)))'"
    shell = json.loads(subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout)
    assert shell | values == shell
    assert said("config:import", pusher.app, stdin="X=1\nsecret words\n") == (
        1,
        [" !     line 2: expected NAME=VALUE, or a quote that ends; nothing was changed"],
    )
    assert said("config:import", pusher.app)[1][0] == " !     no variables on standard input"
    assert nap.run("config:import", pusher.app, stdin=exported["dotenv"]).stdout.endswith("nothing changed\n")
    logs = [path.read_text() for path in (nap.state.deploy_logs / pusher.app).iterdir()]
    assert not [log for log in logs if SECRET in log]
    nap.run("apps:destroy", pusher.app, "--confirm", pusher.app)


def test_a_failed_change_changes_nothing(nap: Nap, pusher: Pusher) -> None:
    start = 'CMD ["sh", "-c", "test -z \\"$BROKEN\\" || exit 7; exec httpd -f -p 8080 -h /www"]'
    pusher.commit(Dockerfile=HTTPD.partition("CMD")[0] + start + "\n", index_html="one")
    before = pushed(pusher)
    refused = pusher.ssh_command("config:set", pusher.app, "BROKEN=yes")
    assert refused.returncode == 1
    assert f"{pusher.app} v2 web.1 exited with status 7" in refused.stdout
    assert answer(before.url) == "one"
    assert json.loads(pusher.ssh_command("config", pusher.app, "--json").stdout) == []
    eventually(lambda: nap.leftovers(pusher.app, 2) == [], 10, "v2 is gone")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("1A=x",), "'1A' is not a valid variable name"),
        (("A-B=x",), "'A-B' is not a valid variable name"),
        (("=x",), "'' is not a valid variable name"),
        (("PORT=1",), "PORT is set by nap"),
        (("NAP_APP=x",), "NAP_APP is set by nap"),
        (("A", "B"), "only one value can come from standard input"),
        (("A=" + "x" * 65537,), "A: the value has 65537 bytes; the limit is 65536"),
    ],
)
def test_what_cannot_be_set_is_refused(nap: Nap, words: tuple[str, ...], why: str) -> None:
    refused = nap.run("config:set", "whatever", *words, ok=False)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (1, f" !     {why}")
