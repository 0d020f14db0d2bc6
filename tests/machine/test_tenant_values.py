"""What a tenant chooses is data: no program on the host gets it as a variable, an argument or a file name, or runs it.

A tenant sets every variable that the programs heed which nap runs, to where programs of the tenant's own lie, and does
all that makes nap start something. Those programs would leave a mark.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from nap_receiver.store.ledger import Ledger
from tests.nap import Nap, Pusher, eventually

MARK = "tenants-own-choice"

PROGRAMS = (
    "base64 caddy curl cut dash date docker docker-credential-own docker-credential-pass dockerd env etcdctl git "
    "git-remote-https grep nc perl python python3 sed setpriv setsid sh sleep sort ssh tr"
)

LISTS = "PATH LD_LIBRARY_PATH GIT_EXEC_PATH PYTHONPATH PERL5LIB GCONV_PATH LOCPATH NLSPATH MANPATH CDPATH GOPATH TZDIR"
FOLDERS = (
    "HOME DOCKER_CONFIG DOCKER_CERT_PATH XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR CURL_HOME TMPDIR PYTHONHOME "
    "SSL_CERT_DIR GIT_DIR GIT_TEMPLATE_DIR GIT_OBJECT_DIRECTORY GNUPGHOME GOROOT SSL_DIR"
)
FILES = (
    "LD_PRELOAD LD_AUDIT LD_PROFILE ENV BASH_ENV GIT_SSH GIT_SSH_COMMAND GIT_ASKPASS GIT_PROXY_COMMAND GIT_PAGER PAGER "
    "GIT_EDITOR EDITOR GIT_EXTERNAL_DIFF GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_TRACE GIT_TRACE2_EVENT SSH_ASKPASS "
    "SSH_AUTH_SOCK HOSTALIASES RESOLV_HOST_CONF SSL_CERT_FILE SSLKEYLOGFILE CURL_CA_BUNDLE NETRC PYTHONSTARTUP "
    "PYTHONINSPECT PERL5OPT ETCDCTL_CACERT ETCDCTL_CERT ETCDCTL_KEY SUDO_ASKPASS LESSOPEN DOCKER_CONTENT_TRUST_SERVER "
    "MALLOC_TRACE SHELL LD_DEBUG_OUTPUT"
)
ADDRESSES = (
    "DOCKER_HOST BUILDKIT_HOST http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy ftp_proxy "
    "ETCDCTL_ENDPOINTS SSH_CONNECTION DISPLAY NOTIFY_SOCKET"
)
WORDS = {
    "DOCKER_API_VERSION": "1.12",
    "DOCKER_BUILDKIT": "1",
    "DOCKER_CONTENT_TRUST": "1",
    "DOCKER_CONTEXT": MARK,
    "DOCKER_DEFAULT_PLATFORM": "linux/s390x",
    "DOCKER_TLS_VERIFY": "1",
    "ETCDCTL_API": "2",
    "GIT_ALLOW_PROTOCOL": "ext",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.sshCommand",
    "GIT_CONFIG_VALUE_0": MARK,
    "GIT_NAMESPACE": MARK,
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "GODEBUG": "gctrace=1,netdns=go+2",
    "GOGC": "1",
    "GOMAXPROCS": "1",
    "GOTRACEBACK": "crash",
    "IFS": "a/",
    "LANG": "xx_XX.UTF-16",
    "LANGUAGE": MARK,
    "LC_ALL": "xx_XX.UTF-16",
    "LD_BIND_NOT": "1",
    "LD_DEBUG": "all",
    "LD_DYNAMIC_WEAK": "1",
    "NO_PROXY": "*",
    "OPTIND": "-1",
    "PS1": "$(id)",
    "PS4": "$(id)",
    "RES_OPTIONS": "debug",
    "SHELLOPTS": "xtrace",
    "SSH_ORIGINAL_COMMAND": MARK,
    "TERM": MARK,
    "TZ": f":/{MARK}",
    "_": MARK,
    "configured": MARK,
    "id": f"$(touch /{MARK})",
    "path": f"; touch /{MARK}",
}

DOCKERFILE = """\
FROM nap/busybox
COPY . /www
EXPOSE 8080
CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A folder with programs of the tenant's, of every name that the host may look for."""
    folder = tmp_path / MARK
    folder.mkdir()
    marks = folder / "ran"
    marks.touch()
    for name in PROGRAMS.split():
        program = folder / name
        program.write_text(f'#!/bin/dash\necho {name} "$PPID" >>{marks}\n')
        program.chmod(0o755)
    (folder / "config.json").write_text(json.dumps({"credsStore": "own", "credHelpers": {"127.0.0.1": "own"}}))
    (folder / ".gitconfig").write_text(f"[core]\n\tsshCommand = {folder}/ssh\n\tfsmonitor = {folder}/git\n")
    (folder / ".curlrc").write_text(f"output = {marks}\n")
    return folder


def variables(traps: Path) -> dict[str, str]:
    """Every one of them, as the tenant sets it."""
    own = traps / "sh"
    return (
        dict.fromkeys(LISTS.split(), f"{traps}:{traps}/bin")
        | {name: str(traps) for name in FOLDERS.split()}
        | {name: str(own) for name in FILES.split()}
        | dict.fromkeys(ADDRESSES.split(), f"ssh://{MARK}@127.0.0.1:1")
        | WORDS
    )


def of_container(nap: Nap, name: str) -> dict[str, str]:
    """The variables of a container that runs, as its program has them."""
    listed = nap.docker("exec", name, "/bin/busybox", "cat", "/proc/1/environ")
    return dict(each.partition("=")[::2] for each in listed.split("\0") if each)


