"""Synthetic tasks whose answers are known: pure functions of a key."""

import jax
import jax.numpy as jnp

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

COPY_SYMBOLS = 6  # 0 blank, 1 start, 2 .. 5 the alphabet
COPY_ALPHABET = 4


def copy_stream(key: PRNGKey, T: int, lanes: int, memory: int) -> Batch:
    """Draws an endless copy task: `memory` symbols are shown, then asked for again, again and again.

        position in a period of 2 memory    0          1 .. memory-1           memory .. 2 memory-1
        input                               1 start    a symbol of 2 .. 5      0 blank
        target                              0 blank    0 blank                 the symbol shown `memory` steps before

    Every lane begins at a random position. Every answer lies exactly `memory` steps back, so a window k2 <= memory never
    carries its gradient. A network that knows the position but remembers nothing has a perplexity of
    4^((memory - 1) / (2 memory)): 1.87 for memory = 10.

    Args:
      key: consumed.
      T: steps; lanes: B; memory: the lag, static ints >= 1.

    Returns:
      a Batch, inputs `[T, B, 6]` one-hot floats, targets `[T, B]` symbols 0 .. 5.

    References: the copy task of Aicher, Foti and Fox, *Adaptively truncating backpropagation through time to control
    gradient bias*, UAI 2019, arXiv:1905.07473, with a fixed lag (theirs begins with the start symbol too).
    """
    T, lanes, memory = check_window("T", T), check_window("lanes", lanes), check_window("memory", memory)
    draw, offset = jax.random.split(key)
    drawn = jax.random.randint(draw, (T + memory, lanes), 2, 2 + COPY_ALPHABET)  # row t + memory belongs to step t
    start = jax.random.randint(offset, (lanes,), 0, 2 * memory)
    position = (start + jnp.arange(T)[:, None]) % (2 * memory)
    shown = position < memory
    inputs = jnp.where(position == 0, 1, jnp.where(shown, drawn[memory:], 0))
    targets = jnp.where(position == memory, 1, jnp.where(shown, 0, drawn[:T]))
    return Batch(jax.nn.one_hot(inputs, COPY_SYMBOLS), targets)
