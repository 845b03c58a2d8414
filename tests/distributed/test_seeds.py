"""Several runs in one program equal separate runs, one after another on a CPU."""

import functools
import inspect

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import tbptt
from tbptt.distributed import init_seeds, map_seeds, over_seeds

CELL, READOUT, S = tbptt.Elman(2, 3), nn.Dense(1, param_dtype=float), 3
ESTIMATOR = tbptt.truncated_bptt(
    tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error, unroll=tbptt.plain_unroll), 2, 4
)
OPTIMIZER = optax.sgd(0.3)
STEP = tbptt.make_train_step(ESTIMATOR, OPTIMIZER)
X = np.random.default_rng(0).normal(size=(2, 4, 2, 2))
CHUNKS = [tbptt.Batch(x, x[..., :1] ** 2) for x in X]
KEYS = jax.random.split(jax.random.key(3), S)


def make_state(key):
    init_key, train_key = jax.random.split(key)
    params = tbptt.init_params(init_key, CELL, READOUT)
    carry = CELL.initial_carry((2,))
    return tbptt.init_state(ESTIMATOR, OPTIMIZER, params, carry, CHUNKS[0], train_key)


def trained(step, state):
    losses = []
    for chunk in CHUNKS:
        state, metrics = step(state, chunk)
        losses.append(np.asarray(metrics.loss))
    return np.stack(losses, -1), jax.tree.map(np.asarray, state.params)


@functools.cache
def alone():
    runs = [trained(STEP, jax.jit(make_state)(key)) for key in KEYS]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


# The next test shows that the default is a loop on a CPU.
@pytest.mark.parametrize("vectorized", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_over_seeds_equals_separate_runs(vectorized):
    together = trained(over_seeds(STEP, vectorized=vectorized), init_seeds(make_state, KEYS))
    for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(alone()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-14)
    assert np.std(alone()[0], axis=0).min() > 1e-3  # the seeds differ


def is_loop(platform, vectorized):
    """Return whether a program for the platform has a loop over the seeds."""
    mapped = jax.jit(lambda xs: map_seeds(lambda x: x @ x, xs, vectorized=vectorized))
    program = mapped.trace(np.ones((S, 2, 2))).lower(lowering_platforms=(platform,)).as_text()
    return "stablehlo.while" in program


def test_the_default_loops_over_the_seeds_on_a_cpu_alone():
    assert [is_loop(p, None) for p in ("cpu", "cuda", "tpu")] == [True, False, False]
    assert [is_loop(p, True) for p in ("cpu", "cuda")] == [False, False]
    assert [is_loop(p, False) for p in ("cpu", "cuda")] == [True, True]


def test_another_choice_is_refused():
    with pytest.raises(TypeError, match="vectorized must be True, False or None; got 'cpu'"):
        inspect.unwrap(map_seeds)(lambda x: x, KEYS, vectorized="cpu")
