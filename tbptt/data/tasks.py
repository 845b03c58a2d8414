"""Generate synthetic tasks with long time lags, as pure functions of a random key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from tbptt.types import Batch, PRNGKey
from tbptt.windows import check_positive_int

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
    delay = check_positive_int("delay", delay)
    batch_size = check_positive_int("batch_size", batch_size)
    S, A = check_positive_int("symbols", symbols), check_positive_int("alphabet", alphabet)
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
        check_positive_int("T", T),
        check_positive_int("batch_size", batch_size),
        check_positive_int("memory", memory),
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
    T, batch_size = check_positive_int("T", T), check_positive_int("batch_size", batch_size)
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
    T, batch_size = check_positive_int("T", T), check_positive_int("batch_size", batch_size)
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
    T, batch_size = check_positive_int("T", T), check_positive_int("batch_size", batch_size)
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
