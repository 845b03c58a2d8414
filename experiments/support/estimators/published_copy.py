"""Draw the stream of the copy task as the published program does, with repeated periods."""

import jax
import jax.numpy as jnp
import numpy as np

from tbptt import Batch
from tbptt.data.tasks import COPY_ALPHABET, COPY_SYMBOLS
from tbptt.types import PRNGKey

# Each column should start at a random step. The published program draws an offset for each new
# column, but shifts all columns so far in place, and the rows from T on do not move:
#
#     for b in range(B):
#         column[b] = a stream that begins a period at row 0
#         s = random(0 .. 2 memory - 1)
#         rows[0 : T] = rows[s : T + s]                  # columns 0 .. b
#
# Column b is thus shifted B - b times, and each time its end is filled with the rows T .. T + s -
# 1, the first s of a period. Symbols are shown there more often than recalled. With T = 1000,
# memory = 10 and B = 64, 37 % of the targets are unpredictable for a memoryless model instead of 45
# %, and its perplexity is 1.64 to 1.71 instead of 1.87.


def published_stream(key: PRNGKey, T: int, batch_size: int, memory: int) -> tuple[Batch, float]:
    """Draw a stream of the copy task with the repeated ends of the published one.

    Args:
      key: consumed.
      T: number of steps, a multiple of 2 memory, so that row T begins a period, as in the published
        settings.
      batch_size: B.
      memory: the lag.

    Returns:
      (a Batch as that of `data.copy_stream`, the perplexity on it of a memoryless model that knows
      the position).

    Raises:
      ValueError: T is not a multiple of 2 memory.

    References: `generate_copy_sequence` of https://github.com/aicherc/adaptive_tbptt;
    reimplemented.
    """
    if T % (2 * memory):
        raise ValueError(
            f"T must be a multiple of 2 memory = {2 * memory} steps, the period; got T={T}"
        )
    draw, offsets = jax.random.split(key)
    rows = np.arange(T + 2 * memory)
    position = np.broadcast_to(rows[:, None] % (2 * memory), (len(rows), batch_size))
    symbols = np.asarray(
        jax.random.randint(draw, (len(rows) + memory, batch_size), 2, 2 + COPY_ALPHABET)
    )
    # Row i + memory: step i.
    symbols = np.where(np.arange(-memory, len(rows))[:, None] % (2 * memory) == 0, 1, symbols)
    inputs = np.where(position < memory, symbols[memory:], 0)
    targets = np.where(position < memory, 0, symbols[: len(rows)])
    source = np.tile(rows[:, None], (1, batch_size))
    for b, s in enumerate(np.asarray(jax.random.randint(offsets, (batch_size,), 0, 2 * memory))):
        source[:T, : b + 1] = source[s : T + s, : b + 1].copy()
    inputs, targets, position = (
        np.take_along_axis(a, source[:T], axis=0) for a in (inputs, targets, position)
    )
    memoryless = COPY_ALPHABET ** float(np.mean(position > memory))
    return Batch(jax.nn.one_hot(inputs, COPY_SYMBOLS), jnp.asarray(targets)), memoryless
