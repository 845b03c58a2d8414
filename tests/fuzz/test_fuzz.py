"""Generated calls either equal a reference in numpy or are refused by name; see __main__.py.

`make fuzz` runs 10,000 calls and writes results.json; here are 200.
"""

import json
import pathlib

import numpy as np
import pytest

from tests.fuzz.calls import outcome
from tests.fuzz.programs import program_of

FEW = (0, 1, 5, 7)  # truncated_bptt, full_bptt and unroll; compiling is what takes time
MORE = tuple(set(range(16)) - set(FEW))


@pytest.mark.parametrize(
    "numbers", [FEW, pytest.param(MORE, marks=pytest.mark.exhaustive)], ids=["few", "more"]
)
def test_a_call_equals_the_reference_or_is_refused(numbers):
    draw = np.random.default_rng(numbers[0])
    for _ in range(100):
        call = program_of(int(draw.choice(numbers))), int(draw.integers(2**32))
        assert outcome(*call) in ("equal", "refused")


def test_both_outcomes_occur():
    found = {outcome(program_of(number), 0) for number in FEW}
    assert found == {"equal", "refused"}


def test_the_recorded_campaign_found_nothing():
    record = json.loads((pathlib.Path(__file__).parent / "results.json").read_text())
    assert record["calls"] >= 10_000 and set(record["counts"]) == {"equal", "refused"}
