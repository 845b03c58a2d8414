"""Which sum happens in which dtype: every row of the table in docs/precision.md.

Sums inside of programs are read from the jaxpr, which compiles nothing. Other sums have a value
that survives in float32 only: 4,096 equal terms stop growing in half precision.
"""

import functools
import itertools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.cells import DiagonalLinear, Elman, GRUResetBefore, MinGRU
from tbptt.estimators import AwdLengths, ConstantRate
from tbptt.unroll import CarriesOnly
from tbptt.windows import total_weight

PAGE = (Path(__file__).parents[1] / "docs" / "precision.md").read_text()
B, D, H, N = 3, 8, 5, 4096
MANY = 200_000  # steps of several blocks
F32, BF16, F16 = (jnp.dtype(d) for d in (jnp.float32, jnp.bfloat16, jnp.float16))


def test_the_table_has_the_rows_that_are_tested_here():
    table = PAGE.split("## Which sum happens in which dtype")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 8 and all("float32" in row or "dtype" in row for row in rows[2:])


def equations(jaxpr):
    """Yield all equations of a jaxpr, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def program(cell, **options):
    """Return the equations of a gradient by `unroll`, and the shapes of its parameters."""
    shapes = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype))
    params, carry = jax.eval_shape(lambda: (cell.init(jax.random.key(0)), cell.initial_carry((B,))))
    xs = jax.ShapeDtypeStruct((MANY, B, D), jax.tree.leaves(carry)[0].dtype)

    def loss(params, carry, xs):
        carry, ys = tbptt.unroll(cell, params, carry, xs, **options)
        return sum(jnp.sum(leaf) for leaf in (*jax.tree.leaves(carry), ys))

    traced = jax.make_jaxpr(jax.grad(loss))(*shapes((params, carry)), xs)
    return list(equations(traced.jaxpr)), {leaf.shape for leaf in jax.tree.leaves(params)}


def scan_carries(eqns):
    """Return (shape, dtype) of every array that a scan passes from step to step."""
    scans = [eqn for eqn in eqns if eqn.primitive.name == "scan"]
    pairs = [zip(eqn.params["jaxpr"].outvars, eqn.outvars, strict=True) for eqn in scans]
    # The other outputs of a scan have an axis more than those of its body.
    same = [v.aval for of, v in itertools.chain(*pairs) if of.aval.shape == v.aval.shape]
    return [(aval.shape, aval.dtype) for aval in same]


@pytest.mark.parametrize(
    ("make", "dtype", "compute"),
    [
        (Elman, F32, BF16),
        (tbptt.GRU, F32, F16),
        (tbptt.GRU, BF16, None),
        (tbptt.LSTM, F16, None),
    ],
)
def test_products_carry_and_weight_gradient_of_a_cell(make, dtype, compute):
    eqns, params = program(make(D, H, dtype=dtype, compute_dtype=compute))
    products = [eqn for eqn in eqns if eqn.primitive.name == "dot_general"]
    assert len(products) >= 4
    for eqn in products:  # with x, with h, of the cotangent, and for the weight gradient
        assert {v.aval.dtype for v in eqn.invars} == {compute or dtype}
        assert {v.aval.dtype for v in eqn.outvars} == {dtype}
    assert [eqn.primitive.name for eqn in eqns].count("scan") >= 3  # also backward, over blocks
    carried = scan_carries(eqns)
    assert {kind for shape, kind in carried if shape == (B, H)} == {dtype}
    over_blocks = [kind for shape, kind in carried if shape in params]
    assert set(over_blocks) == {F32} and len(over_blocks) >= len(params)


@pytest.mark.parametrize(("make", "half"), [(MinGRU, BF16), (GRUResetBefore, F16)])
def test_weight_gradient_of_a_cell_without_a_backward_pass(make, half):
    cell = make(D, H, dtype=half)
    for options, want in (({}, half), ({"remat": CarriesOnly()}, F32)):
        eqns, params = program(cell, **options)
        assert {kind for shape, kind in scan_carries(eqns) if shape in params} == {want}


def test_losses_and_weights_are_summed_over_steps_and_rows_in_float32():
    """Each step has the loss 2^-10; sums in half precision stop at 2^-10 times 256 or 2048."""
    half, cell = F16, DiagonalLinear(1, 2, dtype=F16)
    readout = nn.Dense(1, dtype=half, param_dtype=half)
    params, carry = jax.eval_shape(
        lambda: (tbptt.init_params(jax.random.key(0), cell, readout), cell.initial_carry((1,)))
    )
    params, carry = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), (params, carry))
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    batch = tbptt.Batch(np.zeros((N, 1, 1), half), np.full((N, 1, 1), 2.0**-5, half))
    weights = [np.ones((N, 1), dtype) for dtype in (half, bool, np.uint8, np.int32)]

    @jax.jit
    def sums(params, carry, batches):
        return [(loss_fn(params, carry, b)[0], total_weight(b)) for b in batches]

    batches = [batch._replace(weights=w) for w in (None, *weights)]
    for loss_sum, total in sums(params, carry, batches):
        assert loss_sum.dtype in (F32, jnp.float64) and total.dtype in (F32, jnp.float64)
        assert float(loss_sum) == N * 2.0**-10 and float(total) == N


ESTIMATORS = {
    "full": tbptt.full_bptt,
    "disjoint": lambda loss: tbptt.truncated_bptt(loss, 1, 1),
    "overlapping": lambda loss: tbptt.truncated_bptt(loss, 1, 2),
    "grouped": lambda loss: tbptt.truncated_bptt(loss, 1, 1, group=64),
    "adaptive": lambda loss: tbptt.adaptive_bptt(loss, 1, (1, 2), 0.1, lags=4, tau=2),
    "random windows": lambda loss: tbptt.estimators.random_window_bptt(loss, 1, AwdLengths(4)),
    "randomized": lambda loss: tbptt.randomized_bptt(loss, 1, ConstantRate(6)),
    "rtrl": tbptt.rtrl,
    "sparse_rtrl": tbptt.estimators.sparse_rtrl,
    "snap": lambda loss: tbptt.snap(loss, 1),
    "uoro": tbptt.uoro,
    "by a constant": lambda loss: tbptt.estimators.normalised(tbptt.full_bptt, N)(loss),
}


def test_losses_and_gradients_are_summed_over_windows_in_float32():
    """Every window has the loss 2 and the gradient 1."""
    half = BF16

    def loss_fn(params, carry, batch):
        return jnp.sum(params * batch.inputs.astype(F32)).astype(half), carry

    params, carry = np.full((), 2, half), np.zeros((1,), half)
    batch = tbptt.Batch(np.ones((N, 1, 1), half), None, weights=np.ones((N, 1), half))

    @jax.jit
    def all_of_them():
        found = {}
        for name, make in ESTIMATORS.items():
            estimator = make(loss_fn)
            memory = estimator.init(params, carry, batch)
            found[name] = estimator.estimate(params, memory, batch, jax.random.key(0))[:2]
        return found

    sums_of_groups = [
        eqn.outvars[0].aval.dtype
        for eqn in equations(jax.make_jaxpr(all_of_them)().jaxpr)
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape == params.shape
    ]
    assert sums_of_groups == [F32]
    for name, (loss, grads) in all_of_them().items():
        assert (loss.dtype, grads.dtype) == (F32, half), name
        assert (float(loss), float(grads)) == (2, 1), name


def test_a_global_norm_is_computed_in_float32():
    half = BF16
    norm = jax.jit(tbptt.optim.global_norm)({"w": np.full((N,), 512, half)})
    assert norm.dtype == F32 and float(norm) == 512 * 64
