"""Generated calls either equal a reference in numpy or are refused by name; see __main__.py.

`make fuzz` runs 10,000 calls and writes results.json; here are 200.
"""

import json
import pathlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.calls import outcome
from tests.fuzz.programs import program_of

PROGRAMS = 16  # of the first ones; compiling is what takes time


@settings(
    max_examples=200, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.integers(0, PROGRAMS - 1), st.integers(0, 2**32 - 1))
def test_a_call_equals_the_reference_or_is_refused(number, seed):
    assert outcome(program_of(number), seed) in ("equal", "refused")


def test_both_outcomes_occur():
    found = {outcome(program_of(number), 0) for number in range(PROGRAMS)}
    assert found == {"equal", "refused"}


def test_the_recorded_campaign_found_nothing():
    record = json.loads((pathlib.Path(__file__).parent / "results.json").read_text())
    assert record["calls"] >= 10_000 and set(record["counts"]) == {"equal", "refused"}
