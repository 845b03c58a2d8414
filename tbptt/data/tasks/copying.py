"""Copying: what was shown is asked for, after a delay."""

import math

import jax
import jax.numpy as jnp

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

COPY_SYMBOLS = 6  # of copy_stream: 0 blank, 1 start, 2 .. 5 the alphabet
COPY_ALPHABET = 4


def copy_memory(key: PRNGKey, delay: int, lanes: int, *, symbols: int = 10, alphabet: int = 8) -> Batch:
    """Draws sequences to copy: S symbols of A are shown, then nothing for long, then all are asked for in order.

        step t      0 .. S-1                   S .. delay-2    delay-1    delay .. delay+S-1
        input       a symbol of 2 .. A+1       0 blank         1 go       0 blank
        target      0 blank                    0 blank         0 blank    the symbol shown `delay` steps before

    So T = delay + S, and every answer lies exactly `delay` steps back: a window k2 <= delay never carries its gradient. The
    literature's delay counts the steps between the last symbol and the first answer: theirs is `delay - S`.

    Args:
      key: consumed.
      delay: steps from a symbol to its answer, static int > symbols; lanes: B.
      symbols, alphabet: S and A, static ints >= 1.

    Returns:
      a Batch, inputs `[T, B, A + 2]` one-hot floats, targets `[T, B]` symbols 0 .. A+1. Every step counts.

    Raises:
      ValueError: delay <= symbols: there is no step left to say go.

    References: Hochreiter and Schmidhuber 1997; in this form Arjovsky, Shah and Bengio, *Unitary evolution recurrent neural
    networks*, ICML 2016, arXiv:1511.06464, section 5.1.
    """
    delay, lanes = check_window("delay", delay), check_window("lanes", lanes)
    S, A = check_window("symbols", symbols), check_window("alphabet", alphabet)
    if delay <= S:
        raise ValueError(f"delay must be more than symbols={S} steps (they are shown, then go is said); got delay={delay}")
    shown = jax.random.randint(key, (S, lanes), 2, 2 + A)
    silence = jnp.zeros((delay - S, lanes), shown.dtype)
    inputs = jnp.concatenate([shown, silence.at[-1].set(1), jnp.zeros_like(shown)])
    targets = jnp.concatenate([jnp.zeros_like(shown), silence, shown])
    return Batch(jax.nn.one_hot(inputs, A + 2), targets)


def copy_baseline(delay: int, *, symbols: int = 10, alphabet: int = 8) -> float:
    """Computes the loss of who knows when to answer but remembers nothing, in nats a step: S log(A) / (delay + S).

    The mean of the cross-entropy over all steps of `copy_memory`: 0 while the answer is blank, log A at each of S answers.
    """
    return symbols * math.log(alphabet) / (delay + symbols)


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