@contextmanager
def programs_seen(nap: Nap, record: Path) -> Iterator[None]:
    """Have strace(1) write each program down that nap starts in the block, with all its arguments and variables.

    The engine itself starts the tenant's own programs, in containers, and is left out.
    """
    begin = [nap.process(each) for each in ("agent", "gate", "gate-server", "router")]
    watched = [word for process in begin for word in ("-p", str(process))]
    words = ["strace", "-f", "-v", "-s", "1000000", "-e", "trace=execve,execveat", "-o", str(record), *watched]
    said = record.with_suffix(".said")  # no pipe, which would be full in the end, and each process stopped
    with said.open("w") as stderr:
        strace = subprocess.Popen(words, stderr=stderr)
    eventually(lambda: said.read_text().count(" attached") >= len(begin), 20, "strace follows them")
    try:
        yield
    finally:
        strace.terminate()
        strace.wait(timeout=20)


def test_nothing_of_a_tenants_is_run_or_read_by_the_host(nap: Nap, pusher: Pusher, traps: Path, tmp_path: Path) -> None:
    with programs_seen(nap, tmp_path / "programs"):
        walk(nap, pusher, variables(traps))
    for folder, below, files in os.walk(nap.folder):
        if Path(folder) == nap.folder:
            below.remove("engine")  # of containers and images
        assert not [name for name in (*below, *files) if MARK in name]
    assert (traps / "ran").read_text() == ""
    seen = [line for line in (tmp_path / "programs").read_text().splitlines() if "execve(" in line]
    for program in ("docker", "etcdctl", "git"):
        assert [line for line in seen if f'/{program}", [' in line], f"{program} is started, and seen"
    assert not [line[:2000] for line in seen if MARK in line]


def walk(nap: Nap, pusher: Pusher, set_here: dict[str, str]) -> None:
    """All that makes nap start something, each with these variables, which arrive in the container unchanged."""

    def command(*words: str) -> str:
        done = pusher.ssh_command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def live() -> dict[str, str]:
        """The variables of the instance that serves."""
        (key,) = pusher.announcements()
        container = f"{key.removeprefix('/services/').replace('/', '.')}.{nap.state.name}"
        found = of_container(nap, container)
        return {name: found.get(name, "") for name in set_here}

    (pusher.repository / "health ; touch ran").write_text(f"yes\n{MARK}")
    odd = {"name": "X-Odd", "value": f'"; {MARK} $(touch ran) \\'}
    failing = {"command": ["/bin/sh", "-c", f": {MARK} > /tmp/ran"]}
    checks = [
        {
            "path": f"/health%20;%20touch%20ran?$(id)'{MARK}",
            "wait": 1,
            "type": "startup",
            "content": f"yes\n{MARK}",
            "httpHeaders": [odd],
        },
        {"path": f"/{MARK}", "attempts": 1, "type": "startup", "warn": True, "onFailure": failing},
        {"command": ["/bin/sh", "-c", f": {MARK}; test -e /www/index.html"], "wait": 1},
    ]
    app_json = {
        "healthchecks": {"web": checks},
        "env": {"FROM_APP_JSON": MARK},
        "scripts": {
            "postdeploy": f"/bin/busybox env | /bin/grep -q ^GOGC=1 && : {MARK}",
            "dokku": {"predeploy": f": {MARK}", "postdeploy": f": {MARK}"},
        },
    }
    procfile = (
        f"web: : {MARK}; exec /bin/busybox httpd -f -p $PORT -h /www\nrelease: /bin/busybox env | /bin/grep -c {MARK}\n"
    )
    pusher.commit(Dockerfile=DOCKERFILE, index_html="one", Procfile=procfile, app_json=json.dumps(app_json))
    assert pusher.push("-o", "nap.deploy=no", "nap", "HEAD:refs/heads/master").status == 0
    configure(nap, pusher.app, set_here)
    first = pusher.push()
    assert first.status == 0, first.text
    assert re.search(r"^ {7}[1-9][0-9]+$", first.text, re.MULTILINE), "the release command has them"
    assert live() == set_here, "push"

    command("ps:restart", pusher.app)
    assert live() == set_here, "restart"
    printed = command("run", pusher.app, "/bin/busybox", "env", "-0")
    found = dict(each.partition("=")[::2] for each in printed.split("\0"))
    assert {name: found.get(name) for name in set_here} == set_here, "run"

    forget_images(nap, pusher.app)
    command("rollback", pusher.app, "v1")
    assert live() == set_here, "rollback"

    name = f"{pusher.app}-2"
    command("apps:rename", pusher.app, name)
    pusher.app = name
    assert live() == set_here, "rename"

    (unit,) = [each.rpartition(".")[0] for each in nap.containers(name)]
    nap.docker("kill", f"{unit}.{nap.state.name}")

    def is_back() -> bool:
        with suppress(ValueError, subprocess.CalledProcessError):  # of no announcement, and of no container
            return live() == set_here
        return False

    eventually(is_back, 20, "it comes back by itself")


def configure(nap: Nap, app: str, values: dict[str, str]) -> None:
    """Have the first release configured so; by ssh's arguments the values would be in some, and there are many."""
    etcd = nap.etcd()
    ledger = Ledger(etcd, nap.settings.etcd, app)
    ledger.set_first_config(ledger.write_configuration(values))
    etcd.close()


def forget_images(nap: Nap, app: str) -> None:
    """Have the engine lack the app's images but that which runs, as after a prune."""
    repository = f"{nap.settings.registry.address}/{app}"
    for image in set(nap.docker("images", "--quiet", "--no-trunc", repository).split()):
        with suppress(subprocess.CalledProcessError):
            nap.docker("rmi", "--force", image)
