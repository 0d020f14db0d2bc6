"""Which ref of a push deploys, what becomes of the others, and whose app it is."""

from pathlib import Path

import pytest

from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.deploy.push_handler import usual_branch
from nap_receiver.git.push import (
    Deployment,
    Push,
    PushOptions,
    RefUpdate,
    checked_setting,
    commit_of,
    deploy_branch,
    deploying,
    push_options,
    read_push_options,
    read_updates,
    repository_settings,
)
from nap_receiver.model.app import app_name
from tests.repositories import Repository

OLD = "1" * 40
NEW = "2" * 40
NONE = "0" * 40
DOCKERFILE: dict[str | bytes, bytes | str] = {"Dockerfile": "FROM scratch\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "hello.git")


def pushed(repository: Repository, *updates: RefUpdate) -> tuple[Deployment | None, list[str]]:
    return deploying(Push("hello", repository.path, list(updates), "ann"), branch_of(repository, *updates))


def branch_of(repository: Repository, *updates: RefUpdate) -> str:
    return deploy_branch(repository.path, updates)


def test_updates_are_read_a_line_each() -> None:
    lines = [
        f"{OLD} {NEW} refs/heads/master\n".encode(),
        f"{NONE} {NEW} refs/tags/v1\n".encode(),
        f"{OLD} {NONE} refs/heads/feature/x\n".encode(),
        b"\n",
        f"{NONE} {NEW} ".encode() + b"refs/heads/caf\xe9\n",
    ]
    updates = read_updates(lines)
    assert [(u.old, u.new, u.ref) for u in updates[:2]] == [
        (OLD, NEW, "refs/heads/master"),
        (NONE, NEW, "refs/tags/v1"),
    ]
    assert [u.branch for u in updates] == ["master", None, "feature/x", "caf\udce9"]
    assert [u.deletes for u in updates] == [False, False, True, False]
    assert [u.kind for u in updates[:3]] == ["branch master", "tag v1", "branch feature/x"]


def test_updates_of_a_sha256_repository_are_read() -> None:
    [update] = read_updates([f"{'0' * 64} {'a' * 64} refs/heads/main\n".encode()])
    assert update.new == "a" * 64
    assert not update.deletes
    assert RefUpdate("a" * 64, "0" * 64, "refs/heads/main").deletes


def test_master_deploys_before_main(repository: Repository) -> None:
    repository.commit(DOCKERFILE, branch="main")
    assert branch_of(repository) == "main"
    repository.commit(DOCKERFILE, branch="master")
    assert branch_of(repository) == "master"
    repository.commit(DOCKERFILE, branch="other")
    assert branch_of(repository, RefUpdate(NONE, NEW, "refs/heads/other")) == "master"


def test_a_repository_that_says_its_branch_is_believed(repository: Repository) -> None:
    repository.commit(DOCKERFILE, branch="master")
    repository.git("config", "nap.branch", "release/live")
    assert branch_of(repository, RefUpdate(NONE, NEW, "refs/heads/master")) == "release/live"


def test_the_first_branch_pushed_deploys_from_then_on(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE, branch="trunk")
    repository.commit(DOCKERFILE, branch="other")
    trunk, other = (RefUpdate(NONE, commit, f"refs/heads/{name}") for name in ("trunk", "other"))
    deployment, _ = pushed(repository, trunk, other)
    assert deployment == Deployment("hello", repository.path, "trunk", commit, "ann")
    assert repository.git("symbolic-ref", "HEAD") == b"refs/heads/trunk"
    deployment, said = pushed(repository, other)
    assert deployment is None
    assert said == ["branch other kept; hello deploys trunk. To deploy it: git push nap other:trunk"]


def test_a_deletion_or_a_tag_is_no_first_branch(repository: Repository) -> None:
    before = repository.git("symbolic-ref", "HEAD")
    updates = [RefUpdate(OLD, NONE, "refs/heads/gone"), RefUpdate(NONE, NEW, "refs/tags/v1")]
    assert branch_of(repository, *updates) == "master"
    assert repository.git("symbolic-ref", "HEAD") == before


def test_one_of_several_refs_deploys_and_the_others_are_told(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE)
    deployment, said = pushed(
        repository,
        RefUpdate(NONE, NEW, "refs/heads/feature/x"),
        RefUpdate(OLD, commit, "refs/heads/master"),
        RefUpdate(NONE, NEW, "refs/tags/v1"),
        RefUpdate(NONE, NEW, "refs/notes/commits"),
        RefUpdate(NONE, NEW, "refs/pull/1/head"),
        RefUpdate(OLD, NONE, "refs/tags/old"),
        RefUpdate(OLD, NONE, "refs/heads/old"),
    )
    assert deployment == Deployment("hello", repository.path, "master", commit, "ann")
    assert said == [
        "branch feature/x kept; hello deploys master. To deploy it: git push nap feature/x:master",
        "tag v1 kept, not deployed",
        "notes commits kept, not deployed",
        "refs/pull/1/head kept, not deployed",
        "tag old deleted: nothing to deploy",
        "branch old deleted: nothing to deploy",
    ]


def test_the_commit_is_that_of_the_push_and_not_of_the_ref(repository: Repository) -> None:
    first = repository.commit(DOCKERFILE)
    repository.commit(DOCKERFILE | {"a": "b"})
    deployment, _ = pushed(repository, RefUpdate(NONE, first, "refs/heads/master"))
    assert deployment is not None
    assert deployment.commit == first


def test_deleting_the_deploy_branch_deploys_nothing(repository: Repository) -> None:
    repository.commit(DOCKERFILE)
    repository.git("update-ref", "-d", "refs/heads/master")
    deployment, said = pushed(repository, RefUpdate(OLD, NONE, "refs/heads/master"))
    assert deployment is None
    assert said == ["branch master deleted: it deploys hello, which keeps running as it is"]


def test_ten_thousand_refs_are_summed_up(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE)
    updates = [RefUpdate(NONE, NEW, f"refs/tags/v{i}") for i in range(10_000)]
    deployment, said = pushed(repository, *updates, RefUpdate(NONE, commit, "refs/heads/master"))
    assert deployment is not None
    assert len(said) == 11
    assert said[0] == "tag v0 kept, not deployed"
    assert said[-1] == "9990 more refs: kept as pushed, not deployed"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hello.git", "hello"),
        ("hello", "hello"),
        ("team/shop.git", "team-shop"),
        ("a/b/c.git", "a-b-c"),
        ("2048.git", "2048"),
        ("x" * 40 + ".git", "x" * 40),
    ],
)
def test_an_app_is_named_by_its_repositorys_path(path: str, name: str, tmp_path: Path) -> None:
    state = State(tmp_path)
    assert app_name(state.repositories / path, state, {}) == name
    assert app_name(Path("/srv/elsewhere.git"), state, {"GL_REPO": path}) == name


