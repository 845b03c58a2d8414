"""Measure the window that a bias tolerance requires, by the rule of `adaptive_bptt`."""

from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from tbptt.estimators.adaptive.decay import choose, init_decay, update_decay
from tbptt.estimators.truncated import Past

LAGS, WARM_UP = 80, 100
WINDOWS = tuple(range(10, LAGS + 1, 2))


def make_required_window(
    loss_fn: tbptt.LossFn, carry: Any, stream: tbptt.Batch, k1: int, delta: float, losses: int
):
    """Make `params -> k2`, the window of WINDOWS that delta requires, or the largest one.

    Args:
      carry: the carry before the first step of the stream, of which WARM_UP steps warm it up and
        the next LAGS + losses - 1 are measured.
    """
    head = jax.tree.map(lambda a: a[:WARM_UP], stream)
    steps = jax.tree.map(lambda a: a[WARM_UP : WARM_UP + LAGS + losses - 1], stream)

    @jax.jit
    def index_of(params: Any) -> jax.Array:
        _, entering = loss_fn(params, carry, head)
        past = Past(entering, steps, jnp.asarray(LAGS + losses - 1))
        decay = update_decay(loss_fn, params, past, init_decay(params, entering, LAGS), LAGS, 0.0)
        return choose(decay, WINDOWS, delta, LAGS // 2, k1, 0.95).chosen

    return lambda params: WINDOWS[int(index_of(params))]
