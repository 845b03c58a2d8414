"""Fit a linear forecast by ridge regression on past rows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from experiments.support.train.linear import Filter, Linear, features_of, past_rows
from tbptt.data import Source, Span

REACHES = (4, 8, 16, 32, 64, 128, 256)  # rows of the target's own past that are tried
OTHERS = (0, 4, 16)  # rows of every other input that are tried
PENALTIES = (1e-8, 1e-6, 1e-4, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # ridge; inputs are scaled
# An origin is a row from which a forecast is made.
MOST_FEATURES = 512  # 2 MB of normal equations
MOST_ORIGINS = 100_000  # of a part; of longer parts, evenly spaced blocks are used
BLOCK = 4096  # origins per block: with 512 features, 16 MB


class Fitted(NamedTuple):
    """A fitted linear forecast.

    linear:   the filter with the lowest error on the validation part, and shorter filters
    ridge:    the penalty of that filter
    valid:    its mean squared error on the validation part
    by_reach: number of rows of the target -> lowest mean squared error on the validation part
    """

    linear: Linear
    ridge: float
    valid: float
    by_reach: dict[int, float]


def fit_linear(
    source: Source, make: Any, inputs: Sequence[int], own: int | None, train: int, valid: int
) -> Fitted | None:
    """Fit linear forecasts on rows [0, train), and choose one by rows [train, valid).

        minimise  sum_t |targets[t] - forecast[t]|^2 + ridge * N * |w|^2         over N origins

    All combinations of REACHES, OTHERS and PENALTIES are compared; the normal equations are summed
    once. An origin counts if its recording has enough rows before it for the longest filter.

    Args:
        source: the scaled rows.
        make: `(source, span) -> Batch` with the targets, `[n, K]`.
        inputs: indices of the input columns in the source.
        own: index in `inputs` of the target; None if it is not an input.
        train, valid: the ends of the parts.

    Returns:
        None if the recordings are too short, or have fewer than 10 origins per feature.
    """
    C = len(inputs)
    others, longest = C - (own is not None), _longest(source.lengths, train)
    if longest is None:
        return None
    most = max(0, (MOST_FEATURES - longest) // max(others, 1))
    alike = sorted({min(other, most, longest) for other in OTHERS}) if others else [0]
    lags = np.full(C, alike[-1])
    if own is not None:
        lags[own] = longest
    sums = [_sums(source, make, inputs, lags, *part) for part in ((0, train), (train, valid))]
    if min(one.n for one in sums) == 0:
        return None
    chosen: dict[int, Fitted] = {}
    for reach in [reach for reach in REACHES if reach <= longest]:
        for other in alike:
            few = np.full(C, min(other, reach))
            if own is not None:
                few[own] = reach
            if few.sum() == 0 or 10 * few.sum() > sums[0].n:
                continue
            features = _places(lags, few)
            for ridge in PENALTIES:
                weights = sums[0].solve(features, ridge)
                error = sums[1].error(features, weights)
                found = Fitted(Linear((Filter(few, weights),)), ridge, error, {})
                if reach not in chosen or error < chosen[reach].valid:
                    chosen[reach] = found
    if not chosen:
        return None
    best = min(chosen, key=lambda reach: chosen[reach].valid)
    filters = tuple(one.linear.filters[0] for reach, one in chosen.items() if reach <= best)
    return Fitted(
        Linear(filters),
        chosen[best].ridge,
        chosen[best].valid,
        {reach: one.valid for reach, one in chosen.items()},
    )


class _Sums(NamedTuple):
    """Sums over n origins: gram = X' X `[F, F]`, moment = X' Y `[F, K]`, square = |Y|^2."""

    gram: np.ndarray
    moment: np.ndarray
    square: float
    n: int

    def solve(self, features: np.ndarray, ridge: float) -> np.ndarray:
        """Return the weights of ridge regression on some of the features."""
        penalty = np.full(len(features), ridge * self.n)
        penalty[-1] = 0.0  # b is free
        gram = self.gram[np.ix_(features, features)] + np.diag(penalty)
        return scipy.linalg.solve(gram, self.moment[features], assume_a="pos")

    def error(self, features: np.ndarray, weights: np.ndarray) -> float:
        """Return the mean squared error of a linear forecast, over origins and horizons."""
        gram, moment = self.gram[np.ix_(features, features)], self.moment[features]
        total = self.square + np.sum(weights * (gram @ weights - 2 * moment))
        return float(total / (self.n * moment.shape[1]))


def _longest(lengths: Sequence[int], train: int) -> int | None:
    """Return the longest reach that at least half of the training rows have before them."""
    edges = np.minimum(np.cumsum((0, *lengths)), train)
    rows = np.diff(edges)
    fits = [reach for reach in REACHES if 2 * np.maximum(rows - reach, 0).sum() >= train]
    return fits[-1] if fits else None


def _sums(
    source: Source, make: Any, inputs: Sequence[int], lags: np.ndarray, start: int, stop: int
) -> _Sums:
    F, reach, square, n = int(lags.sum()) + 1, max(1, int(lags.max())), 0.0, 0
    gram, moment = np.zeros((F, F)), 0.0
    for span in _blocks(source.lengths, start, stop):
        batch = make(source, span)
        past, known = past_rows(source, inputs, span, reach)
        counts = (np.asarray(batch.weights) > 0) & (known >= reach)
        x = features_of(past, lags, reach)[counts]
        y = np.asarray(batch.targets, np.float64)[counts]
        gram += x.T @ x
        moment = moment + x.T @ y
        square, n = square + float(np.sum(y**2)), n + len(y)
    return _Sums(gram, np.asarray(moment).reshape(F, -1), square, n)


def _blocks(lengths: Sequence[int], start: int, stop: int) -> Iterator[Span]:
    """Yield blocks of rows [start, stop), evenly spaced if there are too many."""
    edges, blocks = np.cumsum((0, *lengths)), []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        last = min(end, stop)
        for first in range(max(begin, start), last, BLOCK):
            blocks.append(Span(first, min(first + BLOCK, last), begin, last))
    yield from blocks[:: max(1, -(-(stop - start) // MOST_ORIGINS))]


def _places(lags: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Return the indices of the features of `few` rows among those of `lags` rows."""
    first = np.cumsum((0, *lags))
    places = [first[c] + np.arange(few[c]) for c in range(len(lags))]
    return np.concatenate([*places, [first[-1]]]).astype(int)
