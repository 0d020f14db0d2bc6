"""The build context that a commit becomes, from real repositories."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import CommitSettings
from nap_receiver.git.checkout import Checkout, check_out
from tests.nap import eventually
from tests.repositories import COMMIT_TIME, Content, Repository

DOCKERFILE: dict[str | bytes, Content] = {"Dockerfile": "FROM scratch\n"}
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "hello.git")


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def contents(archive: bytes) -> dict[str, tuple[bytes, int, str, float, bytes]]:
    """All that counts of every entry: type, mode, link, time and content."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            content = file.read() if file else b""
            found[member.name] = (member.type, member.mode, member.linkname, member.mtime, content)
    return found


def names(repository: Repository, commit: str) -> set[str]:
    """The files of the build context, without its directories."""
    found = members(archive_of(checked_out(repository, commit)))
    return {name for name, member in found.items() if not member.isdir()}


READING = ExitStack()


@pytest.fixture(autouse=True)
def _read_no_more() -> Iterator[None]:
    with READING:
        yield


def checked_out(repository: Repository, commit: str, **bounds: int) -> Checkout:
    """The checkout, until the end of the test."""
    return READING.enter_context(check_out(repository.path, commit, "hello", CommitSettings(**bounds)))


def archive_of(checkout: Checkout) -> bytes:
    return b"".join(checkout.tar())


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_the_context_of_a_plain_repository_is_what_git_archives(tmp_path: Path, object_format: str) -> None:
    repository = Repository(tmp_path / "hello.git", object_format)
    files: dict[str | bytes, Content] = {
        "empty": "",
        "run": "#!/bin/sh\n",
        "link": "src/a",
        "dangling": "/no/where/" + "x" * 150,
        "src/a": b"\x00\xff" * 1000,
        "src/block": b"b" * 512,
        "src/deep/er/b": "b\n",
        "src-more": "sorts between",
    }
    files |= {f"many/{i}": f"{i}" for i in range(1200)}
    modes = {"run": "100755", "link": "120000", "dangling": "120000"}
    commit = repository.commit(DOCKERFILE | files, modes=modes)
    ours = contents(archive_of(checked_out(repository, commit)))
    gits = contents(repository.git("-c", "tar.umask=0022", "archive", "--format=tar", commit) + b"\n")
    assert ours == gits
    assert ours["run"][1] == 0o755
    assert ours["empty"][1] == 0o644
    assert ours["link"][2] == "src/a"
    assert ours["empty"][3] == COMMIT_TIME


def test_the_context_is_the_same_from_loose_and_from_packed_objects(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"a": "a" * 5000, "b/c": "c"})
    repository.object_file(commit)
    loose = archive_of(checked_out(repository, commit))
    repository.git("repack", "-adq")
    assert archive_of(checked_out(repository, commit)) == loose


def test_names_of_any_bytes_and_any_length_arrive(repository: Repository) -> None:
    odd: dict[str | bytes, Content] = {
        "a:b": "colon",
        "c\\d": "backslash",
        b"caf\xe9": "latin 1",
        "日本語 \t\n'\"": "odd",
        b"\xff/" + b"x" * 120 + b"/" + b"y" * 200: "long",
        " leading and trailing ": "spaces",
        "-rf": "dash",
    }
    commit = repository.commit(DOCKERFILE | odd)
    found = contents(archive_of(checked_out(repository, commit)))
    for name, content in odd.items():
        raw = name if isinstance(name, bytes) else name.encode()
        assert isinstance(content, str)
        assert found[raw.decode("utf-8", "surrogateescape")][4] == content.encode()


def test_each_header_is_the_one_that_tarfile_makes(repository: Repository) -> None:
    lengths = (1, 98, 99, 100, 101, 255)
    files: dict[str | bytes, Content] = {"f" * length: "x" * length for length in lengths}
    files |= {"d" * length + "/\xe9": "y" for length in lengths}
    files |= {"run": "", "link": "run", "long link": "z" * 101}
    modes = {"run": "100755", "link": "120000", "long link": "120000"}
    archive = archive_of(checked_out(repository, repository.commit(DOCKERFILE | files, modes=modes)))
    found = members(archive)
    assert {name for name, member in found.items() if not member.isdir()} == DOCKERFILE.keys() | files.keys()
    for member in found.values():
        header = archive[member.offset : member.offset_data]
        assert header == member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def test_a_submodule_is_an_empty_directory_and_named(repository: Repository) -> None:
    other = repository.commit({"x": "y"}, branch="other")
    commit = repository.commit(
        DOCKERFILE | {"vendor/lib": other, ".gitmodules": "[submodule]\n"}, modes={"vendor/lib": "160000"}
    )
    checkout = checked_out(repository, commit)
    assert checkout.submodules == "vendor/lib"
    found = members(archive_of(checkout))
    assert found["vendor/lib"].isdir()
    assert found["vendor/lib"].mode == 0o755
    assert "vendor/lib/x" not in found


