"""Every parser of what strangers write, for fuzzing: it gives a value or a `NapError`, within a second.

`make fuzz` runs a million inputs that atheris makes, guided by which code they reach; tests/unit/test_fuzz.py runs some
thousands.

usage: python -m tests.fuzz [RUNS [TARGET]]
"""

import base64
import contextlib
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUNS = 1_000_000
MOST_SECONDS = 1.0
"""Of processor time, for one input."""

_LONGEST_BYTES = 4096
_STATISTICS = struct.Struct("qd")

if __name__ == "__main__" and len(sys.argv) == 3:
    import atheris

    _instrumented: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["nap_receiver"])
else:
    _instrumented = contextlib.nullcontext()

with _instrumented:
    from nap_receiver.auth import keys
    from nap_receiver.build import buildkit, confine, dockerfile, dockerfile_lines, registry
    from nap_receiver.build.dockerfile_lines import with_syntax
    from nap_receiver.build.failure import build_failed
    from nap_receiver.build.lines import Lines
    from nap_receiver.build.progress import Progress, Status
    from nap_receiver.core import settings
    from nap_receiver.core.channel import plain
    from nap_receiver.core.errors import NapError
    from nap_receiver.core.paths import State
    from nap_receiver.engine.client import _ports, text_of
    from nap_receiver.engine.container import asked_by_all
    from nap_receiver.git import push, receive_pack
    from nap_receiver.git.dockerignore import patterns_of
    from nap_receiver.git.repository import repository_at
    from nap_receiver.git.tree import Tree
    from nap_receiver.model import variables
    from nap_receiver.model.app import checked_app_name
    from nap_receiver.model.base_image import Base
    from nap_receiver.model.command import heeding_signals
    from nap_receiver.model.env_file import read_env_file
    from nap_receiver.model.manifest import manifest_of
    from nap_receiver.routing import certificates, domains

COMMIT, TREE, BLOB = b"c" * 40, b"d" * 40, b"e" * 40
KNOWN = {field.key: field for field in settings.fields()}
_FOLDER = tempfile.TemporaryDirectory(prefix="nap-fuzz-")  # removed when the process ends
FOLDER = Path(_FOLDER.name)


