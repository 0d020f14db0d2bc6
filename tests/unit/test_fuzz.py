"""Some thousands of inputs for every parser of what strangers write; `make fuzz` runs a million."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import MOST_SECONDS, TARGETS, seconds_of

EXAMPLES = 150


def changed(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed, where a piece is taken out and other bytes are put in; or bytes."""

    def spliced(seed: bytes, start: int, length: int, piece: bytes, times: int) -> bytes:
        at = start % (len(seed) + 1)
        return seed[:at] + piece * times + seed[at + length :]

    pieces = st.sampled_from([b"", b"\0", b"\n", b" ", b"*", b"[", b'"', b"{", b"\xff", b"9", b"-", b"/"]) | st.binary(
        max_size=8
    )
    numbers = st.integers(0, 1000)
    return st.builds(spliced, st.sampled_from(seeds), numbers, st.integers(0, 9), pieces, st.integers(0, 50))


@pytest.mark.parametrize("target", TARGETS)
def test_parser_gives_a_value_or_an_error_in_a_sentence(target: str) -> None:
    seeds = TARGETS[target][1]
    for seed in seeds:
        assert seconds_of(target, seed) < MOST_SECONDS

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(changed(seeds))
    def parsed(data: bytes) -> None:
        assert seconds_of(target, data) < MOST_SECONDS

    parsed()
