"""The parallel scan is `unroll`, in values and gradients, and no loop is left in it."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import LSTM, DiagonalLinear, MinGRU, MinLSTM, Stack
from tbptt.parallel_scan import parallel_unroll
from tbptt.unroll import unroll
from tests.problems import assert_same, everything, looped, plain_answer, problem

D, H, B, T = 3, 4, 2, 7


class Phasor(NamedTuple):
    """Two leaves of different rank, so that nothing rests on the carry being one [H]."""

    slow: jax.Array
    fast: jax.Array


class Integrators(DiagonalLinear):
    """A user's affine cell: a start that is not 0, a carry of two leaves, and outputs that read x."""

    def initial_carry(self, batch_shape=()):
        return Phasor(jnp.full((*batch_shape, H), 0.5), jnp.full((*batch_shape, 2, H), -0.25))

    def affine(self, params, xs):
        b = jnp.sin(xs @ params.w_x + params.b)
        a = jnp.broadcast_to(params.a, b.shape)
        return Phasor(a, jnp.stack([a / 2, a / 3], -2)), Phasor(b, jnp.stack([b, b**2], -2))

    def outputs(self, params, carries, xs):
        return carries.slow * carries.fast[..., 0, :] + carries.fast[..., 1, :] * xs[..., :1]

    def __call__(self, params, carry, x):
        a, b = self.affine(params, x)
        carry = jax.tree.map(lambda a, h, b: a * h + b, a, carry, b)
        return carry, self.outputs(params, carry, x)


CELLS = [DiagonalLinear(D, H), MinGRU(D, H), MinLSTM(D, H), Integrators(D, H)]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


@pytest.mark.parametrize(  # every two of the three values meet
    ("cell", "use", "reverse"),
    [
        (c, use, (i + j) % 2 == 0)
        for j, use in enumerate(("", "resets", "mask", "resets mask"))
        for i, c in enumerate(CELLS)
    ],
    ids=lambda value: str(value) if isinstance(value, str | bool) else type(value).__name__,
)
def test_is_the_plain_loop(cell, use, reverse):
    params, carry, xs, given = problem(cell)
    given = {name: given[name] for name in use.split()}
    got = everything(lambda *a: parallel_unroll(cell, *a, **given, reverse=reverse), params, carry, xs)
    want = looped(cell, params, carry, xs, **given, reverse=reverse)
    assert_same(got, want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@pytest.mark.parametrize(  # every two of the three values meet, and the deepest tree goes both ways
    ("cell", "reverse", "steps"),
    [(c, (i + steps) % 2 == 1, steps) for steps in (1, 2) for i, c in enumerate(CELLS)]
    + [(c, reverse, 300) for reverse in (False, True) for c in CELLS],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_is_the_scan_at_every_depth_of_the_tree(cell, reverse, steps):
    params, carry, xs, given = problem(cell, steps=steps)
    got = everything(lambda *a: parallel_unroll(cell, *a, **given, reverse=reverse), params, carry, xs)
    assert_same(got, plain_answer(cell, steps=steps, reverse=reverse), 1e-10)


@each_cell
def test_no_steps_return_the_carry(cell):
    params, carry, xs, given = problem(cell)
    last, ys = parallel_unroll(cell, params, carry, xs[:0], resets=given["resets"][:0], mask=given["mask"][:0])
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    mask = jnp.ones((T, B), bool).at[:, 1].set(False)  # a lane that does not exist at all: nothing is reset there either
    resets = given["resets"].at[:, 1].set(True)
    last, ys = jax.jit(parallel_unroll, static_argnums=0)(cell, params, carry, xs, resets=resets, mask=mask)
    assert_same(jax.tree.map(lambda a: a[1], last), jax.tree.map(lambda a: a[1], carry), 0)
    assert bool(jnp.all(ys[:, 1] == 0)) and bool(jnp.all(ys[:, 0] != 0))


@each_cell
def test_nan_padding_changes_nothing(cell):
    params, carry, xs, _ = problem(cell, ())
    real = np.array([1, 2, 4, 7, 8, 9, 11])
    mask = np.zeros(T + 6, bool)
    mask[real] = True

    def padded(params, carry, xs):
        holes = jnp.full((T + 6, D), jnp.nan).at[real].set(xs)
        carry, ys = parallel_unroll(cell, params, carry, holes, mask=mask)
        return carry, ys[real], ys[~mask]

    (last, ys, at_holes), grads = everything(padded, params, carry, xs)
    assert_same(((last, ys), grads), plain_answer(cell, (), use=""))
    assert bool(jnp.all(at_holes == 0))


@each_cell
def test_no_gradient_crosses_a_reset(cell):
    params, carry, xs, _ = problem(cell)
    resets = jnp.zeros((T, B), bool).at[4].set(True)

    def after(carry, xs, resets):
        last, ys = parallel_unroll(cell, params, carry, xs, resets=resets)
        return jnp.sum(ys[4:] ** 2) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

    slopes = jax.jit(jax.grad(after, argnums=(0, 1)))
    to_carry, to_xs = slopes(carry, xs, resets)
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves((to_carry, to_xs[:4])))
    open_carry, open_xs = slopes(carry, xs, jnp.zeros_like(resets))
    assert all(bool(jnp.all(leaf != 0)) for leaf in jax.tree.leaves((open_carry, open_xs)))


@pytest.mark.parametrize("at", [0, 3])
def test_a_reset_recovers_a_lane_that_diverged(at):
    cell = DiagonalLinear(D, H)
    params, carry, xs, _ = problem(cell)
    carry = carry._replace(h=carry.h.at[0].set(jnp.inf).at[1].set(jnp.nan))
    resets = jnp.zeros((T, B), bool).at[at].set(True)
    got, want = (run(cell, params, carry, xs, resets=resets) for run in (parallel_unroll, unroll))
    assert_same(got, want)
    assert bool(jnp.all(jnp.isfinite(got[1][at:]))) and not bool(jnp.any(jnp.isfinite(got[1][:at])))


def test_batched_is_vmapped():
    cell = MinLSTM(D, H)
    params, carry, xs, given = problem(cell, (3, 2))
    one = jax.jit(lambda c, x, r, m: parallel_unroll(cell, params, c, x, resets=r, mask=m))
    two = jax.jit(jax.vmap(jax.vmap(one, (0, 1, 1, 1), (0, 1)), (0, 1, 1, 1), (0, 1)))
    assert_same(*(run(carry, xs, given["resets"], given["mask"]) for run in (one, two)))


def test_second_derivatives_and_forward_mode():
    cell = MinGRU(D, 2)
    params, carry, xs, given = problem(cell, steps=5)

    def curvature(run):
        def loss(b):
            last, ys = run(cell, params._replace(b=b), carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last.h**3)

        return jax.jit(jax.hessian(loss))(params.b)  # forward over reverse

    got, want = curvature(parallel_unroll), curvature(unroll)
    assert_same(got, want)
    assert float(jnp.max(jnp.abs(want))) > 1e-2


@each_cell
def test_neither_it_nor_its_gradient_holds_a_loop(cell):
    params, carry, xs, given = problem(cell)
    programs = []
    for run in (parallel_unroll, unroll):

        def loss(params, carry, xs, run=run):
            last, ys = run(cell, params, carry, xs, **given)
            return jnp.sum(ys**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))

        programs.append(str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(params, carry, xs)))
    ours, theirs = programs
    assert "scan[" not in ours and "while[" not in ours and "scan[" in theirs


