"""`parallel_unroll` equals `unroll`, and its program contains no loop over time."""

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import LSTM, DiagonalLinear, MinGRU, MinLSTM, Stack
from tbptt.unroll import plain_unroll, unroll
from tbptt.unroll.associative import parallel_unroll
from tests.support.problems import (
    assert_same,
    plain_reference,
    problem,
    reference_loop,
    values_and_gradients,
    with_gradients,
)

D, H, B, T = 3, 4, 2, 7


class Phasor(NamedTuple):
    """A carry of two leaves with different ranks."""

    slow: jax.Array
    fast: jax.Array


class Integrators(DiagonalLinear):
    """An affine cell with two leaves, a nonzero initial carry, and outputs that depend on x."""

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
RESETS_AND_MASK = ("resets", "mask")
NO_RESETS, ALL_STEPS = np.zeros((T, B), bool), np.ones((T, B), bool)
DIAGONAL, MIN_GRU, MIN_LSTM, INTEGRATORS = CELLS
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def name(value):
    return str(value) if isinstance(value, int | tuple) else type(value).__name__


one_and_two_leaves = pytest.mark.parametrize("cell", [DIAGONAL, INTEGRATORS], ids=name)


@functools.cache
def unrolled(cell, reverse):
    """Return a compiled function of params, carry, xs and flags; its loss is of `counted` ys."""

    def run(params, carry, xs, counted, **flags):
        last, ys = parallel_unroll(cell, params, carry, xs, reverse=reverse, **flags)
        return last, jnp.where(counted[..., None], ys, 0)

    compiled = with_gradients(run)
    return lambda *args, counted=ALL_STEPS, **flags: compiled(*args, counted=counted, **flags)


def flags_of(given, use):
    """Return the flags in `use`; the others have no effect, so that all uses share one program."""
    return {"resets": NO_RESETS, "mask": ALL_STEPS} | {
        name: np.asarray(given[name]) for name in use
    }


@pytest.mark.parametrize(
    ("cell", "reverse"),
    [
        (DIAGONAL, False),
        (INTEGRATORS, True),
        exhaustive(MIN_GRU, False),
        exhaustive(MIN_LSTM, True),
    ],
    ids=name,
)
def test_equals_the_reference_loop(cell, reverse):
    params, carry, xs, given = problem(cell)
    for use in ((), ("resets",), ("mask",), RESETS_AND_MASK):
        flags = flags_of(given, use)
        padded_xs = np.where(flags["mask"][..., None], xs, np.nan)
        got = unrolled(cell, reverse)(params, carry, padded_xs, **flags)
        want = reference_loop(cell, params, carry, xs, **flags, reverse=reverse)
        assert_same(got, want)
        # The gradient is not zero.
        assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1][0])) > 1e-3


@pytest.mark.parametrize(
    ("cell", "use"),
    [(DIAGONAL, ()), (INTEGRATORS, ("resets",)), (DIAGONAL, ("mask",))],
    ids=name,
)
def test_flags_are_optional(cell, use):
    params, carry, xs, given = problem(cell)
    given = {name: given[name] for name in use}
    assert_same(
        unrolled(cell, False)(params, carry, xs, **given),
        reference_loop(cell, params, carry, xs, **given),
    )


@pytest.mark.parametrize(
    ("cell", "steps", "reverse"),
    [
        (DIAGONAL, 1, True),
        (DIAGONAL, 2, False),
        (DIAGONAL, 37, True),
        exhaustive(INTEGRATORS, 300, False),
    ],
    ids=name,
)
def test_equals_plain_unroll_at_every_tree_depth(cell, steps, reverse):
    params, carry, xs, given = problem(cell, steps=steps)
    got = values_and_gradients(
        lambda *a: parallel_unroll(cell, *a, **given, reverse=reverse), params, carry, xs
    )
    assert_same(got, plain_reference(cell, steps=steps, reverse=reverse), 1e-10)


def test_zero_steps_return_the_carry():
    cell = INTEGRATORS
    params, carry, xs, given = problem(cell)
    given = {name: np.asarray(flags)[:0] for name, flags in given.items()}
    last, ys = jax.jit(functools.partial(parallel_unroll, cell))(
        params, carry, np.asarray(xs)[:0], **given
    )
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)


@one_and_two_leaves
def test_a_batch_row_without_steps_keeps_its_carry(cell):
    reverse = isinstance(cell, Integrators)
    params, carry, xs, given = problem(cell)
    mask, resets = ALL_STEPS.copy(), np.array(given["resets"])
    # A batch row without steps, where resets have no effect.
    mask[:, 1], resets[:, 1] = False, True
    last, ys = unrolled(cell, reverse)(params, carry, xs, resets=resets, mask=mask)[0]
    row = functools.partial(jax.tree.map, lambda a: np.asarray(a)[1])
    assert_same(row(last), row(carry), 0)
    ys = np.asarray(ys)
    assert np.all(ys[:, 1] == 0) and np.all(ys[:, 0] != 0)


@one_and_two_leaves
def test_nan_at_masked_steps_has_no_effect(cell):
    reverse = isinstance(cell, Integrators)
    params, carry, xs, _ = problem(cell)
    real = np.array([1, 2, 5])
    mask = NO_RESETS.copy()
    mask[real] = True
    padded = np.where(mask[..., None], xs, np.nan)
    got = unrolled(cell, reverse)(params, carry, padded, resets=NO_RESETS, mask=mask)
    assert_same(got, reference_loop(cell, params, carry, xs, mask=mask, reverse=reverse))
    (last, ys), (_, _, d_xs) = jax.tree.map(np.asarray, got)
    assert_same(
        (last, ys[real]),
        reference_loop(cell, params, carry, np.asarray(xs)[real], reverse=reverse)[0],
    )
    assert not np.any(ys[~mask]) and not np.any(d_xs[~mask])