@dataclass(frozen=True)
class Objects:
    """A repository of these objects, as `tree` reads one."""

    objects: Mapping[bytes, tuple[bytes, bytes]]

    def found(self, name: bytes) -> tuple[bytes, bytes, int]:
        name = name.partition(b"^")[0]
        kind, content = self.objects.get(name, (b"blob", b"x"))
        return name, kind, len(content)

    def kinds(self, names: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
        return (self.found(name)[1:] for name in names)

    def content(self, name: bytes, size: int, kind: bytes) -> bytes:
        return self.objects.get(name, (b"blob", b"x"))[1]

    def unreadable(self, what: str) -> NapError:
        return NapError(what)


def _tree(objects: Mapping[bytes, tuple[bytes, bytes]]) -> None:
    bounds = settings.CommitSettings(max_entries=1000)
    Tree(Objects(objects), "shop", bounds).of(COMMIT.decode())  # type: ignore[arg-type]


def _dockerfile(data: bytes) -> None:
    def use(name: str, line: int) -> Base:
        return Base({"A": "x"}, (_str(data), name))

    instructions = dockerfile.instructions_of(data, "shop", 128 << 10)
    with contextlib.suppress(dockerfile.Unreadable):
        escape = dockerfile.escape_of(data)
        for platform in ({}, dockerfile.platform_variables("linux", "amd64")):
            with contextlib.suppress(dockerfile.NotForBuilds):
                found = dockerfile.images_and_downloads(instructions, escape, use, {"NAP_APP": "shop"}, platform)
                confine.copying(data, list(found), "i:1", escape)
    for each in instructions:
        dockerfile.CLASSIC.lacks(each)
    with_syntax(data.decode("utf-8", "surrogateescape"), "x")


def _buildkit(data: bytes) -> None:
    """Names and output of steps, in a Dockerfile of the same text."""
    name, _, said = data.partition(b"\0")
    progress = Progress()
    status = Status(vertexes=[{"digest": b"a", "name": name, "started": b"1"}], logs=[{"vertex": b"a", "msg": said}])
    ended = Status(vertexes=[{"digest": b"a", "name": name, "completed": b"1", "error": said}])
    for report in (status, ended):
        list(progress.of(base64.b64encode(report.SerializeToString()).decode()))
    list(progress.rest())
    if progress.failed:
        text = _str(data)
        lines = buildkit.lines_of(progress.failed, text, [dockerfile_lines.Instruction("RUN", (), (), (1, 9999))])
        build_failed("shop", progress.failed.name, text, settings.BuildSettings(), words=lines)


def _patterns(data: bytes) -> None:
    patterns = patterns_of(data)
    matching = 0
    for path in (b"src", b"src/x.log", b"src/x.log/y", b"a" * 200, data[:255] or b"x"):
        matching = patterns.matching(path, matching if b"src" in path else 0)
        patterns.is_out(matching)
        patterns.may_keep_below(path)


def _updates(data: bytes) -> None:
    updates = push.read_updates(io.BytesIO(data))
    push.deploying(push.Push("shop", FOLDER, updates), "master")


def _packets(data: bytes) -> None:
    taken = io.BytesIO()
    receive_pack.pass_on_updates(io.BytesIO(data).read, taken, receive_pack.Bounds(refs=5), lambda: 3)
    assert data.startswith(taken.getvalue()), "nothing is passed on that the pusher did not send"
    assert b"".join(receive_pack._packets(io.BytesIO(data))) in data


def _key(data: bytes) -> None:
    keys._told_by_ssh_keygen = lambda key: ""  # a program that is not nap's, and takes a hundredth of a second
    keys._read(_str(data), "ann")


def _toml(data: bytes) -> None:
    state = State(FOLDER)
    state.settings_file.write_bytes(data)
    for key, value in settings._file_values(state, KNOWN).items():
        settings._checked(KNOWN[key], value, "settings.toml")


def _environment(data: bytes) -> None:
    field = list(KNOWN.values())[data[0] % len(KNOWN)] if data else None
    variable = {field.variable if field else "NAP_X": _str(data[1:])}
    for _, found in settings._variable_values(variable, "environment: ", KNOWN):
        for key, value in found.items():
            settings._checked(KNOWN[key], value, "environment")
    variables.check_value(variables.checked_name(_str(data[:40])), _str(data))


def _app_json(data: bytes) -> None:
    manifest = manifest_of("shop", {"Procfile": b"web: x", "app.json": data})
    manifest.unset("shop", {})
    for checks in manifest.checks.values():
        asked = asked_by_all(checks, "")
        for number, check in enumerate(checks, 1):
            assert re.fullmatch(r"[a-z0-9 -]+", check.line(number, "8080")), "a tenant's text is in no unit"
            plain(check.shown("8080"))
            if isinstance(text := asked.get(f"{number}"), str):
                path, headers, _ = f"{text} - -".split(" ", 2)
                assert not set(path) & set('"\\\r\n'), "it ends neither the line of curl's nor its quotes"
                lines = base64.b64decode(headers.replace("-", "")).decode().split("\n")[:-1]
                assert len(lines) == len(check.http_headers)
                assert all(re.fullmatch(r'header = "(?:[^"\\]|\\.)*"', line) for line in lines)


def _command(data: bytes) -> None:
    command = _str(data)
    words = heeding_signals(command)
    assert words[:2] == ["/bin/sh", "-c"] or words == shlex.split(command)


def _engine(data: bytes) -> None:
    lines = Lines()
    for item in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):  # the library's to tell
            said = json.loads(item)
            if isinstance(said, dict):
                list(lines.of(text_of(said)))
    plain(_str(data))
    _ports({"ExposedPorts": {port: {} for port in _str(data).split()}, "Env": _str(data).split("\n")})


