"""Commits that were made to hurt whoever reads them: each is refused in one sentence, or is harmless."""

import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import CommitSettings
from nap_receiver.git.checkout import check_out
from nap_receiver.git.dockerignore import patterns_of
from nap_receiver.git.push import commit_of
from tests.repositories import COMMIT_TIME, Content, Repository

DOCKERFILE: dict[str | bytes, Content] = {"Dockerfile": "FROM scratch\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "hello.git")


def written(repository: Repository, kind: str, content: bytes) -> bytes:
    """The name of an object of any content."""
    return repository.git("hash-object", "-w", "-t", kind, "--literally", "--stdin", stdin=content)


def tree_of(repository: Repository, *entries: tuple[str, bytes, bytes]) -> bytes:
    """A tree with these modes, names and object names, whether or not git would make it."""
    content = b"".join(
        mode.encode() + b" " + name + b"\0" + bytes.fromhex(each.decode()) for mode, name, each in entries
    )
    return written(repository, "tree", content)


def commit_of_tree(repository: Repository, tree: bytes, rest: bytes = b"") -> str:
    people = rest or b"author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n"
    return written(repository, "commit", b"tree " + tree + b"\n" + people + b"\nA commit\n").decode()


def bomb(repository: Repository, levels: int, width: int = 10) -> str:
    """A commit of `width ** levels` files, in so many objects as it has levels."""
    blob = written(repository, "blob", b"FROM scratch\n")
    tree = tree_of(repository, *(("100644", b"%d" % number, blob) for number in range(width)))
    for _ in range(levels - 1):
        tree = tree_of(repository, *(("40000", b"%d" % number, tree) for number in range(width)))
    return commit_of_tree(repository, tree_of(repository, ("100644", b"Dockerfile", blob), ("40000", b"d", tree)))


def read(repository: Repository, commit: str, **bounds: int) -> dict[str, tarfile.TarInfo]:
    """The entries of the build context."""
    with check_out(repository.path, commit, "hello", CommitSettings(**bounds)) as checkout:
        archive = b"".join(checkout.tar())
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def refusal(repository: Repository, commit: str, **bounds: int) -> str:
    with pytest.raises(NapError) as refused:
        read(repository, commit, **bounds)
    assert refused.value.advice
    return str(refused.value)


def test_bomb_of_a_hundred_million_files_is_refused(repository: Repository) -> None:
    assert refusal(repository, bomb(repository, 8), max_entries=20_000) == (
        "hello: the commit has more than 20000 files and directories (commit.max_entries)"
    )


def test_large_tree_object_is_refused_unread(repository: Repository) -> None:
    blob = written(repository, "blob", b"")
    commit = commit_of_tree(repository, tree_of(repository, *(("100644", b"%d" % n, blob) for n in range(2000))))
    assert "more than 10 files and directories" in refusal(repository, commit, max_entries=10)


def test_deep_tree_is_refused(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"d/" * 5 + "f": "x"})
    assert "d/d/d/d/d/f" in read(repository, commit, max_depth=5)
    assert refusal(repository, commit, max_depth=4) == (
        "hello: d/d/d/d/d: it is deeper than 4 directories (commit.max_depth)"
    )


@pytest.mark.parametrize("name", ["Dockerfile", "Procfile", "app.json", ".dockerignore"])
def test_large_manifest_is_refused_with_its_name_and_size(repository: Repository, name: str) -> None:
    commit = repository.commit(DOCKERFILE | {name: "#" * 2000})
    assert refusal(repository, commit, max_manifest=1999) == (
        f"hello: {name}: it has 2000 bytes, and commit.max_manifest is 1999"
    )


def test_large_file_is_refused_with_its_name_and_size(repository: Repository) -> None:
    commit = repository.commit(
        DOCKERFILE | {"a/zeros": bytes(5000), ".dockerignore": "ignored", "ignored": bytes(9000)}
    )
    assert "a/zeros" in read(repository, commit, max_file=5000)
    assert (
        refusal(repository, commit, max_file=4999) == "hello: a/zeros: it has 5000 bytes, and commit.max_file is 4999"
    )


def test_large_context_is_refused(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {f"{number}": bytes(1000) for number in range(10)})
    assert refusal(repository, commit, max_size=9000) == (
        "hello: the commit has more than 9000 bytes in its files (commit.max_size)"
    )


def test_file_that_takes_too_much_memory_ends_git_and_nothing_else(repository: Repository) -> None:
    # Of two large files that differ little, git keeps one as what differs, and has both in memory to read it.
    files: dict[str | bytes, Content] = {"a": bytes(30_000_000), "b": bytes(29_999_999) + b"x"}
    commit = repository.commit(DOCKERFILE | files)
    repository.git("repack", "-adfq", "--window=2")
    assert refusal(repository, commit, memory=1 << 26) == (
        "hello: reading the commit took too much memory: commit.memory is 67108864 bytes"
    )


@contextmanager
def longest_wait() -> Iterator[list[float]]:
    """How long at most another thread of this process did not come to run, in the block."""
    waits, over = [0.0], threading.Event()

    def keep_alive() -> None:
        before = time.monotonic()
        while not over.wait(0.01):
            now = time.monotonic()
            waits[0], before = max(waits[0], now - before), now

    thread = threading.Thread(target=keep_alive)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def test_long_list_of_patterns_ends_the_reader_alone(repository: Repository) -> None:
    patterns = "".join(f"*{number}*a*b*c\n" for number in range(5000))
    commit = repository.commit(DOCKERFILE | {".dockerignore": patterns} | {f"{n}abab": "" for n in range(3000)})
    with longest_wait() as waits:
        assert refusal(repository, commit, processor_time=1) == (
            "hello: reading the commit took too much processor time: commit.processor_time is 1 s"
        )
    assert waits[0] < 1, "the lease of the deploy lock is kept alive by a thread"