def test_float32_over_2000_steps():
    """Against float64: values within 1e-5, gradients within 1e-4 of their largest entry (float32 has 6e-8)."""
    params, carry, xs, given = problem(MinGRU(D, 16), steps=2000)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, carry, xs))

    def run(dtype, *args):
        return everything(lambda *a: parallel_unroll(MinGRU(D, 16, dtype=dtype), *a, **given), *args)

    exact, got = run(None, params, carry, xs), run(jnp.float32, *single)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    for tolerance, ours, theirs in zip((1e-5, 1e-4), got, exact, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert float(jnp.max(jnp.abs(a - b))) <= tolerance * float(jnp.max(jnp.abs(b)))


class Misshapen(MinGRU):
    """A user's cell gone wrong: its decays have no time axis."""

    def affine(self, params, xs):
        a, b = super().affine(params, xs)
        return a._replace(h=a.h[0]), b


CELL = MinGRU(D, H)
PARAMS, CARRY, XS = CELL.init(jax.random.key(0)), CELL.initial_carry((B,)), jnp.ones((T, B, D))


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, r"LSTM does not say that it is linear.*use unroll, or newton_unroll", {"cell": LSTM(D, H)}),
        (TypeError, r"Stack does not say.*layer by layer", {"cell": Stack((MinGRU(D, H),))}),
        (TypeError, r"xs must be floating.*int", {"xs": jnp.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": jnp.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(7, 2\); got \(7,\)", {"resets": jnp.ones((T,), bool)}),
        (ValueError, r"carry\.h must be .*\[2, 4\]; got .*\[4\]", {"carry": CELL.initial_carry()}),
        (
            ValueError,
            r"a of Misshapen.affine\.h must be float64\[7, 2, 4\]; got float64\[2, 4\]",
            {"cell": Misshapen(D, H)},
        ),
    ],
)
def test_errors_name_what_is_wrong(error, words, change):
    given = {"cell": CELL, "params": PARAMS, "carry": CARRY, "xs": XS} | change
    # Only the library's own message counts: jaxtyping's hook of the tests would speak first.
    with pytest.raises(error, match=words):
        inspect.unwrap(parallel_unroll)(**given)
