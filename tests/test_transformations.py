"""Unroll functions and estimators under the transformations of docs/transformations.md.

The essential tier checks one entry of every row, the exhaustive tier all.
"""

import pytest

from tests.support import estimator_transformations as of_estimators
from tests.support import transformations as of_unrolls

UNROLLS, ESTIMATORS = of_unrolls.tables()
FORWARD = "can't apply forward-mode"


def entries(table, rows, columns, few):
    """Parametrise by all entries of a table; those not in `few` are exhaustive tests."""
    assert list(table) == [(row, column) for row in rows for column in columns]
    assert set(table.values()) == {"yes", "error"} and few <= set(table)
    return [
        pytest.param(
            *entry, word, marks=() if entry in few else pytest.mark.exhaustive, id=" ".join(entry)
        )
        for entry, word in table.items()
    ]


def check(module, row, column, word, N):
    if word == "error":
        with pytest.raises(TypeError, match=FORWARD):
            module.error_of(row, column, N)
    else:
        assert module.error_of(row, column, N) < 1e-8


def one_each(rows, columns):
    """Return one entry of every row, another column for each."""
    return {(row, columns[(5 * i + 3) % len(columns)]) for i, row in enumerate(rows)}


# Columns whose mapped axis is as long as the sequence; in the others the lengths differ.
AS_LONG = ("vmap of grad", "grad of vmap", "grad of vmap of grad")
# Second derivatives under vmap are what a custom rule gets wrong first.
HARD = {("`numba_cpu.unroll`, `Elman`", "grad of vmap of grad")}


@pytest.mark.parametrize(
    ("row", "column", "word"),
    entries(
        UNROLLS,
        of_unrolls.ROWS,
        of_unrolls.COLUMNS,
        HARD | one_each(of_unrolls.ROWS, list(of_unrolls.COLUMNS)),
    ),
)
def test_an_unroll_function_equals_plain_unroll(row, column, word):
    check(of_unrolls, row, column, word, of_unrolls.T if column in AS_LONG else 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", of_unrolls.ROWS)
def test_float32_gradients_are_those_of_float64(row):
    assert of_unrolls.float32_error_of(row) < 1e-5


FEW = {
    ("`truncated_bptt`, k2 > k1", "vmap of scan"),
    ("`randomized_bptt`", "vmap batch"),
    ("`rtrl`", "vmap of scan"),
    ("`uoro`", "vmap key"),
}


@pytest.mark.parametrize(
    ("row", "column", "word"),
    entries(ESTIMATORS, of_estimators.ROWS, of_estimators.COLUMNS, FEW),
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
