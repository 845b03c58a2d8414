"""Generate the continual embedded Reber grammar, an endless next-symbol prediction task."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

REBER_SYMBOLS = "BTPSXVE"
# state: (symbol, next state) twice, each with probability 1/2. State 9 repeats state 1's choice.
_ARCS = (
    (("B", 1), ("B", 1)),
    (("T", 2), ("P", 2)),
    (("B", 3), ("B", 3)),
    (("T", 4), ("P", 5)),
    (("S", 4), ("X", 6)),
    (("T", 5), ("V", 7)),
    (("X", 5), ("S", 8)),
    (("P", 6), ("V", 8)),
    (("E", 9), ("E", 9)),
    (("T", 10), ("P", 10)),
    (("E", 0), ("E", 0)),
)
_CHOICE, _REPEAT = 1, 9
_TABLE = np.asarray(
    [[(REBER_SYMBOLS.index(symbol), then) for symbol, then in arcs] for arcs in _ARCS], np.int32
)


def continual_reber(key: PRNGKey, T: int, batch_size: int) -> Batch:
    """Draw concatenated strings of the embedded Reber grammar; the target is the next symbol.

        string = B c R c E,    c one of T, P;    R a string of Reber's grammar:
            B -> 3    3 -> T 4 | P 5    4 -> S 4 | X 6    5 -> T 5 | V 7    6 -> X 5 | S 8
            7 -> P 6 | V 8    8 -> E

    Each alternative has probability 1/2. The second c repeats the first, which lies 6 or more
    steps back and 9 on average; nothing between them reveals it. A string has 12 symbols on
    average, and 7 choices (the first c, and 6 within R). The best loss is 7/12 log 2 = 0.404 nats
    per step, and 8/12 log 2 = 0.462 without memory of c. The carry is never reset, so a model
    must learn to forget. Every sequence of the batch is drawn independently.

    Args:
      key: consumed.
      T: steps, static int >= 1.
      batch_size: B, static int >= 1.

    Returns:
      a Batch: inputs `[T, B, 7]` one-hot floats in the order of `REBER_SYMBOLS`; targets
      `[T, B]`, the next symbol.

    References:
      Gers, Schmidhuber and Cummins, *Learning to forget: continual prediction with LSTM*, Neural
      Computation 12, 2000; the grammar: Reber 1967.
    """
    T, batch_size = check_window("T", T), check_window("batch_size", batch_size)
    coins = jax.random.bernoulli(key, shape=(T + 1, batch_size)).astype(jnp.int32)
    table = jnp.asarray(_TABLE)

    def step(carry: tuple[Array, Array], coin: Array) -> tuple[tuple[Array, Array], Array]:
        state, chosen = carry
        coin = jnp.where(state == _REPEAT, chosen, coin)
        symbol, then = jnp.moveaxis(table[state, coin], -1, 0)
        return (then, jnp.where(state == _CHOICE, coin, chosen)), symbol

    start = jnp.zeros((batch_size,), jnp.int32)
    _, symbols = jax.lax.scan(step, (start, start), coins)
    return Batch(jax.nn.one_hot(symbols[:-1], len(REBER_SYMBOLS)), symbols[1:])


def reber_recalls(batch: Batch) -> Bool[Array, "T *batch"]:
    """Return which targets of a `continual_reber` batch are the second c of a string.

    Those are the steps after an E that are not followed by a B.
    """
    ended = batch.inputs[..., REBER_SYMBOLS.index("E")] > 0
    return ended & (batch.targets != REBER_SYMBOLS.index("B"))