@pytest.mark.parametrize(("path", "name"), [("/srv/git/shop.git", "shop"), ("/home/ann/shop/.git", "shop")])
def test_elsewhere_the_last_part_names_the_app(path: str, name: str, tmp_path: Path) -> None:
    assert app_name(Path(path), State(tmp_path), {}) == name


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 41 + ".git", "it has 41 characters; the limit is 40"),
        ("Shop.git", "only a to z, 0 to 9 and single dashes between them are possible"),
        ("my_shop.git", "only a to z"),
        ("my.shop.git", "only a to z"),
        ("a--b.git", "only a to z"),
        ("-a.git", "only a to z"),
        ("a-.git", "only a to z"),
        ("team-/shop.git", "only a to z"),
        ("käse.git", "only a to z"),
        ("a\n.git", "only a to z"),
        ("a b.git", "only a to z"),
        ("$(id).git", "only a to z"),
        ("../shop.git", "only a to z"),
        ("team/.git", "only a to z"),
        (".git", "it is empty"),
        ("/", "it is empty"),
        (".", "it is empty"),
    ],
)
def test_a_name_that_cannot_be_an_apps_is_refused_with_the_reason(path: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(NapError, match="cannot be an app's name") as error:
        app_name(Path("/srv/x.git"), State(tmp_path), {"GL_REPO": path})
    assert reason in str(error.value)
    assert error.value.advice


def test_push_options_are_read_from_the_hooks_environment() -> None:
    environ = {"GIT_PUSH_OPTION_COUNT": "2", "GIT_PUSH_OPTION_0": "nap.deploy=no", "GIT_PUSH_OPTION_1": "b"}
    assert read_push_options(environ) == ["nap.deploy=no", "b"]
    assert read_push_options({}) == []
    assert read_push_options({"GIT_PUSH_OPTION_COUNT": ""}) == []


@pytest.mark.parametrize(
    ("options", "understood"),
    [
        ([], PushOptions()),
        (["nap.deploy=no"], PushOptions(deploy=False)),
        (["nap.deploy=no", "nap.deploy=yes"], PushOptions()),
        (["nap.wait=no", "nap.branch=feature/x"], PushOptions(wait=False, branch="feature/x")),
        (["nap.branch=refs/heads/main"], PushOptions(branch="main")),
        (
            ["ci.skip", "merge_request.create", "nap.dploy=no"],
            PushOptions(unknown=("ci.skip", "merge_request.create", "nap.dploy=no")),
        ),
    ],
)
def test_push_options_are_understood(options: list[str], understood: PushOptions) -> None:
    assert push_options(options) == understood


@pytest.mark.parametrize(
    "option", ["nap.deploy", "nap.deploy=", "nap.deploy=maybe", "nap.wait=NO", "nap.branch", "nap.branch="]
)
def test_a_push_option_with_a_wrong_value_is_refused_by_its_name(option: str) -> None:
    with pytest.raises(NapError, match=rf"^push option {option.partition('=')[0]}: expected ") as error:
        push_options([option])
    assert error.value.advice


def test_deploy_branch_of_a_deleted_master(repository: Repository) -> None:
    repository.commit(DOCKERFILE, branch="main")
    assert branch_of(repository, RefUpdate(OLD, NONE, "refs/heads/master")) == "master", (
        "of the one that is deleted now"
    )
    assert branch_of(repository) == "main"


def test_head_follows_the_deploy_branch_in_naps_own_repositories(tmp_path: Path) -> None:
    state = State(tmp_path)
    own, other = (Repository(folder / "hello.git") for folder in (state.repositories, tmp_path / "gitolite"))

    def after_commit(repository: Repository, branch: str) -> bytes:
        repository.commit(DOCKERFILE, branch=branch)
        usual_branch(repository.path, state, [RefUpdate(NONE, NEW, f"refs/heads/{branch}")])
        return repository.git("symbolic-ref", "HEAD")

    branches = ("topic", "later", "main", "master", "last")
    expected = {"topic": "topic", "later": "topic", "main": "main", "master": "master", "last": "master"}
    assert {branch: after_commit(own, branch) for branch in branches} == {
        branch: f"refs/heads/{head}".encode() for branch, head in expected.items()
    }
    assert {after_commit(other, branch) for branch in branches} == {b"refs/heads/topic"}
    own.git("config", "nap.branch", "nosuch")
    assert usual_branch(own.path, state) == "nosuch"
    assert own.git("symbolic-ref", "HEAD") == b"refs/heads/master", "it never leads nowhere"
    own.git("config", "nap.branch", "topic")
    assert usual_branch(own.path, state) == "topic"
    assert own.git("symbolic-ref", "HEAD") == b"refs/heads/topic"


def test_deletion_of_the_deploy_branch_is_told_among_many_others(repository: Repository) -> None:
    updates = [RefUpdate(NONE, NEW, f"refs/tags/v{number}") for number in range(100)]
    deployment, said = pushed(repository, *updates, RefUpdate(OLD, NONE, "refs/heads/master"))
    assert deployment is None
    assert said[0] == "branch master deleted: it deploys hello, which keeps running as it is"
    assert said[-1] == "91 more refs: kept as pushed, not deployed"


def test_what_a_repository_says(repository: Repository) -> None:
    assert repository_settings(repository.path) == {}
    repository.git("config", "nap.branch", "a\nb = c")
    repository.git("config", "nap.timeOut", "5")
    repository.git("config", "napper.branch", "no")
    assert repository_settings(repository.path) == {"branch": "a\nb = c", "timeout": "5"}
    assert checked_setting(repository.path, "timeout", str.isdecimal, "a number") == "5"
    with pytest.raises(NapError, match=r"hello\.git/config: nap\.branch: expected a number, got"):
        checked_setting(repository.path, "branch", str.isdecimal, "a number")


def test_what_a_branch_is_at(repository: Repository) -> None:
    commit = repository.commit(DOCKERFILE)
    assert commit_of(repository.path, "master") == commit
    assert commit_of(repository.path, "main") is None
    assert commit_of(repository.path, "-x") is None