def test_lfs_pointers_are_named(repository: Repository) -> None:
    commit = repository.commit(
        DOCKERFILE
        | {
            "assets/video.mp4": LFS_POINTER,
            b"caf\xe9": LFS_POINTER,
            "about.md": "See " + LFS_POINTER,
            "long": LFS_POINTER + "x" * 2000,
        }
    )
    checkout = checked_out(repository, commit)
    archive_of(checkout)
    assert checkout.lfs_pointers == "assets/video.mp4, caf\\xe9"
    assert checkout.submodules == ""


def test_scripts_with_windows_line_ends_or_a_byte_order_mark_are_named(repository: Repository) -> None:
    start_and_fail: dict[str | bytes, Content] = {
        "bin/serve": "#!/usr/bin/env python3\r\nprint(1)\r\n",
        "entrypoint": "set -e\r\nexec serve\r\n",
        "marked": b"\xef\xbb\xbf#!/bin/sh\nexec serve\n",
        "start.sh": "set -e\r\nexec serve\r\n",
    }
    well: dict[str | bytes, Content] = {
        "a.sh": "#!/bin/sh\nprintf 'a\r\n'\n",
        "b.bat": "@echo off\r\n",
        "c.sh": "echo \r",
        "d": "#" * 300 + "\r\n",
        "README.md": "# Shop\r\n",
    }
    checkout = checked_out(repository, repository.commit(DOCKERFILE | start_and_fail | well))
    archive_of(checkout)
    assert checkout.windows_scripts == ", ".join(map(str, start_and_fail))


@pytest.mark.parametrize("name", ["Dockerfile", "dockerfile", "Containerfile"])
def test_the_dockerfile_may_have_either_of_its_names(repository: Repository, name: str) -> None:
    checkout = checked_out(repository, repository.commit({name: "FROM scratch\n", "a": "b"}))
    assert checkout.manifests["Dockerfile"] == b"FROM scratch\n"
    assert contents(archive_of(checkout))["Dockerfile"][4] == b"FROM scratch\n"


def test_files_that_are_misnamed_are_named(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"procfile": "web: x", "APP.json": "{}", "readme": ""})
    assert checked_out(repository, commit).misnamed == ["APP.json", "procfile"]
    commit = repository.commit(DOCKERFILE | {"procfile": "web: x", "Procfile": "web: x"})
    assert checked_out(repository, commit).misnamed == []


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ("# a comment\n\nnode_modules\n", {"a.log", "docs/a.md", "docs/README.md", "docs/deep/b.md", "src/x.log"}),
        ("node_modules\r\n*.log\r\ndocs\r\n", {"src/x.log"}),
        ("**/*.log\nnode_modules\ndocs", {""}),
        ("node_modules\n/docs/\n", {"a.log", "src/x.log"}),
        ("docs\n!docs/README.md\nnode_modules\n*.log", {"docs/README.md", "src/x.log"}),
        ("docs\n!docs/deep\nnode_modules\n*.log", {"docs/deep/b.md", "src/x.log"}),
        ("**\n!docs/*.md\n", {"docs/a.md", "docs/README.md"}),
        ("**\n!**/x.log\n", {"src/x.log"}),
        ("*\n!node_modules/**/index.js\n", {"node_modules/deep/er/index.js"}),
        ("\ufeffnode_modules\n  docs  \n", {"a.log", "src/x.log"}),
        ("d?cs\nnode_[a-m]odules\n", {"a.log", "src/x.log"}),
        ("*\n", set()),
        ("Dockerfile\n.dockerignore\n*.log\nnode_modules\ndocs\nsrc\n", set()),
    ],
)
def test_dockerignore_is_applied(repository: Repository, patterns: str, left: set[str]) -> None:
    files = ["a.log", "docs/a.md", "docs/README.md", "docs/deep/b.md", "src/x.log", "node_modules/deep/er/index.js"]
    commit = repository.commit({**DOCKERFILE, **dict.fromkeys(files, "x"), ".dockerignore": patterns})
    assert names(repository, commit) - {".dockerignore"} == {"Dockerfile"} | (left - {""})


