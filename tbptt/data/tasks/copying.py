"""Generate copy tasks: the targets are symbols that were shown a fixed delay before."""

import math

import jax
import jax.numpy as jnp

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

COPY_SYMBOLS = 6  # symbols of copy_stream: 0 blank, 1 start, 2 .. 5 the alphabet
COPY_ALPHABET = 4


def copy_memory(
    key: PRNGKey, delay: int, batch_size: int, *, symbols: int = 10, alphabet: int = 8
) -> Batch:
    """Draw sequences to copy: S symbols of A, then blanks, then the same symbols as targets.

        step t    0 .. S-1             S .. delay-2  delay-1  delay .. delay+S-1
        input     a symbol of 2 .. A+1   0 blank     1 go     0 blank
        target    0 blank                0 blank     0 blank  the symbol shown `delay` steps before

    T = delay + S, and every answer lies exactly `delay` steps back, so the gradient of a window
    k2 <= delay never reaches it. The literature counts the steps between the last symbol and the
    first answer: its delay is `delay - S`.

    Args:
      key: consumed.
      delay: steps from a symbol to its answer, static int > symbols.
      batch_size: B, static int >= 1.
      symbols, alphabet: S and A, static ints >= 1.

    Returns:
      a Batch: inputs `[T, B, A + 2]` one-hot floats; targets `[T, B]`, symbols 0 .. A+1. Every
      step counts.

    Raises:
      ValueError: delay <= symbols, which leaves no step for the go symbol.

    References:
      Hochreiter and Schmidhuber 1997; in this form Arjovsky, Shah and Bengio, *Unitary evolution
      recurrent neural networks*, ICML 2016, arXiv:1511.06464, section 5.1.
    """
    delay, batch_size = check_window("delay", delay), check_window("batch_size", batch_size)
    S, A = check_window("symbols", symbols), check_window("alphabet", alphabet)
    if delay <= S:
        raise ValueError(
            f"delay must be more than symbols={S} steps, to leave a step for the go symbol; got "
            f"delay={delay}"
        )
    shown = jax.random.randint(key, (S, batch_size), 2, 2 + A)
    blank = jnp.zeros((delay - S, batch_size), shown.dtype)
    inputs = jnp.concatenate([shown, blank.at[-1].set(1), jnp.zeros_like(shown)])
    targets = jnp.concatenate([jnp.zeros_like(shown), blank, shown])
    return Batch(jax.nn.one_hot(inputs, A + 2), targets)


def copy_baseline(delay: int, *, symbols: int = 10, alphabet: int = 8) -> float:
    """Compute the loss of a memoryless model, in nats per step: S log(A) / (delay + S).

    Such a model predicts when to answer and guesses the symbol. Its mean cross-entropy over all
    steps of `copy_memory` is 0 where the answer is blank, and log A at each of the S answers.
    """
    return symbols * math.log(alphabet) / (delay + symbols)


def copy_stream(key: PRNGKey, T: int, batch_size: int, memory: int) -> Batch:
    """Draw an endless copy task: `memory` symbols are inputs, then targets, in alternation.

        position in 2 memory    0        1 .. memory-1        memory .. 2 memory-1
        input                   1 start  a symbol of 2 .. 5   0 blank
        target                  0 blank  0 blank              the symbol `memory` steps before

    Every sequence of the batch begins at a random position. Every answer lies exactly `memory`
    steps back, so the gradient of a window k2 <= memory never reaches it. A memoryless model
    that knows the position has a perplexity of 4^((memory - 1) / (2 memory)): 1.87 for
    memory = 10.

    Args:
      key: consumed.
      T: steps, static int >= 1.
      batch_size: B, static int >= 1.
      memory: the lag, static int >= 1.

    Returns:
      a Batch: inputs `[T, B, 6]` one-hot floats; targets `[T, B]`, symbols 0 .. 5.

    References:
      the copy task of Aicher, Foti and Fox, *Adaptively truncating backpropagation through time
      to control gradient bias*, UAI 2019, arXiv:1905.07473, with a fixed lag (theirs begins with
      the start symbol too).
    """
    T, batch_size, memory = (
        check_window("T", T),
        check_window("batch_size", batch_size),
        check_window("memory", memory),
    )
    draw, offset = jax.random.split(key)
    drawn = jax.random.randint(
        draw, (T + memory, batch_size), 2, 2 + COPY_ALPHABET
    )  # row t + memory belongs to step t
    start = jax.random.randint(offset, (batch_size,), 0, 2 * memory)
    position = (start + jnp.arange(T)[:, None]) % (2 * memory)
    shown = position < memory
    inputs = jnp.where(position == 0, 1, jnp.where(shown, drawn[memory:], 0))
    targets = jnp.where(position == memory, 1, jnp.where(shown, 0, drawn[:T]))
    return Batch(jax.nn.one_hot(inputs, COPY_SYMBOLS), targets)