def _certificate(data: bytes) -> None:
    certificates.checked(data, 1 << 17)


def _names(data: bytes) -> None:
    for parse in (checked_app_name, lambda text: repository_at(text, State(FOLDER)), keys.checked_user):
        with contextlib.suppress(NapError):
            parse(_str(data))


def _str(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


_ROOT = b"100644 Dockerfile\0" + b"\xee" * 20
_PEOPLE = b"author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n"
_UPDATE = b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/master"
_APP_JSON = {
    "name": "shop",
    "formation": {"web": {"quantity": 2}},
    "healthchecks": {
        "web": [{"type": "startup", "path": "/health", "attempts": 3}, {"command": ["a", "b"]}],
        "worker": None,
    },
    "env": {"A": "1", "B": {"value": "2", "required": True}, "C": {"generator": "secret"}},
    "scripts": {"postdeploy": "./seed"},
}

TARGETS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "Procfile": (
        lambda data: manifest_of("shop", {"Procfile": data}).formation({}),
        [
            b"web: ./serve $PORT\n# x\nworker:  ./work\nrelease: ./migrate\r\n",
            b"\xef\xbb\xbfweb: x",
            b"router: x\nweb x\n",
        ],
    ),
    "command": (
        _command,
        [
            b"A=1 B='2 3' serve --port=$PORT 'a b' \"c\" x",
            b"a && b | c > d; { e; } & (f)",
            b"exec a 'b",
            b'a \\" && b"c d" \\\n',
        ],
    ),
    ".env": (
        read_env_file,
        [b"# x\nexport A=1\nB='2 3' # y\nC=\"a\\nb\"\r\nD\n", b"A=${B}\nPORT=1\n", b"A='x\ny'\nA=\xff"],
    ),
    "app.json": (
        _app_json,
        [
            json.dumps(_APP_JSON).encode(),
            rb'{"name": "\ud800"}',
            b'{"env": {"A": {"a\\nb": 1}}}',
            b'{"a": [{"b": 1, "b": 2}]}',
            b'{"healthchecks": {"web": [{"attempts": 0, "pth": 1}]}}',
            b'// x\n{"env": {"A": 1.5, "B": null, "PORT": 1,}, /* y */ "formation": {"web": 2,}} //',
            b'{"healthchecks": {"web": [{"content": "x", "httpHeaders": [{"name": "A", "value": "b"}]}]}}',
            b'{"healthchecks": {"web": [{"command": "a", "warn": 1, "onFailure": {"command": "b", "url": "c"}}, {}]}}',
            b'{"healthchecks": {"web": [{"type": "readiness"}, {"type": "liveness", "path": "x\\" y"}]}}',
            b'{"scripts": {"dokku": {"predeploy": "a", "postdeploy": null}}, "formation": null}',
        ],
    ),
    ".dockerignore": (
        _patterns,
        [b"# x\n*.log\n**/x\n!src/**\n", b"[z-a]", b"[a-c]?\\*", b"*a*a*a*a*a*b", b"!", b"a/../b//c/", b"\xff**\\"],
    ),
    "Dockerfile": (
        _dockerfile,
        [
            b"# escape=`\nARG V=1\nFROM a:${V:-2} AS b\nCOPY --from=b --chown=1 x y\nADD $V http://h/ /d/\nENV A=b\n",
            b'FROM a\r\nADD ["x", "https://h/y", "/"]\nRUN --mount=type=bind,from="b" x \\\n # y\n z\nONBUILD ADD x /',
            b"FROM a\nENV A=$A$A\nARG B=${A:+${B:-x}}\nADD 'a b' \"$B\" /\n",
            b"# syntax=x\nFROM",
            b"FROM a\nRUN <<E\nE\n\xff\0",
            b"#!/x\n# syntax=docker/dockerfile:1\nFROM --platform=$BUILDPLATFORM a\nCOPY <<-'E' 1<<F << G\n\tE\nF\n",
            b"FROM a\nARG TARGETARCH=x NAP_APP\nRUN --mount=type=secret,id=x --network=host x",
        ],
    ),
    "BuildKit's reports": (
        _buildkit,
        [b"[one 2/3] RUN make \\\n # x\n all\0made\r\n\x1b[1mexit code: 3", b"[1/2] FROM x\0no space left on device"],
    ),
    "commit": (
        lambda data: _tree({COMMIT: (b"commit", data), TREE: (b"tree", _ROOT)}),
        [
            b"tree " + TREE + b"\n" + _PEOPLE,
            b"tree " + TREE + b"\n\n",
            b"tree " + TREE + b"\nparent x\ncommitter > 9 +0000\n",
        ],
    ),
    "tree": (
        lambda data: _tree({COMMIT: (b"commit", b"tree " + TREE + b"\n" + _PEOPLE), TREE: (b"tree", data)}),
        [
            _ROOT,
            _ROOT + b"40000 d\0" + b"\xdd" * 20,
            _ROOT + b"120000 Procfile\0" + b"\x01" * 20,
            b"100644 ..\0" + b"\x01" * 20,
        ],
    ),
    "link": (
        lambda data: _tree(
            {
                COMMIT: (b"commit", b"tree " + TREE + b"\n" + _PEOPLE),
                TREE: (b"tree", _ROOT + b"120000 app.json\0" + b"\x11" * 20 + b"40000 d\0" + b"\x22" * 20),
                b"1" * 40: (b"blob", data),
                b"2" * 40: (b"tree", b"100644 x\0" + b"\x33" * 20),
            }
        ),
        [b"d/x", b"../x", b"/etc/passwd", b"d", b"./d//x", b"Dockerfile"],
    ),
    "push options": (
        lambda data: push.push_options(_str(data).split("\n")),
        [b"nap.deploy=no\nnap.branch=x", b"nap.wait=maybe", b"ci.skip"],
    ),
    "ref updates": (_updates, [_UPDATE + b"\n", b"x y z", _UPDATE.replace(b"1", b"0")]),
    "pkt-lines": (
        _packets,
        [b"%04x" % (len(_UPDATE) + 4) + _UPDATE + b"0000PACK", b"0003", b"0000", b"00ff\0 x", b"zzzz"],
    ),
    "ssh keys": (
        _key,
        [
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEnfZIPOUg3GKYeXYfCYc1CRHlSsGCdmVoIgXbLUXKyT ann@laptop",
            b"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAA==",
            b"# x\n-----BEGIN OPENSSH PRIVATE KEY-----",
        ],
    ),
    "certificates": (_certificate, []),
    "domains": (
        lambda data: domains.normal(_str(data)),
        [
            b"www.example.org",
            b"*.example.org",
            "bücher.example".encode(),
            b"xn--a.b",
            b"[::1]",
            b"a.b:80",
            b"a..b",
            b"1.2.3.4",
        ],
    ),
    "settings": (
        _toml,
        [b'scheduler = "local"\n[deploy]\ndrain = 1\n', b"a.b = [1, {x = 1979-05-27}]", b'"a\\nb" = 1', b"[" * 50],
    ),
    "environment": (_environment, [b"A=b", b"\1127.0.0.1:1", b"PATH", b"\x05/x", b"A" * 130]),
    "the engine's answers": (
        _engine,
        [
            b'{"stream": "Step 1/2 : \\u001b[1mx\\r\\n"}\n{"status": "x"}',
            b"8080/tcp 53/udp\nPORT=53",
            b"8000-8010/tcp",
            b"x/tcp",
        ],
    ),
    "the registry's answers": (
        registry.manifest_in,
        [b'{"config": {"digest": "sha256:x"}, "layers": [{"digest": "y"}]}', b'{"manifests": [{}]}', b"[]", b"\xff"],
    ),
    "names": (_names, [b"team/shop.git", b"../x", b"a--b", b"~/x", b"x" * 50, "käse".encode()]),
}


