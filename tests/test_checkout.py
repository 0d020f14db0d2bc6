"""The build context that a commit becomes, from real repositories."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from nap_receiver.checkout import Checkout, check_out
from nap_receiver.errors import NapError
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


def checked_out(repository: Repository, commit: str) -> Checkout:
    return check_out(repository.path, commit, "hello")


def archive_of(checkout: Checkout) -> bytes:
    return b"".join(checkout.tar())


def test_the_context_of_a_plain_repository_is_what_git_archives(repository: Repository) -> None:
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


def test_a_submodule_is_an_empty_directory_and_named(repository: Repository) -> None:
    other = repository.commit({"x": "y"}, branch="other")
    commit = repository.commit(
        DOCKERFILE | {"vendor/lib": other, ".gitmodules": "[submodule]\n"}, modes={"vendor/lib": "160000"}
    )
    checkout = checked_out(repository, commit)
    assert checkout.submodules == ["vendor/lib"]
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
    assert checkout.lfs_pointers == ["assets/video.mp4", "caf\\xe9"]
    assert checkout.submodules == []


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


def test_what_dockerignore_names_is_never_read(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"node_modules/a": "ignored", ".dockerignore": "node_modules"})
    tree = repository.git("rev-parse", f"{commit}:node_modules").decode()
    repository.object_file(tree).unlink()
    assert names(repository, commit) == {"Dockerfile", ".dockerignore"}


def test_a_dockerignore_without_patterns_ignores_nothing(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"a": "b", ".dockerignore": "# nothing\n\n"})
    assert names(repository, commit) == {"Dockerfile", ".dockerignore", "a"}


@pytest.mark.parametrize(
    "files", [{"README": "x"}, {"Dockerfile/x": "y"}, {"dockerfile": "x"}, {"src/Dockerfile": "x"}]
)
def test_a_commit_without_a_dockerfile_is_refused_with_an_example(
    repository: Repository, files: dict[str | bytes, Content]
) -> None:
    commit = repository.commit(files)
    with pytest.raises(NapError, match=f"hello: commit {commit[:7]} has no Dockerfile at its top") as error:
        checked_out(repository, commit)
    assert any("FROM" in line for line in error.value.advice)


def test_an_annotated_tag_is_its_commit(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE, message="Sell more\n\nand cheaper")
    repository.git("tag", "-a", "-m", "A tag", "v1", commit)
    repository.git("tag", "-a", "-m", "A tag of a tag", "v1-signed", "v1")
    checkout = checked_out(repository, repository.git("rev-parse", "v1-signed").decode())
    assert (checkout.commit, checkout.time) == (commit, COMMIT_TIME)


def test_what_is_no_commit_is_refused(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE)
    tree = repository.git("rev-parse", f"{commit}^{{tree}}").decode()
    with pytest.raises(NapError, match="is no commit"):
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
    stream = checked_out(repository, commit).tar()
    next(stream)
    [git] = children()
    stream.close()  # type: ignore[attr-defined]
    assert git not in children()


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


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
from nap_receiver.checkout import check_out
checkout = check_out(pathlib.Path({str(repository.path)!r}), {commit!r}, "hello")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
length = sum(map(len, checkout.tar()))
print(length, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    length, grown = map(int, run.stdout.split())
    assert length > size
    assert grown < 30_000  # KiB (getrusage(2))


@pytest.mark.parametrize("name", ["Procfile", "app.json", ".dockerignore"])
def test_a_file_that_nap_reads_may_be_a_link_within_the_tree(repository: Repository, name: str) -> None:
    modes = {name: "120000"}
    commit = repository.commit(DOCKERFILE | {name: "./deploy//here", "deploy/here": "secret: x"}, modes=modes)
    checkout = checked_out(repository, commit)
    assert checkout.manifests.get(name, b"secret: x") == b"secret: x"
    assert set(checkout.manifests) == {name} - {".dockerignore"}


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
    assert str(refused.value) == f"hello: {name}: it is a link to {target}, and that is no file of this commit"


@pytest.mark.parametrize("name", ["Procfile", "app.json", ".dockerignore"])
def test_a_file_that_nap_reads_is_refused_where_it_is_a_directory(repository: Repository, name: str) -> None:
    commit = repository.commit(DOCKERFILE | {f"{name}/x": ""})
    with pytest.raises(NapError, match=rf"^hello: {name}: it is a directory or a submodule$"):
        checked_out(repository, commit)
