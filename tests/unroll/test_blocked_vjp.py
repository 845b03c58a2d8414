"""`unroll` equals `plain_unroll` to rounding: blocks, remainders, plans, cells, batch shapes."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, MinGRU, Stack
from tbptt.unroll import blocked_vjp
from tbptt.unroll.autodiff_vjp import AutodiffVJP, cell_vjp_of
from tbptt.unroll.block_size import even_block_length
from tbptt.unroll.remat import CarriesOnly
from tests.support.problems import (
    B,
    D,
    H,
    assert_same,
    plain_reference,
    problem,
    values_and_gradients,
    with_gradients,
)


class LeakyParams(NamedTuple):
    w: jax.Array
    leak: jax.Array


class LeakyCarry(NamedTuple):
    h: jax.Array
    trace: jax.Array


@dataclasses.dataclass(frozen=True)
class Leaky:
    """A cell without a split, whose output is not a leaf of the carry and which normalises w."""

    input_dim: int
    hidden_dim: int

    def init(self, key):
        size = (self.input_dim + self.hidden_dim, self.hidden_dim)
        return LeakyParams(jax.random.normal(key, size) * 0.6, jnp.array(0.3))

    def initial_carry(self, batch_shape=()):
        zero = jnp.zeros((*batch_shape, self.hidden_dim))
        return LeakyCarry(zero, zero + 0.5)  # a reset must restore this, not zero

    def __call__(self, params, carry, x):
        w = params.w / jnp.linalg.norm(params.w, axis=0)
        new = jax.nn.relu(jnp.concatenate([x, carry.h], -1) @ w) + 0.1 * jnp.sin(carry.trace)
        trace = params.leak * carry.trace + (1 - params.leak) * new
        return LeakyCarry(new, trace), new * trace


CELLS = [
    Elman(D, H, gain=1.2),
    Elman(D, H, activation=jax.nn.softplus),
    GRU(D, H),
    LSTM(D, H),
    DiagonalLinear(D, H),
    Leaky(D, H),
    Stack((LSTM(D, 5), Leaky(5, H))),
]
TANH, SOFTPLUS, GRU_CELL, LSTM_CELL, DIAGONAL, LEAKY, STACK = CELLS
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def name(value):
    return str(value) if isinstance(value, CarriesOnly | str) else type(value).__name__


def both(cell, use="resets mask", batch_shape=(B,), steps=7, **options):
    """Return values and gradients of `unroll` and of `plain_unroll` on the same problem."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    fast = values_and_gradients(
        lambda *a: tbptt.unroll(cell, *a, **given, **options), params, carry, xs
    )
    return fast, plain_reference(cell, batch_shape, steps, use)


def in_blocks_of_two(monkeypatch):
    monkeypatch.setattr(blocked_vjp, "block_length", lambda *_: 2)


@pytest.mark.parametrize(
    ("cell", "remat"),
    [
        (GRU_CELL, None),
        (SOFTPLUS, CarriesOnly()),
        (LSTM_CELL, CarriesOnly()),
        (STACK, CarriesOnly()),
        exhaustive(TANH, None),
        exhaustive(DIAGONAL, CarriesOnly()),
    ],
    ids=name,
)
def test_blocks_and_remainder_equal_plain_unroll(cell, remat, monkeypatch):
    """Run blocks of 2 steps, in turn with and without a remainder of one step."""
    in_blocks_of_two(monkeypatch)
    steps = 7 + (CELLS.index(cell) + (remat is None)) % 2
    params, carry, xs, given = problem(cell, steps=steps)
    run = with_gradients(functools.partial(tbptt.unroll, cell, remat=remat))
    neutral = {"resets": np.zeros((steps, B), bool), "mask": np.ones((steps, B), bool)}
    for use in ("", "resets", "resets mask"):
        fast = run(params, carry, xs, **neutral | {name: given[name] for name in use.split()})
        plain = plain_reference(cell, steps=steps, use=use)
        assert_same(fast, plain)
        assert min(np.max(np.abs(g)) for g in jax.tree.leaves(plain[1][0])) > 1e-3


@pytest.mark.parametrize(
    ("cell", "remat", "use"),
    [
        (LEAKY, CarriesOnly(), ""),
        (GRU_CELL, None, ""),
        exhaustive(LSTM_CELL, CarriesOnly(), "resets"),
        exhaustive(TANH, None, "resets"),
    ],
    ids=name,
)
def test_blocks_without_flags_equal_plain_unroll(cell, remat, use, monkeypatch):
    in_blocks_of_two(monkeypatch)
    assert_same(*both(cell, use, steps=7 + CELLS.index(cell) % 2, remat=remat))