def certificate() -> bytes:
    """A certificate and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www.example.org")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.org")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return made.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption())


def certificate_of_der(data: bytes) -> None:
    """Read a certificate of this content, in the place of a whole one; PEM's base64 leaves a fuzzer no way in."""
    from base64 import encodebytes

    whole = certificates_seed()
    _, _, key = whole.partition(b"-----END CERTIFICATE-----\n")
    _certificate(b"-----BEGIN CERTIFICATE-----\n" + encodebytes(data) + b"-----END CERTIFICATE-----\n" + key)


_SEED: list[bytes] = []


def certificates_seed() -> bytes:
    """The same one each time."""
    if not _SEED:
        _SEED.append(certificate())
    return _SEED[0]


def _with_certificates() -> None:
    from base64 import decodebytes

    body = certificates_seed().partition(b"-----END")[0].partition(b"-----\n")[2]
    TARGETS["certificates"] = (_certificate, [certificates_seed()])
    TARGETS["certificate's content"] = (certificate_of_der, [decodebytes(body)])


_with_certificates()


def seconds_of(target: str, data: bytes) -> float:
    """Processor time of one input. Raises whatever the parser does but `NapError`."""
    started = time.thread_time()
    with contextlib.suppress(NapError):
        TARGETS[target][0](data)
    return time.thread_time() - started


