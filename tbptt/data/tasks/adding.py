"""Generate the adding task: two of many numbers are marked, and the target is their sum."""

import jax
import jax.numpy as jnp

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window


def adding(key: PRNGKey, T: int, batch_size: int) -> Batch:
    """Draw sequences of numbers, two of them marked, one in each half; the target is their sum.

        x_t = (v_t, m_t),    v_t ~ U(-1, 1)
        m_t = 1 at steps t_1 ~ U{0 .. T//2 - 1} and t_2 ~ U{T//2 .. T-1}, else 0
        target = v_{t_1} + v_{t_2}

    The best constant answer, 0, has a mean squared error of 2 Var(v) = 2/3; an answer that uses
    one of the two numbers has 1/3.

    Args:
      key: consumed.
      T: steps, static int >= 2.
      batch_size: B, static int >= 1.

    Returns:
      a Batch: inputs `[T, B, 2]`; targets `[T, B, 1]`, the sum; weights 1 at the last step and 0
      before.

    References:
      Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 9, 1997,
      experiment 4; one marker in each half: Le, Jaitly and Hinton 2015, arXiv:1504.00941.
    """
    T, batch_size = check_window("T", T), check_window("batch_size", batch_size)
    if T < 2:
        raise ValueError(f"T must be at least 2 steps, one in each half; got T={T}")
    key_v, key_1, key_2 = jax.random.split(key, 3)
    values = jax.random.uniform(key_v, (T, batch_size), minval=-1.0, maxval=1.0)
    step = jnp.arange(T)[:, None]
    t_1, t_2 = (
        jax.random.randint(key_1, (batch_size,), 0, T // 2),
        jax.random.randint(key_2, (batch_size,), T // 2, T),
    )
    marks = ((step == t_1) | (step == t_2)).astype(values.dtype)
    targets = jnp.broadcast_to(jnp.sum(values * marks, axis=0), (T, batch_size))[..., None]
    weights = jnp.broadcast_to(step == T - 1, (T, batch_size)).astype(values.dtype)
    return Batch(jnp.stack([values, marks], axis=-1), targets, weights)
