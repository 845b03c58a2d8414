"""The copy stream as the published program draws it: its last part repeats the beginnings of periods."""

import jax
import jax.numpy as jnp
import numpy as np

from tbptt import Batch
from tbptt.data.tasks.copying import COPY_ALPHABET, COPY_SYMBOLS
from tbptt.types import PRNGKey

# Every column is meant to begin at a random step. The published program draws an offset for a column and moves ALL columns
# that are there so far, in place, and what lies beyond row T stays where it is:
#
#     for b in range(lanes):
#         column[b] = a stream that begins a period at row 0
#         s = random(0 .. 2 memory - 1)
#         rows[0 : T] = rows[s : T + s]                  # columns 0 .. b
#
# So column b is moved lanes - b times, and each time its end is filled anew with rows T .. T + s - 1, the first s of a
# period. Symbols are shown there more often than asked for: where T = 1000 and memory = 10, of the targets of 64 lanes 37 %
# are unknown to a network that remembers nothing, not 45 %, and its perplexity is 1.64 to 1.71, not 1.87.


def published_stream(key: PRNGKey, T: int, lanes: int, memory: int) -> tuple[Batch, float]:
    """Draws a stream of the copy task with the repeated ends of the published one.

    Args:
      key: consumed.
      T: steps, a multiple of 2 memory, so that row T begins a period, as in the published settings.
      lanes: B; memory: the lag.

    Returns:
      (a Batch as `data.copy_stream` has it, the perplexity on it of who knows the position and remembers nothing).

    Raises:
      ValueError: T is no multiple of 2 memory.

    References: https://github.com/aicherc/adaptive_tbptt, `generate_copy_sequence`: what it does, not how.
    """
    if T % (2 * memory):
        raise ValueError(f"T must be a multiple of 2 memory = {2 * memory} steps, the period; got T={T}")
    draw, offsets = jax.random.split(key)
    rows = np.arange(T + 2 * memory)
    position = np.broadcast_to(rows[:, None] % (2 * memory), (len(rows), lanes))
    symbols = np.asarray(jax.random.randint(draw, (len(rows) + memory, lanes), 2, 2 + COPY_ALPHABET))
    symbols = np.where(np.arange(-memory, len(rows))[:, None] % (2 * memory) == 0, 1, symbols)  # row i + memory: step i
    inputs = np.where(position < memory, symbols[memory:], 0)
    targets = np.where(position < memory, 0, symbols[: len(rows)])
    source = np.tile(rows[:, None], (1, lanes))
    for b, s in enumerate(np.asarray(jax.random.randint(offsets, (lanes,), 0, 2 * memory))):
        source[:T, : b + 1] = source[s : T + s, : b + 1].copy()
    inputs, targets, position = (np.take_along_axis(a, source[:T], axis=0) for a in (inputs, targets, position))
    nothing = COPY_ALPHABET ** float(np.mean(position > memory))
    return Batch(jax.nn.one_hot(inputs, COPY_SYMBOLS), jnp.asarray(targets)), nothing