@pytest.mark.parametrize(("cell", "batch_shape"), [(LSTM_CELL, ()), (TANH, (2, 3))], ids=name)
def test_any_batch_shape_equals_plain_unroll(cell, batch_shape):
    assert_same(*both(cell, batch_shape=batch_shape))


@pytest.mark.parametrize("cell", [TANH, MinGRU(D, H)], ids=name)
def test_vmap_equals_plain_unroll(cell):
    params, carry, xs, given = problem(cell, (2, 3))

    def batched(params, carry, xs):
        one = lambda c, x, r, m: tbptt.unroll(cell, params, c, x, resets=r, mask=m)  # noqa: E731
        two = jax.vmap(jax.vmap(one, (0, 1, 1, 1), (0, 1)), (0, 1, 1, 1), (0, 1))
        return two(carry, xs, given["resets"], given["mask"])

    assert_same(values_and_gradients(batched, params, carry, xs), plain_reference(cell, (2, 3)))


@pytest.mark.parametrize("cell", [TANH, exhaustive(LSTM_CELL)], ids=name)
def test_the_backward_pass_can_be_differentiated(cell):
    params, carry, xs, given = problem(cell, steps=4)

    def norm_of_gradient(unroll, params):
        def loss(params):
            last, ys = unroll(cell, params, carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(params)))

    slopes = jax.jit(
        lambda params: [
            jax.grad(norm_of_gradient, 1)(u, params) for u in (tbptt.unroll, tbptt.plain_unroll)
        ]
    )
    assert_same(*slopes(params), 1e-9)


def test_plain_unroll_supports_forward_mode():
    cell = TANH
    params, carry, xs, given = problem(cell)
    forward = jax.jacfwd(lambda p: tbptt.plain_unroll(cell, p, carry, xs, **given)[1])
    back = jax.jacrev(lambda p: tbptt.unroll(cell, p, carry, xs, **given)[1])
    assert_same(*jax.jit(lambda p: (forward(p), back(p)))(params))


class Doubled(Elman):
    """A derived class with another recurrent step, whose backward pass JAX derives."""

    backprop = None

    def recur(self, params, carry, z):
        carry, y = super().recur(params, carry, z)
        return carry._replace(h=2 * y), 2 * y


class Inherits(LSTM):
    """A derived class with another recurrent step, which inherits the backward pass."""

    def recur(self, params, carry, z):
        return super().recur(params, carry, 2 * z)


class Whole(GRUResetBefore):
    """A derived class with another `__call__`, which inherits the split of its parent."""

    def __call__(self, params, carry, x):
        carry, y = super().__call__(params, carry, x)
        return carry._replace(h=0.5 * y), 0.5 * y


class Squeezed(Whole):
    """A derived class with another `__call__` and input projection, which inherits `recur`."""

    def inputs(self, params, xs):
        return super().inputs(params, jnp.tanh(xs))

    __call__ = Whole.__call__


class Renamed(LSTM):
    """A derived class that changes nothing."""


def test_a_derived_class_may_replace_its_step():
    assert isinstance(cell_vjp_of(Doubled(D, H)), AutodiffVJP)
    assert type(cell_vjp_of(Renamed(D, H))) is type(LSTM(D, H).backprop)
    assert_same(*both(Doubled(D, H), remat=CarriesOnly()))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            Inherits(D, H),
            "Inherits overrides recur and inherits backprop.*or set `backprop = None`",
        ),
        (Whole(D, H), "Whole overrides __call__ and inherits inputs.*override inputs too"),
        (Squeezed(D, H), "Squeezed overrides __call__ and inherits recur.*override recur too"),
        (Stack((Whole(D, H), Elman(H, H))), "Whole overrides __call__ and inherits inputs"),
        (tbptt.ClippedCell(Whole(D, H), 1.0), "Whole overrides __call__ and inherits inputs"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_inheriting_part_of_an_overridden_step_is_an_error(cell, words):
    params, carry, xs, _ = problem(cell)
    with pytest.raises(TypeError, match=words):
        jax.eval_shape(
            functools.partial(tbptt.unroll, cell, remat=CarriesOnly()), params, carry, xs
        )


@pytest.mark.parametrize(
    "cell", [Elman(D, 8), GRU(D, 8), LSTM(D, 8)], ids=lambda cell: type(cell).__name__
)
def test_weight_gradient_is_one_product_outside_the_loop(cell):
    """Check that no loop of the gradient contains a product with the shape of a weight."""
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry((5,)))
    xs = jax.ShapeDtypeStruct((6, 5, D), float)

    def products_in_loops(unroll):
        traced = jax.make_jaxpr(jax.grad(lambda *given: jnp.sum(unroll(cell, *given)[1])))(
            params, carry, xs
        )
        loops = [
            e.params["jaxpr"].jaxpr
            for e in inner_equations(traced.jaxpr)
            if e.primitive.name == "scan"
        ]
        assert loops
        made = [
            e for loop in loops for e in inner_equations(loop) if e.primitive.name == "dot_general"
        ]
        return [e for e in made if sorted(e.outvars[0].aval.shape) == sorted(params.w_h.shape)]

    assert not products_in_loops(tbptt.unroll)
    assert products_in_loops(tbptt.plain_unroll)


