"""Unroll functions and estimators under the transformations of docs/transformations.md.

The essential tier checks one entry of every row that has a rule of its own, the exhaustive tier
those entries whose code another entry does not run. `python -m tests.support.transformations` and
`python -m tests.support.estimator_transformations` measure all of them.
"""

import pytest

from tests.support import estimator_transformations as of_estimators
from tests.support import transformations as of_unrolls

UNROLLS, ESTIMATORS = of_unrolls.tables()
FORWARD = "can't apply forward-mode"


def entries(table, rows, columns, checked, few):
    """Parametrise by the entries to be checked; those not in `few` are exhaustive tests."""
    assert list(table) == [(row, column) for row in rows for column in columns]
    assert set(table.values()) == {"yes", "error"} and few <= checked <= set(table)
    assert {row for row, _ in checked} == set(rows)
    return [
        pytest.param(
            *entry, word, marks=() if entry in few else pytest.mark.exhaustive, id=" ".join(entry)
        )
        for entry, word in table.items()
        if entry in checked
    ]


def check(module, row, column, word, N):
    if word == "error":
        with pytest.raises(TypeError, match=FORWARD):
            module.error_of(row, column, N)
    else:
        assert module.error_of(row, column, N) < 1e-8


# Columns whose mapped axis is as long as the sequence; in the others the lengths differ.
AS_LONG = ("vmap of grad", "grad of vmap", "grad of vmap of grad")
# Rows with rules of their own for derivatives and for vmap: all columns. `unroll` has rules for
# derivatives only, and all of its rows are traced alike by vmap and scan: one row has all columns.
RULES = ("`unroll`, `LSTM`", "`numba_cpu.unroll`, `Elman`", "`pallas_gpu.unroll`, `GRU`")
DERIVED = ("jvp", "jvp of grad", "vmap of grad", "grad of vmap of grad")
# Second derivatives under vmap are what a custom rule gets wrong first: also of numba and of LSTM.
ONE_EACH = {
    ("`unroll`, `LSTM`", "grad of vmap of grad"),
    ("`unroll`, `MinGRU`", "vmap of grad"),
    ("`unroll`, `Stack`", "grad"),
    ("`unroll`, `ClippedCell`", "jvp"),
    ("`unroll`, `CarriesOnly()`", "grad"),
    ("`unroll`, `Segments(2)`", "remat"),
    ("`unroll`, `reverse`", "grad"),
    ("`parallel_unroll`, `MinGRU`", "vmap of grad"),
    ("`newton_unroll`, `GRU`", "jvp"),
    ("`quasi_newton_unroll`, `GRU`", "jvp"),
    ("`numba_cpu.unroll`, `Elman`", "grad of vmap of grad"),
    ("`pallas_gpu.unroll`, `GRU`", "vmap params"),
}
CHECKED = ONE_EACH | {
    (row, column)
    for row in of_unrolls.ROWS
    for column in (of_unrolls.COLUMNS if row in RULES else DERIVED)
    if row != "`numba_cpu.unroll`, `LSTM`" or column == "grad of vmap of grad"  # as Elman
}


@pytest.mark.parametrize(
    ("row", "column", "word"),
    entries(UNROLLS, of_unrolls.ROWS, of_unrolls.COLUMNS, CHECKED, ONE_EACH),
)
def test_an_unroll_function_equals_plain_unroll(row, column, word):
    check(of_unrolls, row, column, word, of_unrolls.T if column in AS_LONG else 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "row",
    [row for row in of_unrolls.ROWS if not row.startswith("`unroll`") and "Elman" not in row]
    + ["`unroll`, `LSTM`"],
)
def test_float32_gradients_are_those_of_float64(row):
    assert of_unrolls.float32_error_of(row) < 1e-5


# `vmap of scan` has `vmap params` and `scan` in it, and `vmap of grad` has `grad`. Batches and keys
# under vmap matter where they choose a branch, a pattern of zeros or random numbers.
OF_CALLS = {(row, column) for row in of_estimators.ROWS for column in ("vmap of scan", "jvp")}
OF_CALLS |= {
    (f"`{name}", column)
    for column, names in {
        "vmap batch": ("truncated_bptt`, k2 > k1", "adaptive_bptt`", "snap`"),
        "vmap key": ("random_window_bptt`", "randomized_bptt`", "uoro`"),
        "vmap of grad": ("full_bptt`", "truncated_bptt`, k2 > k1"),
    }.items()
    for name in names
}
FEW = {("`truncated_bptt`, k2 > k1", "vmap of scan"), ("`randomized_bptt`", "vmap key")}


@pytest.mark.parametrize(
    ("row", "column", "word"),
    entries(ESTIMATORS, of_estimators.ROWS, of_estimators.COLUMNS, OF_CALLS, FEW),
)
def test_an_estimator_equals_the_loop(row, column, word):
    check(of_estimators, row, column, word, 3)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if "k2 = k1" in row else pytest.mark.exhaustive)
        for row in of_estimators.ROWS
    ],
)
def test_the_derivative_of_an_estimate_is_its_finite_difference(row):
    """The table compares two unroll functions; a derivative that the estimator loses is in both."""
    assert of_estimators.error_of_derivative(row) < 1e-6