@one_and_two_leaves
def test_no_gradient_crosses_a_reset(cell):
    reverse = isinstance(cell, Integrators)
    in_order = slice(None, None, -1 if reverse else 1)
    params, carry, xs, _ = problem(cell)
    resets, after = NO_RESETS.copy(), NO_RESETS.copy()
    resets[in_order][4], after[in_order][4:] = True, True

    def of_what_follows(resets):
        run = unrolled(cell, reverse)
        _, (_, to_carry, to_xs) = run(
            params, carry, xs, counted=after, resets=resets, mask=ALL_STEPS
        )
        return jax.tree.map(np.asarray, (to_carry, to_xs[in_order]))

    to_carry, to_xs = of_what_follows(resets)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves((to_carry, to_xs[:4])))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(of_what_follows(NO_RESETS)))


def test_reset_recovers_a_diverged_batch_row():
    cell = DIAGONAL
    params, carry, xs, _ = problem(cell)
    h = np.array(carry.h)
    h[0], h[1] = np.inf, np.nan
    plain = jax.jit(functools.partial(plain_unroll, cell))
    for at in (0, 3):
        resets = NO_RESETS.copy()
        resets[at] = True
        given = {"resets": resets, "mask": ALL_STEPS}
        got = unrolled(cell, False)(params, carry._replace(h=h), xs, **given)[0]
        assert_same(got, plain(params, carry._replace(h=h), xs, **given))
        ys = np.asarray(got[1])
        assert np.all(np.isfinite(ys[at:])) and not np.any(np.isfinite(ys[:at]))


def test_batch_axes_equal_vmap():
    cell = DIAGONAL
    params, carry, xs, given = problem(cell, (3, 2))

    @jax.jit
    def both(carry, xs, resets, mask):
        one = lambda c, x, r, m: parallel_unroll(cell, params, c, x, resets=r, mask=m)  # noqa: E731
        two = jax.vmap(jax.vmap(one, (0, 1, 1, 1), (0, 1)), (0, 1, 1, 1), (0, 1))
        return one(carry, xs, resets, mask), two(carry, xs, resets, mask)

    assert_same(*both(carry, xs, **given))


def test_second_derivatives_and_forward_mode():
    cell = DiagonalLinear(D, 2)
    params, carry, xs, given = problem(cell, steps=5)

    def curvature(run, a):
        def loss(a):
            last, ys = run(cell, params._replace(a=a), carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last.h**3)

        return jax.hessian(loss)(a)  # forward over reverse

    got, want = jax.jit(lambda a: [curvature(run, a) for run in (parallel_unroll, unroll)])(
        params.a
    )
    assert_same(got, want)
    assert np.max(np.abs(want)) > 1e-2


@one_and_two_leaves
def test_program_and_gradient_contain_no_loop(cell):
    params, carry, xs, given = problem(cell)
    programs = []
    for run in (parallel_unroll, unroll):

        def loss(params, carry, xs, run=run):
            last, ys = run(cell, params, carry, xs, **given)
            return jnp.sum(ys**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))

        programs.append(str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(params, carry, xs)))
    ours, theirs = programs
    assert "scan[" not in ours and "while[" not in ours and "scan[" in theirs


@pytest.mark.parametrize(
    ("make", "steps"), [(DiagonalLinear, 30), exhaustive(MinGRU, 2000)], ids=["30", "2000"]
)
def test_float32(make, steps):
    """Compare with float64: values to 1e-5, gradients to 1e-4 of the largest entry."""
    params, carry, xs, given = problem(make(D, 16), steps=steps)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), (params, carry, xs))

    def run(dtype, *args):
        return values_and_gradients(
            lambda *a: parallel_unroll(make(D, 16, dtype=dtype), *a, **given), *args
        )

    exact, got = run(None, params, carry, xs), run(jnp.float32, *single)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    for tolerance, ours, theirs in zip((1e-5, 1e-4), got, exact, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


class Misshapen(MinGRU):
    """An invalid cell, whose decays have no time axis."""

    def affine(self, params, xs):
        a, b = super().affine(params, xs)
        return a._replace(h=a.h[0]), b


def zeros(make, *args):
    """Return zeros with the shapes of `make(*args)`."""
    return jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(functools.partial(make, *args))
    )


CELL = MinGRU(D, H)
GIVEN = {
    "params": zeros(CELL.init, jax.random.key(0)),
    "carry": zeros(CELL.initial_carry, (B,)),
    "xs": np.ones((T, B, D)),
}


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (
            TypeError,
            r"linear in its carry.*got LSTM\. Use unroll, or newton_unroll",
            {"cell": LSTM(D, H)},
        ),
        (TypeError, r"got Stack\..*run a Stack layer by layer", {"cell": Stack((MinGRU(D, H),))}),
        (TypeError, r"xs must be floating.*int", {"xs": np.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": np.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(7, 2\); got \(7,\)", {"resets": np.ones((T,), bool)}),
        (
            ValueError,
            r"carry\.h must be .*\[2, 4\]; got .*\[4\]",
            {"carry": zeros(CELL.initial_carry, ())},
        ),
        (
            ValueError,
            r"a of Misshapen.affine\.h must be float64\[7, 2, 4\]; got float64\[2, 4\]",
            {"cell": Misshapen(D, H)},
        ),
    ],
)
def test_error_messages(error, words, change):
    given = {"cell": CELL} | GIVEN | change
    # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
    with pytest.raises(error, match=words):
        inspect.unwrap(parallel_unroll)(**given)
