"""A learned initial carry has the gradient of a plain loop that starts from it and resets to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.cells import Elman, LearnedStart
from tests.support.sequences import cell_params

T, B, D, H = 4, 2, 2, 4
CELL = LearnedStart(Elman(D, H))


def problem():
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(jnp.asarray, cell_params(CELL))
    params = params._replace(start=jax.tree.map(lambda a: draw(size=a.shape), params.start))
    resets = np.zeros((T, B), bool)
    resets[2, 0] = resets[3, 1] = True
    return params, draw(size=(T, B, D)), resets


def loop(params, xs, resets):
    """The sum of sin(ys), each row starting from params.start at step 0 and where it is reset."""
    total = 0.0
    for row in range(B):
        carry = params.start
        for t in range(T):
            carry = params.start if resets[t, row] else carry
            carry, y = CELL.cell(params.cell, carry, jnp.asarray(xs[t, row]))
            total += jnp.sum(jnp.sin(y))
    return total


def test_the_gradient_of_the_start_is_that_of_the_loop():
    params, xs, resets = problem()

    def loss_fn(params, carry, batch):
        carry, ys = tbptt.unroll(CELL, params, carry, batch.inputs, resets=batch.resets)
        return jnp.sum(jnp.sin(ys)), carry

    batch = tbptt.Batch(xs, None, resets=resets)
    estimator = tbptt.full_bptt(loss_fn)

    @jax.jit
    def both(params):
        memory = estimator.init(params, CELL.initial_carry((B,)), batch)
        want = jax.grad(lambda p: loop(p, xs, resets) / (T * B))(params)
        return estimator.estimate(params, memory, batch).grads, want

    got, want = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, want)
    assert min(np.min(np.abs(leaf)) for leaf in jax.tree.leaves(want.start)) > 1e-6


def test_a_later_step_does_not_start_again():
    params, xs, _ = problem()

    @jax.jit
    def run(params, xs):
        carry, _ = tbptt.unroll(CELL, params, CELL.initial_carry((B,)), xs[:1])
        direct, _ = CELL.cell(params.cell, carry.inner, xs[1])
        again, _ = CELL(params, carry, xs[1])
        return carry.fresh, again.inner, direct

    fresh, again, direct = run(params, xs)
    assert not np.any(fresh)
    jax.tree.map(np.testing.assert_array_equal, again, direct)


@dataclasses.dataclass(frozen=True)
class Counting(Elman):
    backprop = None

    def initial_carry(self, batch_shape=()):
        return super().initial_carry(batch_shape), jnp.zeros(batch_shape, int)


def test_an_integer_carry_is_refused():
    with pytest.raises(TypeError, match=r"carry\[1\] of Counting must be floating to be learned"):
        LearnedStart(Counting(D, H)).init(jax.random.key(0))