def _fuzz(runs: int, target: str, statistics: Path) -> None:
    """Run inputs for one target; never returns. Writes how many there were, and the time of the slowest."""
    count, slowest = 0, 0.0
    written = os.open(statistics, os.O_CREAT | os.O_WRONLY, 0o600)

    def one(data: bytes) -> None:
        nonlocal count, slowest
        seconds = seconds_of(target, data)
        count += 1
        slowest = max(seconds, slowest)
        os.pwrite(written, _STATISTICS.pack(count, slowest), 0)  # atheris ends the process without a last word
        assert seconds < MOST_SECONDS, f"{seconds:.1f} s"

    corpus = statistics.parent / f"corpus-{statistics.name}"
    corpus.mkdir()
    for number, seed in enumerate(TARGETS[target][1]):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-runs={runs}", "-seed=1", f"-max_len={_LONGEST_BYTES}", "-verbosity=0", f"-artifact_prefix={corpus}."]
    atheris.Setup(["fuzz", *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Run all targets, one after another; 1 where an input was too slow or raised what is no `NapError`."""
    runs = int(sys.argv[1]) if sys.argv[1:] else RUNS
    failed = 0
    for number, target in enumerate(TARGETS):
        with tempfile.TemporaryDirectory(prefix="nap-fuzz-") as folder:
            statistics = Path(folder, "statistics")
            share = runs // len(TARGETS) + (number < runs % len(TARGETS))
            command = [sys.executable, "-m", "tests.fuzz", str(share), target]
            started = time.monotonic()
            done = subprocess.run(
                command,
                env={"NAP_FUZZ": str(statistics), "TMPDIR": folder},
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.monotonic() - started
            count, slowest = _STATISTICS.unpack(statistics.read_bytes()) if statistics.exists() else (0, 0.0)
            rate = f"{count:8} inputs {count / seconds:8.0f}/s, the slowest {slowest * 1000:6.1f} ms"
            print(f"{target:24} {rate}  {'FAILED' if done.returncode else ''}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stdout + done.stderr, file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _fuzz(int(sys.argv[1]), sys.argv[2], Path(os.environ["NAP_FUZZ"]))
    sys.exit(main())
