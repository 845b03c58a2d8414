"""The continual embedded Reber grammar: an endless stream in which each string asks for its second symbol at its end."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_window

REBER_SYMBOLS = "BTPSXVE"
# state: (symbol, next state) twice, each with probability 1/2. State 9 says again what state 1 said.
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
_CHOICE, _AGAIN = 1, 9
_TABLE = np.asarray([[(REBER_SYMBOLS.index(symbol), then) for symbol, then in arcs] for arcs in _ARCS], np.int32)


def continual_reber(key: PRNGKey, T: int, lanes: int) -> Batch:
    """Draws strings of the embedded Reber grammar end to end, and asks for the next symbol at every step.

        string = B c R c E,    c one of T, P;    R a string of Reber's grammar:
            B -> 3    3 -> T 4 | P 5    4 -> S 4 | X 6    5 -> T 5 | V 7    6 -> X 5 | S 8    7 -> P 6 | V 8    8 -> E

    Where there are two ways, each is taken with probability 1/2. The second c is known to who remembers the first, 6 or
    more steps before and on average 9; nothing in between tells it. A string has 12 symbols on average, and 7 choices (the
    first c, and 6 within R): the best loss is 7/12 log 2 = 0.404 nats a step, and 8/12 log 2 = 0.462 without memory of c.
    No carry is ever reset: who cannot forget drowns. Every lane begins with a string of its own.

    Args:
      key: consumed.
      T: steps; lanes: B, static ints >= 1.

    Returns:
      a Batch, inputs `[T, B, 7]` one-hot floats in the order of `REBER_SYMBOLS`, targets `[T, B]` the symbol that follows.

    References: Gers, Schmidhuber and Cummins, *Learning to forget: continual prediction with LSTM*, Neural Computation 12,
    2000; the grammar: Reber 1967.
    """
    T, lanes = check_window("T", T), check_window("lanes", lanes)
    coins = jax.random.bernoulli(key, shape=(T + 1, lanes)).astype(jnp.int32)
    table = jnp.asarray(_TABLE)

    def step(carry: tuple[Array, Array], coin: Array) -> tuple[tuple[Array, Array], Array]:
        state, chosen = carry
        coin = jnp.where(state == _AGAIN, chosen, coin)
        symbol, then = jnp.moveaxis(table[state, coin], -1, 0)
        return (then, jnp.where(state == _CHOICE, coin, chosen)), symbol

    start = jnp.zeros((lanes,), jnp.int32)
    _, symbols = jax.lax.scan(step, (start, start), coins)
    return Batch(jax.nn.one_hot(symbols[:-1], len(REBER_SYMBOLS)), symbols[1:])


def reber_recalls(batch: Batch) -> Bool[Array, "T *batch"]:
    """Marks the steps of a `continual_reber` batch whose target is a string's second c: after E, not B comes."""
    ended = batch.inputs[..., REBER_SYMBOLS.index("E")] > 0
    return ended & (batch.targets != REBER_SYMBOLS.index("B"))
