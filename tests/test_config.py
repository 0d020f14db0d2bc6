"""Variables of an app: unchanged in its environment, and nowhere where somebody else reads them."""

import json
import random
import subprocess
import urllib.request

import pytest

from tests.fleet_apps import pushed
from tests.machine import HTTPD, ROOT, Nap, Pushed, Pusher, answer, eventually, processes

pytestmark = pytest.mark.machine

SECRET = "s3cret-of-the-tests"
GIVES_BACK = """\
#!/bin/sh
printf 'Content-Type: application/octet-stream\\n\\n'
eval "printf '%s\\n' \\"\\$$QUERY_STRING\\""
"""
ODD = HTTPD.replace(
    "CMD [",
    """RUN chmod +x /www/cgi-bin/value
ENTRYPOINT ["env", "WORD=of the image"]
CMD [""",
)
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
        *(path.read_text() for path in nap.state.units.iterdir()),
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
    assert b" !     LONG: the value has 65537 bytes, and 65536 is the most\n" in longer.stderr


def test_values_that_are_no_text_reach_the_app_too(nap: Nap, pusher: Pusher) -> None:
    (pusher.repository / "cgi-bin").mkdir()
    (pusher.repository / "cgi-bin" / "value").write_text(GIVES_BACK)
    pusher.commit(Dockerfile=ODD)
    pushed(pusher)
    every = bytes(range(1, 256))
    long = random.Random(1).randbytes(1 << 16).replace(b"\0", b"\xff")
    for words, value in ((["EVERY", "A=é"], every), (["LONG", "ENDS=x"], long)):
        done = subprocess.run(
            pusher.ssh_words("config:set", pusher.app, *words), input=value, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert subprocess.run(
            pusher.ssh_words("config:get", pusher.app, words[0]), capture_output=True, timeout=60, check=True
        ).stdout == (value + b"\n")
    typed = pusher.ssh_words("config:set", pusher.app, "TYPED='\udcfft\n'")
    assert subprocess.run(typed, capture_output=True, timeout=60).returncode == 0
    values = {"EVERY": every, "LONG": long, "A": "é".encode(), "TYPED": b"\xfft\n", "WORD": b"of the image"}

    def is_told() -> bool:
        (address,) = nap.keys(f"/services/{pusher.app}/").values()
        assert isinstance(address, dict)
        for name, value in values.items():
            url = f"http://{address['host']}:{address['port']}/cgi-bin/value?{name}"
            with urllib.request.urlopen(url, timeout=10) as reply:
                assert reply.read() == value + b"\n", name
        return True

    assert is_told(), "by the image's own command"
    pusher.commit(Procfile='web: httpd -f -p 8080 -h /www\nworker: sleep 1000\nrelease: test -n "$TYPED"\n')
    pushed(pusher)
    assert is_told(), "by one of its Procfile"
    names = nap.docker("ps", "--filter", f"label=nap.app={pusher.app}", "--format", "{{.Names}}").split()
    (worker,) = [each for each in names if ".worker." in each]
    own = "tr '\\0' '\\n' </proc/$(pidof sleep)/environ | grep -a ^NAP_ | cut -d= -f1 | sort"
    assert nap.docker("exec", worker, "sh", "-c", own).split() == ["NAP_APP", "NAP_PROCESS", "NAP_RELEASE"]
    ran = subprocess.run(
        pusher.ssh_words("run", pusher.app, "sh", "-c", quoted('printf %s "$TYPED"')),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert ran.stdout == b"\xfft\n", ran.stderr
    listed = {
        row["name"]: row["value"] for row in json.loads(pusher.ssh_command("config", pusher.app, "--json").stdout)
    }
    assert (listed["A"], listed["EVERY"]) == ("é", None)
    told = pusher.ssh_command("config", pusher.app).stdout
    assert "EVERY   (255 bytes that are not UTF-8: config:get prints them)" in told
    assert "\\0377" not in "".join(path.read_text() for path in nap.state.units.iterdir())


def test_an_image_without_a_shell_gets_no_such_value(nap: Nap, pusher: Pusher) -> None:
    pusher.commit(Dockerfile=HTTPD.replace("CMD", "RUN rm /bin/sh\nCMD"))
    pushed(pusher)
    refused = pusher.ssh_words("config:set", pusher.app, "A=1", "B='\udcff'")
    done = subprocess.run(refused, capture_output=True, timeout=60)
    assert done.returncode == 1
    why = "its image has no /bin/sh, without which no variable can be other than UTF-8, as are: B"
    assert f" !     {pusher.app} v2 web.1 could not start: {why}\n" in done.stdout.decode()
    assert nap.docker("ps", "--all", "--quiet", "--filter", "status=created") == ""
    assert len(pusher.announcements()) == 1


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_a_container_restores_values_in_any_shell(shell: str) -> None:
    script = (ROOT / "unit_templates" / "configure.sh").read_text()
    restore = script.partition("restore='")[2].partition("\n\n")[0].removesuffix("'")
    pieces = [bytes(range(1, 256)), b"\n\n", "é".encode()[:1]]  # the last has bash wait for the rest of a letter
    given = {
        f"NAP_BYTES_{number}_value": "".join(f"\\0{byte:03o}" for byte in piece)
        for number, piece in enumerate(pieces, 1)
    }
    words = [*shell.split(), "-c", restore, "sh", "env", "-0"]
    environment = {"PATH": "/bin:/usr/bin", "LANG": "C.UTF-8", "NAP_BYTES": " value", "NAP_APP": "x", **given}
    found = subprocess.run(words, env=environment, capture_output=True, check=True).stdout.split(b"\0")
    assert b"value=" + b"".join(pieces) in found
    assert {each.partition(b"=")[0] for each in found} - {b"PWD", b"SHLVL", b"_", b"OLDPWD"} == {
        b"PATH",
        b"LANG",
        b"NAP_APP",
        b"value",
        b"",
    }


def test_variables_go_and_come_back_with_a_rollback(nap: Nap, pusher: Pusher, live: Pushed) -> None:
    assert pusher.ssh_command("config:set", pusher.app, "A=1", quoted("B=it's two")).returncode == 0
    assert pusher.ssh_command("config:unset", pusher.app, "A").returncode == 0
    assert environment_of(nap, pusher.app)["B"] == "it's two"
    assert "A" not in environment_of(nap, pusher.app)
    whys = [row["why"] for row in json.loads(nap.run("releases", pusher.app, "--json").stdout)]
    assert whys[:2] == ["Config remove A", "Config add A, B"]
    same = pusher.ssh_command("config:set", pusher.app, quoted("B=it's two"))
    assert same.stdout == f"=====> {pusher.app}: nothing changed\n"
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
        (("1A=x",), "'1A' cannot be the name of a variable"),
        (("A-B=x",), "'A-B' cannot be the name of a variable"),
        (("=x",), "'' cannot be the name of a variable"),
        (("PORT=1",), "PORT is nap's own to set"),
        (("NAP_APP=x",), "NAP_APP is nap's own to set"),
        (("LD_PRELOAD=/x.so",), "LD_PRELOAD would steer the engine's own programs on its machine"),
        (("DOCKER_HOST=x",), "DOCKER_HOST would steer the engine's own programs on its machine"),
        (("A", "B"), "only one value can come from standard input"),
        (("A=" + "x" * 65537,), "A: the value has 65537 bytes, and 65536 is the most"),
    ],
)
def test_what_cannot_be_set_is_refused(nap: Nap, words: tuple[str, ...], why: str) -> None:
    refused = nap.run("config:set", "whatever", *words, ok=False)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (1, f" !     {why}")
