"""Generate the temporal order task: classify the order of two symbols among many distractors."""

import jax
import jax.numpy as jnp

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

ORDER_SYMBOLS = "abcdXYBE"
_X, _BEGIN, _END = (ORDER_SYMBOLS.index(symbol) for symbol in "XBE")


def temporal_order(
    key: PRNGKey,
    T: int,
    batch_size: int,
    *,
    first: tuple[int, int] = (3, 12),
    second: tuple[int, int] = (25, 40),
) -> Batch:
    """Draw sequences of noise letters with two relevant letters; the target is their order.

        step 0 is B, step T-1 is E
        steps t_1 in `first` and t_2 in `second` are X or Y; all others one of a, b, c, d
        class = 2 [x_{t_1} = Y] + [x_{t_2} = Y]      # XX 0, XY 1, YX 2, YY 3

    Chance level is an accuracy of 1/4 and a loss of log 4 = 1.386 nats.

    Args:
      key: consumed.
      T: steps, static int.
      batch_size: B, static int >= 1.
      first, second: ranges of steps, both ends included; static.

    Returns:
      a Batch: inputs `[T, B, 8]` one-hot floats in the order of `ORDER_SYMBOLS`; targets
      `[T, B]`, the class; weights 1 at the last step and 0 before.

    Raises:
      ValueError: the ranges do not lie in this order between step 0 and step T-1.

    References:
      Hochreiter and Schmidhuber, *Long short-term memory*, Neural Computation 9, 1997,
      experiment 6a.
    """
    T, batch_size = check_window("T", T), check_window("batch_size", batch_size)
    if not 1 <= first[0] <= first[1] < second[0] <= second[1] <= T - 2:
        raise ValueError(
            f"first and second must be ranges of steps in this order within 1 .. T-2 = {T - 2}; "
            f"got first={first}, second={second}. Use a longer T or other ranges"
        )
    keys = jax.random.split(key, 4)
    step = jnp.arange(T)[:, None]
    ranges = zip(keys[:2], (first, second), strict=True)
    when = [jax.random.randint(k, (batch_size,), low, high + 1) for k, (low, high) in ranges]
    is_y = jax.random.bernoulli(keys[2], shape=(2, batch_size)).astype(jnp.int32)
    symbols = jax.random.randint(keys[3], (T, batch_size), 0, 4)
    for t, y in zip(when, is_y, strict=True):
        symbols = jnp.where(step == t, _X + y, symbols)
    symbols = jnp.where(step == 0, _BEGIN, jnp.where(step == T - 1, _END, symbols))
    targets = jnp.broadcast_to(2 * is_y[0] + is_y[1], (T, batch_size))
    weights = jnp.broadcast_to(step == T - 1, (T, batch_size)).astype(float)
    return Batch(jax.nn.one_hot(symbols, len(ORDER_SYMBOLS)), targets, weights)