def test_pattern_of_many_stars_is_matched_at_once() -> None:
    patterns = patterns_of(b"*a" * 40 + b"*b\n" + b"**/a*" * 200 + b"z")
    started = time.thread_time()
    assert patterns.matching(b"a" * 200) == 0
    assert patterns.matching(b"a/" * 500 + b"a") == 0
    assert time.thread_time() - started < 30, "milliseconds; for ever where each star tried each place"


DOCKERS = json.loads(Path(__file__).with_name("dockerignore.json").read_text(encoding="utf-8"))
"""What Docker's command line left out of the contexts that it sent: `rows` of a `.dockerignore`, and the numbers of the
`paths` that were left out, or null where it refused the file."""


@pytest.mark.parametrize(("lines", "out"), DOCKERS["rows"], ids=[row[0] for row in DOCKERS["rows"]])
def test_patterns_mean_what_they_mean_to_docker(lines: str, out: list[int] | None) -> None:
    if out is None:
        with pytest.raises(NapError, match=r"^\.dockerignore: line 1: "):
            patterns_of(lines.encode())
        return
    patterns = patterns_of(lines.encode())
    found = []
    for number, path in enumerate(DOCKERS["paths"]):
        matching, pruned = 0, False
        for end in [at for at, character in enumerate(path + "/") if character == "/"]:
            above = path[:end].encode()
            matching = patterns.matching(above, matching)
            pruned |= end < len(path) and patterns.is_out(matching) and not patterns.may_keep_below(above)
        if patterns.is_out(matching):
            found.append(number)
        assert not pruned or patterns.is_out(matching), f"{path} would be left out with its directory"
    assert found == out


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/", b"x" * 256], ids=repr)
def test_name_that_no_file_can_have_is_refused(repository: Repository, name: bytes) -> None:
    blob = written(repository, "blob", b"FROM scratch\n")
    below = tree_of(repository, ("100644", name, blob))
    tree = tree_of(repository, ("100644", b"Dockerfile", blob), ("40000", b"d", below))
    assert "it cannot be the name of a file" in refusal(repository, commit_of_tree(repository, tree))


def test_name_that_is_twice_in_a_tree_is_refused(repository: Repository) -> None:
    blob = written(repository, "blob", b"/etc")
    entries = (("100644", b"Dockerfile", blob), ("120000", b"a", blob), ("40000", b"a", tree_of(repository)))
    commit = commit_of_tree(repository, tree_of(repository, *entries))
    assert refusal(repository, commit) == "hello: the top: the tree has the same name twice"


def test_link_to_a_name_of_a_megabyte_is_refused(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"link": "x" * (1 << 20)}, modes={"link": "120000"})
    assert refusal(repository, commit) == "hello: link: it is a link with a target of 1048576 bytes; the limit is 4095"


@pytest.mark.parametrize(
    "tree", [b"100644 a\0short", b"garbage", b"x y\0" + b"1" * 20, b"9" * 40 + b" a\0" + b"1" * 20]
)
def test_tree_of_garbage_is_refused(repository: Repository, tree: bytes) -> None:
    blob = written(repository, "blob", b"FROM scratch\n")
    below = written(repository, "tree", tree)
    top = tree_of(repository, ("100644", b"Dockerfile", blob), ("40000", b"d", below))
    assert f"tree {below[:12].decode()} cannot be read from" in refusal(repository, commit_of_tree(repository, top))


@pytest.mark.parametrize(
    ("people", "when"),
    [
        (b"committer A <a@b> 1431648000 +0200\n", COMMIT_TIME),
        (b"author A <a@b> 5 +0000\n", 0),
        (b"encoding x\n", 0),
        (b"author\ncommitter\n", 0),
        (b"committer A <a@b> -5 +0000\n", 0),
        (b"committer A <a@b> 99999999999999 +0000\n", 8**11 - 1),
        (b"committer A <a@b> 9999999999999999999999 +0000\n", 0),
        (b"committer \xff\n> 5 +0000\n", 0),
    ],
)
def test_commit_without_an_author_or_a_time_is_read(repository: Repository, people: bytes, when: int) -> None:
    tree = repository.git("rev-parse", f"{repository.commit(DOCKERFILE)}^{{tree}}")
    commit = commit_of_tree(repository, tree, people)
    assert read(repository, commit)["Dockerfile"].mtime == when


def test_commit_without_a_tree_is_refused(repository: Repository) -> None:
    commit = written(repository, "commit", b"author A <a@b> 1 +0000\n\nx\n").decode()
    assert refusal(repository, commit) == f"hello: {commit[:7]} is not a commit"


def test_replaced_objects_are_read_as_they_were_pushed(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"file": "true"})
    other = repository.commit(DOCKERFILE | {"file": "false and longer"}, branch="other")
    for what in ("", ":file", "^{tree}"):
        one, another = (repository.git("rev-parse", f"{each}{what}").decode() for each in (commit, other))
        repository.git("update-ref", f"refs/replace/{one}", another)
    assert read(repository, commit)["file"].size == len("true")
    assert commit_of(repository.path, "master") == commit


def test_grafts_change_nothing(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE | {"file": "true"})
    (repository.path / "info").mkdir(exist_ok=True)
    (repository.path / "info" / "grafts").write_text(f"{commit} {'1' * 40}\n")
    (repository.path / "shallow").write_text(f"{commit}\n")
    assert read(repository, commit)["file"].size == len("true")
