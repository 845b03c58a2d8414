"""The engine against the plain scan, which it must equal to rounding: blocks, rests, plans, any cell, any batch shape."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import tbptt
from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, Stack
from tbptt.engine import any_cell, sizes
from tbptt.engine.plan import CarriesOnly
from tests.problems import B, D, H, T, assert_same, everything, plain_answer, problem


class LeakyParams(NamedTuple):
    w: jax.Array
    leak: jax.Array


class LeakyCarry(NamedTuple):
    h: jax.Array
    trace: jax.Array


@dataclasses.dataclass(frozen=True)
class Leaky:
    """A user's cell in one piece: its output is no leaf of the carry, and it works on its weights before using them."""

    input_dim: int
    hidden_dim: int

    def init(self, key):
        return LeakyParams(
            jax.random.normal(key, (self.input_dim + self.hidden_dim, self.hidden_dim)) * 0.6, jnp.array(0.3)
        )

    def initial_carry(self, batch_shape=()):
        zero = jnp.zeros((*batch_shape, self.hidden_dim))
        return LeakyCarry(zero, zero + 0.5)  # resets must go here, not to zero

    def __call__(self, params, carry, x):
        w = params.w / jnp.linalg.norm(params.w, axis=0)
        new = jax.nn.relu(jnp.concatenate([x, carry.h], -1) @ w) + 0.1 * jnp.sin(carry.trace)
        trace = params.leak * carry.trace + (1 - params.leak) * new
        return LeakyCarry(new, trace), new * trace


CELLS = [
    Elman(D, H, gain=1.2),
    Elman(D, H, activation=jax.nn.softplus),
    GRU(D, H),
    GRUResetBefore(D, H),
    LSTM(D, H),
    DiagonalLinear(D, H),
    Leaky(D, H),
    Stack((LSTM(D, 5), Leaky(5, 3), GRU(3, H))),
]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)


def both(cell, use="resets mask", batch_shape=(B,), steps=T, **options):
    """Values and gradients of unroll and of plain_unroll on the same problem."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    fast = everything(lambda *a: tbptt.unroll(cell, *a, **given, **options), params, carry, xs)
    return fast, plain_answer(cell, batch_shape, steps, use)


@each_cell
@pytest.mark.parametrize("use", ["", "resets", "resets mask"])
@pytest.mark.parametrize("remat", [None, CarriesOnly()], ids=["keep", "carries"])
def test_blocks_and_a_rest_equal_the_plain_scan(cell, use, remat, monkeypatch):
    monkeypatch.setattr(sizes, "CPU_BLOCK", 1)
    monkeypatch.setattr(sizes, "FEWEST", 3)
    # In blocks of 2: five of them, or five and one step left over. In turns, so that any three of the four still meet.
    steps = 10 + (CELLS.index(cell) + len(use.split()) + (remat is None)) % 2
    fast, plain = both(cell, use, steps=steps, remat=remat)
    assert_same(fast, plain)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(plain[1][0])) > 1e-3


@each_cell
@pytest.mark.parametrize("batch_shape", [(), (2, 3)], ids=["none", "two axes"])
def test_any_batch_shape_equals_the_plain_scan(cell, batch_shape):
    assert_same(*both(cell, batch_shape=batch_shape))


@each_cell
def test_under_vmap_equals_the_plain_scan(cell):
    params, carry, xs, given = problem(cell, (2, 3))

    def batched(params, carry, xs):
        one = lambda c, x, r, m: tbptt.unroll(cell, params, c, x, resets=r, mask=m)  # noqa: E731
        return jax.vmap(one, (0, 1, 1, 1), (0, 1))(carry, xs, given["resets"], given["mask"])

    assert_same(everything(batched, params, carry, xs), plain_answer(cell, (2, 3)))


@each_cell
def test_the_backward_pass_can_be_differentiated(cell):
    params, carry, xs, given = problem(cell, steps=4)

    def norm_of_gradient(unroll):
        def loss(params):
            last, ys = unroll(cell, params, carry, xs, **given)
            return jnp.sum(jnp.sin(ys)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

        return jax.grad(lambda p: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(p))))

    of_unroll, of_plain = norm_of_gradient(tbptt.unroll), norm_of_gradient(tbptt.plain_unroll)
    assert_same(jax.jit(of_unroll)(params), jax.jit(of_plain)(params), 1e-9)


def test_plain_unroll_goes_forward_too():
    cell = LSTM(D, H)
    params, carry, xs, given = problem(cell)
    forward = jax.jacfwd(lambda p: tbptt.plain_unroll(cell, p, carry, xs, **given)[1])
    back = jax.jacrev(lambda p: tbptt.unroll(cell, p, carry, xs, **given)[1])
    assert_same(*jax.jit(lambda p: (forward(p), back(p)))(params))


class Doubled(LSTM):
    """A child that changes the step: its parent's backward pass is not its own."""

    def recur(self, params, carry, z):
        carry, y = super().recur(params, carry, z)
        return carry._replace(h=2 * y), 2 * y