def inner_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from inner_equations(inner)


@pytest.mark.parametrize(
    "cell", [LSTM(D, 16), exhaustive(GRU(D, 16)), exhaustive(Elman(D, 16))], ids=name
)
def test_bfloat16_products_have_a_float32_carry_and_bounded_error(cell):
    """Check an error of about 2^-8: bfloat16 operands have 8 bits, sums and carry have 24."""
    exact = dataclasses.replace(cell, dtype=jnp.float64)
    mixed = dataclasses.replace(cell, dtype=jnp.float32, compute_dtype=jnp.bfloat16)
    params, _, xs, _ = problem(cell, (3,), 40)

    def gradient(cell, dtype):
        @jax.jit
        @jax.grad
        def slopes(params, carry, xs):
            last, ys = tbptt.unroll(cell, params, carry, xs)
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((last, ys)))
            return jnp.sum(jnp.sin(3 * ys))

        carry = jax.tree.map(
            lambda a: np.zeros(a.shape), jax.eval_shape(lambda: cell.initial_carry((3,)))
        )
        got = slopes(*jax.tree.map(lambda a: np.asarray(a, dtype), (params, carry, xs)))
        return np.concatenate(
            [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(got)]
        )

    want, got = gradient(exact, np.float64), gradient(mixed, np.float32)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # The upper bound checks correctness, the lower bound that products are rounded.
    assert 1e-4 < error < 0.02, error


def test_block_length_divides_T_if_a_divisor_is_near():
    """A remainder compiles the loops a second time, for example 35 = 2 x 17 + 1 steps."""
    expected = {
        (7, 16): 7,
        (35, 26): 35,
        (1000, 32): 25,
        (100, 16): 10,
        (150, 128): 150,
        (33, 16): 11,
        (62, 24): 31,
    }
    assert {case: even_block_length(*case) for case in expected} == expected
    assert even_block_length(97, 16) == 13  # prime: 7 blocks of 13 and a remainder of 6
    for steps, most in itertools.product(range(1, 300), (16, 26, 50)):
        near = [d for d in range(1, steps + 1) if steps % d == 0 and most <= 2 * d <= 3 * most]
        block = even_block_length(steps, most)
        assert 1 <= block <= 2 * most and (steps % block == 0 or not near)
        assert (block == steps) == (steps <= 2 * most)


@dataclasses.dataclass(frozen=True)
class Counting:
    """A cell with a step counter in its carry."""

    input_dim: int = D
    hidden_dim: int = H

    def init(self, key):
        return jnp.ones(())

    def initial_carry(self, batch_shape=()):
        return jnp.zeros((*batch_shape, H)), jnp.zeros(batch_shape, int)

    def __call__(self, params, carry, x):
        h = jnp.tanh(carry[0] + params * x.sum(-1, keepdims=True))
        return (h, carry[1] + 1), h


def test_rematerialisation_that_would_be_ignored_is_refused():
    cell, xs = Counting(), np.ones((4, B, D))
    run = functools.partial(tbptt.unroll, cell, np.ones(()), cell.initial_carry((B,)))
    with pytest.raises(ValueError, match=r"CarriesOnly\(\) needs floating leaves .*Counting"):
        jax.eval_shape(functools.partial(run, remat=CarriesOnly()), xs)
    assert jax.eval_shape(run, xs)[1].shape == (4, B, H)