@pytest.mark.parametrize("name", ["Dockerfile", "Containerfile"])
def test_a_dockerfiles_own_dockerignore_comes_first(repository: Repository, name: str) -> None:
    files: dict[str | bytes, bytes | str] = {name: "FROM a\n", "a": "x", "secret": "x", ".dockerignore": "a"}
    commit = repository.commit({**files, f"{name}.dockerignore": "secret\n.dockerignore\n"})
    assert names(repository, commit) - {"Dockerfile", name} == {"a", f"{name}.dockerignore"}
    commit = repository.commit({**files, "Other.dockerignore": "secret"})
    assert names(repository, commit) - {"Dockerfile", name} == {"secret", ".dockerignore", "Other.dockerignore"}


def test_what_dockerignore_names_is_never_read(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"node_modules/a": "ignored", ".dockerignore": "node_modules"})
    tree = repository.git("rev-parse", f"{commit}:node_modules").decode()
    repository.object_file(tree).unlink()
    assert names(repository, commit) == {"Dockerfile", ".dockerignore"}


def test_a_dockerignore_without_patterns_ignores_nothing(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"a": "b", ".dockerignore": "# nothing\n\n"})
    assert names(repository, commit) == {"Dockerfile", ".dockerignore", "a"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"README": "x"}, "    FROM debian:bookworm-slim / "),
        ({"Dockerfile/x": "y"}, "    FROM debian:bookworm-slim / "),
        ({"package.json": "{}", "index.html": ""}, "    FROM node:22-slim / "),
        ({"requirements.txt": ""}, "    FROM python:3.12-slim / "),
        ({"index.html": ""}, "    FROM nginx:alpine / "),
        ({"Dockerfile.prod": "x", "package.json": "{}"}, "    git mv Dockerfile.prod Dockerfile && git commit -m "),
        ({"prod.Dockerfile": "x"}, "    git mv prod.Dockerfile Dockerfile && git commit -m "),
        ({"api/Dockerfile": "x", "web/Dockerfile": "x"}, "    git subtree push --prefix=api nap master"),
        ({"compose.yaml": "x", "api/Dockerfile": "x"}, "nap does not read compose.yaml: "),
        ({"Dockerfile.$(x)": "x"}, "    FROM debian:bookworm-slim / "),
    ],
)
def test_a_commit_without_a_dockerfile_is_refused_with_what_to_type(
    repository: Repository, files: dict[str | bytes, Content], told: str
) -> None:
    commit = repository.commit(files)
    with pytest.raises(NapError, match=f"hello: commit {commit[:7]} has no Dockerfile at its top") as error:
        checked_out(repository, commit)
    assert any(line.startswith(told) for line in error.value.advice), error.value.advice


def test_an_annotated_tag_is_its_commit(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE, message="Sell more\n\nand cheaper")
    repository.git("tag", "-a", "-m", "A tag", "v1", commit)
    repository.git("tag", "-a", "-m", "A tag of a tag", "v1-signed", "v1")
    checkout = checked_out(repository, repository.git("rev-parse", "v1-signed").decode())
    assert (checkout.commit, checkout.time) == (commit, COMMIT_TIME)


def test_what_is_no_commit_is_refused(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE)
    tree = repository.git("rev-parse", f"{commit}^{{tree}}").decode()
    with pytest.raises(NapError, match="is not a commit"):
        checked_out(repository, tree)
    with pytest.raises(NapError, match="commit 1111111 is not in"):
        checked_out(repository, "1" * 40)