class Whole(GRUResetBefore):
    """A child with a step of its own in one piece: its parent's halves are not its own."""

    def __call__(self, params, carry, x):
        carry, y = super().__call__(params, carry, x)
        return carry._replace(h=0.5 * y), 0.5 * y


class Squeezed(GRUResetBefore):
    """A child with a step and an input side of its own: its parent's second half is still not its own."""

    def inputs(self, params, xs):
        return super().inputs(params, jnp.tanh(xs))

    def __call__(self, params, carry, x):
        carry, y = super().__call__(params, carry, x)
        return carry._replace(h=0.5 * y), 0.5 * y


class Renamed(LSTM):
    """A child that changes nothing."""


def test_a_child_that_changes_the_step_loses_its_parents_backward_pass():
    assert isinstance(any_cell.backprop_of(Doubled(D, H)), any_cell.AnyBackprop)
    assert type(any_cell.backprop_of(Renamed(D, H))) is type(LSTM(D, H).backprop)
    assert_same(*both(Doubled(D, H)))
    assert_same(*both(Whole(D, H)))
    assert_same(*both(Whole(D, H), remat=CarriesOnly()))
    assert_same(*both(Squeezed(D, H), remat=CarriesOnly()))
    whole, stack = Whole(D, H), Stack((Whole(D, H), Elman(H, H)))
    params, carry, xs, _ = problem(stack)
    below, y = whole(params[0], carry[0], xs[0])  # nor inside a stack
    assert_same(stack(params, carry, xs[0])[0], (below, stack.cells[1](params[1], carry[1], y)[0]), 0)


@pytest.mark.parametrize("cell", [Elman(D, 8), GRU(D, 8), LSTM(D, 8)], ids=lambda cell: type(cell).__name__)
def test_the_weights_gradient_is_one_product_outside_the_loop(cell):
    """No loop of the compiled gradient holds a product that makes an array of the weights' shape."""
    params, carry, xs = cell.init(jax.random.key(0)), cell.initial_carry((5,)), jnp.ones((6, 5, D))

    def products_in_loops(unroll):
        traced = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(unroll(cell, p, carry, xs)[1])))(params)
        loops = [e.params["jaxpr"].jaxpr for e in inner_equations(traced.jaxpr) if e.primitive.name == "scan"]
        assert loops
        made = [e for loop in loops for e in inner_equations(loop) if e.primitive.name == "dot_general"]
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
    "cell", [Elman(4, 16), GRU(4, 16), GRUResetBefore(4, 16), LSTM(4, 16)], ids=lambda c: type(c).__name__
)
def test_bfloat16_products_keep_a_float32_carry_and_a_stated_error(cell):
    """Operands lose all but 8 bits, sums and carry none: about 2^-8 of gradient error, here at most 2 %."""
    exact = dataclasses.replace(cell, dtype=jnp.float64)
    mixed = dataclasses.replace(cell, dtype=jnp.float32, compute_dtype=jnp.bfloat16)
    xs = jax.random.normal(jax.random.key(1), (40, 3, 4))

    def gradient(cell, params, dtype):
        def loss(params):
            last, ys = tbptt.unroll(cell, params, cell.initial_carry((3,)), xs.astype(dtype))
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((last, ys)))
            return jnp.sum(jnp.sin(3 * ys))

        return jax.flatten_util.ravel_pytree(jax.jit(jax.grad(loss))(params))[0].astype(jnp.float64)

    params = exact.init(jax.random.key(0))
    want = gradient(exact, params, jnp.float64)
    got = gradient(mixed, jax.tree.map(lambda a: a.astype(jnp.float32), params), jnp.float32)
    error = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    assert 1e-4 < error < 0.02, error  # not above: correct; not below: the products really are rounded


def test_blocks_leave_nothing_over_where_a_divisor_is_near():
    """A rest is the whole program once more; 35 steps of an LSTM with B, H = 20, 256 were 2 x 17 + 1."""
    known = {(7, 16): 7, (35, 26): 35, (1000, 32): 25, (100, 16): 10, (150, 128): 150, (33, 16): 11, (62, 24): 31}
    assert {case: sizes.share(*case) for case in known} == known
    assert sizes.share(97, 16) == 13  # prime: 7 blocks of 13 and a rest of 6
    for steps, most in itertools.product(range(1, 300), (16, 26, 50)):
        near = [d for d in range(1, steps + 1) if steps % d == 0 and most <= 2 * d <= 3 * most]
        block = sizes.share(steps, most)
        assert 1 <= block <= 2 * most and (steps % block == 0 or not near)
        assert (block == steps) == (steps <= 2 * most)
