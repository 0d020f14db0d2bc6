"""How much one app and one user may have."""

from pathlib import Path

import msgspec
import pytest

from nap_receiver.auth.keys import add_key, keys
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import LimitSettings
from nap_receiver.model.bounds import require_instances, require_process_types, require_variables
from nap_receiver.model.release import Outcome
from nap_receiver.model.retention_policy import out_of_ledger
from tests.releases import history, live

LIMITS = LimitSettings()


def refused(error: pytest.ExceptionInfo[NapError]) -> tuple[str, str]:
    """What is said, and the last advice."""
    return str(error.value), error.value.advice[-1]


def test_an_app_has_so_many_variables_and_bytes_of_them() -> None:
    many = {f"V{i}": "" for i in range(LIMITS.variables)}
    require_variables("shop", {}, many, LIMITS)
    with pytest.raises(NapError) as error:
        require_variables("shop", many, many | {"ONE": "more"}, LIMITS)
    assert refused(error) == (
        "shop would have 501 variables; the limit is 500 (limits.variables)",
        "The operator of this nap can raise limits.variables.",
    )
    large = {"NAME": "é" * ((LIMITS.variable_bytes - 4) // 2)}
    require_variables("shop", {}, large, LIMITS)
    with pytest.raises(NapError, match="shop would have variables of 131073 bytes in all; the limit is 131072"):
        require_variables("shop", large, large | {"A": ""}, LIMITS)


def test_what_is_there_stays_when_a_limit_is_lowered() -> None:
    few = msgspec.structs.replace(LIMITS, variables=1, process_types=1, instances=1)
    before = {"A": "1", "B": "2", "C": "3"}
    require_variables("shop", before, before | {"A": "4"}, few)
    require_variables("shop", before, {"A": "1", "B": "2"}, few)
    with pytest.raises(NapError, match="shop would have 4 variables; the limit is 1"):
        require_variables("shop", before, before | {"D": "4"}, few)
    require_process_types("shop", 3, 3, few)
    require_instances("shop", {"web": 3}, {"web": 2, "worker": 1}, few)


def test_an_app_has_so_many_process_types_and_instances() -> None:
    require_process_types("shop", 50, 0, LIMITS)
    with pytest.raises(NapError, match=r"shop would have 51 process types; the limit is 50 \(limits.process_types"):
        require_process_types("shop", 51, 50, LIMITS)
    require_instances("shop", {}, {"web": 100, "worker": 100}, LIMITS)
    with pytest.raises(NapError) as error:
        require_instances("shop", {"web": 100}, {"web": 100, "worker": 101}, LIMITS)
    assert refused(error)[0] == "shop would have 201 instances; the limit is 200 (limits.instances)"


def test_a_user_has_so_many_keys(tmp_path: Path) -> None:
    state, limits = State(tmp_path), msgspec.structs.replace(LIMITS, keys=1)
    made = [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{letter * 43}" for letter in "AB"]
    add_key(state, "ann", made[0], limits)
    with pytest.raises(NapError, match=r"ann would have 2 keys; the limit is 1 \(limits.keys\)"):
        add_key(state, "ann", made[1], limits)
    add_key(state, "bob", made[1], limits)
    assert [key.user for key in keys(state)] == ["ann", "bob"]


@pytest.mark.parametrize(
    ("releases", "most", "keep", "running", "going"),
    [
        ("a b c d", 4, 1, [], []),
        ("a b c d", 2, 1, [], [1, 2]),
        ("a b c d", 2, 3, [], [1]),
        ("a b c d", 0, 1, [], [1, 2, 3]),
        ("a b c d", 1, 1, ["x.v2.web.1"], [1, 3]),
        ("a b! c! d!", 1, 1, [], [2, 3]),
        ("a! b! c!", 1, 10, [], [1, 2]),
        ("a b? c", 1, 1, [], [1]),
        ("", 0, 1, [], []),
    ],
    ids=["few", "old", "live", "current", "running", "failed", "never live", "unfinished", "none"],
)
def test_which_releases_stay_on_record(
    releases: str, most: int, keep: int, running: list[str], going: list[int]
) -> None:
    ended = {"!": Outcome("failed"), "?": None}
    words = [(word[0], ended.get(word[1:], Outcome("live"))) for word in releases.split()]
    assert [each.number for each in out_of_ledger(history(*words), most, keep, running)] == going


def test_what_a_rollback_goes_back_to_stays_on_record() -> None:
    assert [each.number for each in out_of_ledger(live("a b b+1 b+1 b+1 b+1"), 1, 2)] == [1, 3, 4]