def damaged(repository: Repository, how: str, name: str) -> Checkout:
    """A checkout with one blob that git cannot read."""
    commit = repository.commit(DOCKERFILE | {"a": "a", "m": "m", name: "0123456789" * 300_000})
    checkout = checked_out(repository, commit)
    blob = repository.object_file(repository.git("rev-parse", f"{commit}:{name}").decode())
    content = blob.read_bytes()
    blob.unlink()
    if how == "cut":
        blob.write_bytes(content[: len(content) // 2])
    elif how == "overwritten":
        blob.write_bytes(content[:200] + bytes(len(content) - 200))
    return checkout


@pytest.mark.parametrize("how", ["missing", "cut", "overwritten"])
@pytest.mark.parametrize("name", ["b", "z"], ids=["among others", "last"])
def test_an_object_that_cannot_be_read_breaks_the_stream_off(repository: Repository, how: str, name: str) -> None:
    stream = damaged(repository, how, name).tar()
    received = b""
    with pytest.raises(NapError):
        for piece in stream:
            received += piece
    assert not received.endswith(bytes(1024))  # the end of an archive


@pytest.mark.parametrize("left", [None, 0, 20])
def test_a_tree_that_cannot_be_read_is_told_before_anything_is_sent(repository: Repository, left: int | None) -> None:
    commit = repository.commit(DOCKERFILE | {"d/a": "b", "d/c": "e"})
    tree = repository.object_file(repository.git("rev-parse", f"{commit}:d").decode())
    content = tree.read_bytes()
    tree.unlink()
    if left is not None:
        tree.write_bytes(content[:left])
    with pytest.raises(NapError, match="cannot be read from") as error:
        checked_out(repository, commit)
    assert error.value.advice


def test_a_stream_that_is_given_up_leaves_no_process(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"a": "x" * 3_000_000})
    with check_out(repository.path, commit, "hello", CommitSettings()) as checkout:
        next(checkout.tar())
        [reader] = [child for child in children() if "nap_receiver.git.tree" in words(child)]
        [git] = children(reader)
    assert reader not in children()
    eventually(lambda: not Path("/proc", git).exists(), 5, "git ends with the process that reads through it")


def words(process: str) -> list[str]:
    return Path("/proc", process, "cmdline").read_text().split("\0")


def children(process: str = "thread-self") -> set[str]:
    return {child for each in Path("/proc", process).glob("**/children") for child in each.read_text().split()}


def test_a_large_file_is_streamed_in_small_memory(repository: Repository, tmp_path: Path) -> None:
    size = 60_000_000
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(size)
    blob = repository.git("-c", "core.compression=0", "hash-object", "-w", "--no-filters", str(large)).decode()
    dockerfile = repository.git("hash-object", "-w", "--stdin", stdin=b"FROM scratch\n").decode()
    listing = f"100644 blob {dockerfile}\tDockerfile\n100644 blob {blob}\tlarge\n"
    tree = repository.git("mktree", stdin=listing.encode()).decode()
    commit = repository.git("commit-tree", "-m", "Large", tree).decode()
    program = f"""
import pathlib, resource
from nap_receiver.git.checkout import check_out
from nap_receiver.core.settings import CommitSettings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with check_out(pathlib.Path({str(repository.path)!r}), {commit!r}, "hello", CommitSettings()) as checkout:
    length = sum(map(len, checkout.tar()))
print(length, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    length, grown, reader = map(int, run.stdout.split())
    assert length > size
    assert grown < 15_000  # KiB (getrusage(2))
    assert reader < 60_000


@pytest.mark.parametrize("name", ["Procfile", "app.json", ".dockerignore"])
def test_a_file_that_nap_reads_may_be_a_link_within_the_tree(repository: Repository, name: str) -> None:
    modes = {name: "120000"}
    commit = repository.commit(DOCKERFILE | {name: "./deploy//here", "deploy/here": "secret: x"}, modes=modes)
    checkout = checked_out(repository, commit)
    assert checkout.manifests.get(name, b"secret: x") == b"secret: x"
    assert set(checkout.manifests) == {"Dockerfile", name} - {".dockerignore"}


@pytest.mark.parametrize("name", ["Procfile", "app.json", ".dockerignore"])
@pytest.mark.parametrize(
    "target",
    [
        "nowhere",
        "/etc/passwd",
        "../x",
        "deploy",
        "deploy/here/further",
        "/deploy/here",
        "lib/x",
        "again",
        "",
        "\x1b[2J",
        ".",
    ],
)
def test_a_file_that_nap_reads_is_refused_where_it_links_to_none(
    repository: Repository, name: str, target: str
) -> None:
    other = repository.commit({"x": "y"}, branch="other")
    files: dict[str | bytes, Content] = {name: target, "deploy/here": "", "again": "deploy/here", "lib": other}
    modes = {name: "120000", "again": "120000", "lib": "160000"}
    commit = repository.commit(DOCKERFILE | files, modes=modes)
    with pytest.raises(NapError) as refused:
        checked_out(repository, commit)
    assert str(refused.value) == f"hello: {name}: it is a link to {target}, which is not a file of this commit"


@pytest.mark.parametrize("name", ["Procfile", "app.json", ".dockerignore"])
def test_a_file_that_nap_reads_is_refused_where_it_is_a_directory(repository: Repository, name: str) -> None:
    commit = repository.commit(DOCKERFILE | {f"{name}/x": ""})
    with pytest.raises(NapError, match=rf"^hello: {name}: it is a directory or a submodule$"):
        checked_out(repository, commit)
