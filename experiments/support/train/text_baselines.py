"""Score n-grams on the symbols of the test part of a text, as baselines for a network."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from experiments.support.common import ngram
from experiments.support.train.data import RunData
from experiments.support.train.prediction_steps import read_steps
from experiments.support.train.task import Characters
from tbptt.data import Vocabulary, part

MOST = 1 << 22  # symbols that are counted, the newest ones of the training part
BLOCK = 1 << 18  # symbols that are scored at once
ORDERS = 6  # longest context in symbols
METHODS: dict[str, Callable[..., Iterator[np.ndarray]]] = {
    "Witten-Bell": ngram.witten_bell_chances,
    "Kneser-Ney": ngram.kneser_ney_chances,
}


def text_scores(data: RunData, task: Characters) -> dict[str, dict[str, float]]:
    """Return bits per byte of n-grams counted on the training part, on the test part.

    Both methods score the same symbols as the network, each with the order of context that has the
    fewest bits on the validation part (on at most `BLOCK` symbols of it). Contexts may reach back
    over the start of the test part and of a file.
    """
    end, V = data.ends.train, len(task.vocabulary)
    train = _symbols(data, task, max(0, end - MOST), end)
    order = min(ORDERS, math.ceil(63 / math.log2(V)) - 2, len(train) - 2)
    found, shown = {}, f" (last {MOST:,} bytes of the training part)" if end > MOST else ""
    for method, chances in METHODS.items() if order >= 0 else ():

        def bits(start: int, stop: int, order: int, chances: Callable = chances) -> np.ndarray:
            return _bits(data, task, chances, train, start, stop, order)

        valid = bits(end, min(data.ends.valid, end + BLOCK), order)
        if np.isnan(valid).any():
            continue
        best = int(np.argmin(valid))
        sizes, sums = 0, 0.0
        for start in range(data.ends.valid, data.ends.test - 1, BLOCK):
            stop = min(start + BLOCK + 1, data.ends.test)  # the next block begins with its target
            n = _is_scored(data, task, start, stop).sum()
            if n:
                sums, sizes = sums + n * bits(start, stop, best)[best], sizes + n
        name = f"{method} {best + 1}-grams of bytes"
        if sizes:
            found[name + shown] = {"bits_per_byte": float(sums / sizes)}
    return found


def _symbols(data: RunData, task: Characters, start: int, stop: int) -> np.ndarray:
    text = data.source.read(start, stop)[:, 0]
    return Vocabulary(bytes(task.vocabulary)).encode(
        text, lambda at: data.source.path_of(start + at)
    )


def _is_scored(data: RunData, task: Characters, start: int, stop: int) -> np.ndarray:
    """Return which symbols of rows [start + 1, stop) are scored: not the first one of a file."""
    return read_steps(task, part(data.source, start, stop), 0, stop - start, True).scored[:-1]


def _bits(
    data: RunData,
    task: Characters,
    chances: Callable[..., Iterator[np.ndarray]],
    train: np.ndarray,
    start: int,
    stop: int,
    order: int,
) -> np.ndarray:
    """Return the mean bits of the scored symbols of rows [start + 1, stop), by order."""
    before = min(start, ORDERS)
    text = _symbols(data, task, start - before, stop)
    scored = _is_scored(data, task, start, stop)
    if not scored.any() or len(text) <= order + 1:
        return np.full(order + 1, np.nan)
    every = chances(train, text, len(task.vocabulary), order)
    return np.array([-np.log2(p[before + 1 :][scored]).mean() for p in every])
