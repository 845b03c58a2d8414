"""Score text by interpolated n-grams, Witten-Bell and Kneser-Ney, as baselines for networks.

Both interpolate the orders n = 0, 1, 2, ..., and end at the uniform distribution over the V
symbols. The context h of order n is the n previous symbols; h' is h without its oldest symbol:

    p_n(c | h) = (max(N(h c) - d, 0) + r(h) p_{n-1}(c | h')) / N(h)    p_n = p_{n-1} for unseen h

with counts N of the training text. At the beginning of a text, orders with too little past are
omitted.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int


class Counts(NamedTuple):
    """Counts of one order; grams and contexts are sorted.

    grams, times:    codes of context and symbol together, and their counts
    contexts, total: codes of the contexts, and the sums of their counts
    kinds:           number of different symbols after each context
    """

    grams: np.ndarray
    times: np.ndarray
    contexts: np.ndarray
    total: np.ndarray
    kinds: np.ndarray


def witten_bell(
    train: Int[np.ndarray, " N"], text: Int[np.ndarray, " M"], V: int, order: int
) -> list[float]:
    """Return bits per symbol of a text under Witten-Bell n-grams, of every order 0 .. `order`.

        p_n(c | h) = (N(h c) + K(h) p_{n-1}(c | h')) / (N(h) + K(h))
        K(h) = number of different symbols after h

    Args:
        train, text: symbols 0 .. V - 1.
        V: number of symbols.
        order: length of the longest context in symbols, with V ** (order + 1) < 2 ** 63.

    Raises:
        ValueError: a text is too short, or a size is out of range.

    References: Witten and Bell, *The zero-frequency problem*, IEEE Transactions on Information
    Theory 37, 1991 (method C).
    """
    return [_bits(p) for p in witten_bell_chances(train, text, V, order)]


def witten_bell_chances(
    train: Int[np.ndarray, " N"], text: Int[np.ndarray, " M"], V: int, order: int
) -> Iterator[Float64[np.ndarray, " M"]]:
    """Yield the probability of every symbol of a text, for every order of `witten_bell`."""
    _check(train, text, V, order)
    p = np.full(len(text), 1.0 / V)
    for n in range(order + 1):
        times, total, kinds = _look_up(count(train, V, n), text, V, n)
        seen = total > 0
        p[n:] = np.where(seen, (times + kinds * p[n:]) / np.where(seen, total + kinds, 1), p[n:])
        yield p.copy()


def kneser_ney(
    train: Int[np.ndarray, " N"], text: Int[np.ndarray, " M"], V: int, order: int
) -> float:
    """Return bits per symbol of a text under Kneser-Ney with one discount per order.

        p_n(c | h) = (max(N(h c) - d_n, 0) + d_n K(h) p_{n-1}(c | h')) / N(h)
        d_n = n1 / (n1 + 2 n2)

    At the highest order N counts occurrences; at lower orders it counts the different symbols
    before h c. n1 and n2 are the numbers of h c with N(h c) = 1 and 2. Args and Raises are those of
    `witten_bell`.

    References: Kneser and Ney, *Improved backing-off for m-gram language modeling*, ICASSP 1995.
    Interpolated form and
    discount: Chen and Goodman, *An empirical study of smoothing techniques for language modeling*,
    1998.
    """
    *_, last = kneser_ney_chances(train, text, V, order)
    return _bits(last)


def kneser_ney_chances(
    train: Int[np.ndarray, " N"], text: Int[np.ndarray, " M"], V: int, order: int
) -> Iterator[Float64[np.ndarray, " M"]]:
    """Yield the probability of every symbol of a text under `kneser_ney` of orders 0 .. `order`."""
    _check(train, text, V, order)
    lower, counts = np.full(len(text), 1.0 / V), count(train, V, 0)
    for n in range(order + 1):
        yield _discounted(counts, lower, text, V, n)
        if n < order:
            counts = count(train, V, n + 1)
            lower = _discounted(_continuations(counts, V, n), lower, text, V, n)


def _discounted(
    counts: Counts, lower: np.ndarray, text: np.ndarray, V: int, n: int
) -> Float64[np.ndarray, " M"]:
    """Mix the discounted counts of order n with the probabilities of the order below."""
    once, twice = np.sum(counts.times == 1), np.sum(counts.times == 2)
    discount = once / (once + 2 * twice) if once else 0.0
    times, total, kinds = _look_up(counts, text, V, n)
    seen, p = total > 0, lower.copy()
    mixed = np.maximum(times - discount, 0) + discount * kinds * p[n:]
    p[n:] = np.where(seen, mixed / np.where(seen, total, 1), p[n:])
    return p


def count(text: Int[np.ndarray, " N"], V: int, n: int) -> Counts:
    """Count the symbols that follow each context of n symbols."""
    grams, times = np.unique(_codes(text, V, n), return_counts=True)
    return _by_context(grams, times, V)


def _continuations(above: Counts, V: int, n: int) -> Counts:
    """Count the different symbols before each sequence of n + 1 symbols."""
    grams, times = np.unique(above.grams % V ** (n + 1), return_counts=True)
    return _by_context(grams, times, V)


def _by_context(grams: np.ndarray, times: np.ndarray, V: int) -> Counts:
    contexts, first, kinds = np.unique(grams // V, return_index=True, return_counts=True)
    return Counts(grams, times, contexts, np.add.reduceat(times, first), kinds)


def _codes(text: np.ndarray, V: int, n: int) -> np.ndarray:
    """Encode every segment of n + 1 symbols as one number, the oldest symbol first."""
    text, codes = np.asarray(text, np.int64), np.zeros(len(text) - n, np.int64)
    for shift in range(n + 1):
        codes = codes * V + text[shift : len(text) - n + shift]
    return codes


def _look_up(
    counts: Counts, text: np.ndarray, V: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return N(h c), N(h) and K(h) of every symbol with at least n symbols before it.

    0 for unseen ones.
    """
    codes = _codes(text, V, n)
    gram, gram_seen = _find(counts.grams, codes)
    context, context_seen = _find(counts.contexts, codes // V)
    return (
        np.where(gram_seen, counts.times[gram], 0),
        np.where(context_seen, counts.total[context], 0),
        np.where(context_seen, counts.kinds[context], 0),
    )


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


def _bits(p: Float64[np.ndarray, " M"]) -> float:
    return float(-np.mean(np.log2(p)))


def _check(
    train: Sequence[int] | np.ndarray, text: Sequence[int] | np.ndarray, V: int, order: int
) -> None:
    if order < 0 or V < 1 or (order + 1) * math.log2(V) >= 63:
        raise ValueError(
            f"order must be at least 0 and V ** (order + 1) below 2 ** 63; got V={V}, order={order}"
        )
    for name, codes in (("train", np.asarray(train)), ("text", np.asarray(text))):
        if len(codes) <= order + 1 or codes.min() < 0 or codes.max() >= V:
            span = f"{codes.min()} .. {codes.max()}" if len(codes) else "none"
            raise ValueError(
                f"{name} must be more than {order + 1} symbols of 0 .. {V - 1}; got {len(codes)}, "
                f"{span}"
            )
