"""Which window a tolerance asks for, of a network as it is now: the rule of `adaptive_bptt`, measured with many losses."""

from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from tbptt.estimators.adaptive.decay import choose, init_decay, remeasured
from tbptt.estimators.truncated import Past

LAGS, BEFORE = 80, 100
WINDOWS = tuple(range(10, LAGS + 1, 2))


def make_look(loss_fn: tbptt.LossFn, carry: Any, stream: tbptt.Batch, k1: int, delta: float, losses: int):
    """Makes the jitted `params -> k2`, the window of WINDOWS that delta asks for; the largest where none is long enough.

    Args:
      carry: enters the first of stream's steps, of which BEFORE warm it up and LAGS + losses - 1 are measured.
    """
    head = jax.tree.map(lambda a: a[:BEFORE], stream)
    steps = jax.tree.map(lambda a: a[BEFORE : BEFORE + LAGS + losses - 1], stream)

    @jax.jit
    def look(params: Any) -> jax.Array:
        _, entering = loss_fn(params, carry, head)
        past = Past(entering, steps, jnp.asarray(LAGS + losses - 1))
        decay = remeasured(loss_fn, params, past, init_decay(params, entering, LAGS), LAGS, 0.0)
        return choose(decay, WINDOWS, delta, LAGS // 2, k1, 0.95).chosen

    return lambda params: WINDOWS[int(look(params))]
