"""Fit a linear forecast by ridge regression on past rows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.support.common.ridge import NormalEquations
from experiments.support.train.linear import Filter, Linear, features_of, past_rows
from tbptt.data import Source, Span

ORDERS = (4, 8, 16, 32, 64, 128, 256)  # rows of the target's own past that are tried
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
    by_order: number of rows of the target -> lowest mean squared error on the validation part
    """

    linear: Linear
    ridge: float
    valid: float
    by_order: dict[int, float]


def fit_linear(
    source: Source, make: Any, inputs: Sequence[int], own: int | None, train: int, valid: int
) -> Fitted | None:
    """Fit linear forecasts on rows [0, train), and choose one by rows [train, valid).

        minimise  sum_t |targets[t] - forecast[t]|^2 + ridge * N * |w|^2         over N origins

    All combinations of ORDERS, OTHERS and PENALTIES are compared; the normal equations are summed
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
    fitted = _sums(source, make, inputs, lags, 0, train)
    scored = _sums(source, make, inputs, lags, train, valid)
    if fitted is None or scored is None:
        return None
    chosen: dict[int, Fitted] = {}
    for order in [order for order in ORDERS if order <= longest]:
        for other in alike:
            few = np.full(C, min(other, order))
            if own is not None:
                few[own] = order
            if few.sum() == 0 or 10 * few.sum() > fitted.n:
                continue
            features = _places(lags, few)
            for ridge in PENALTIES:
                weights = fitted.solve(ridge, features)
                error = scored.error(features, weights)
                found = Fitted(Linear((Filter(few, weights),)), ridge, error, {})
                if order not in chosen or error < chosen[order].valid:
                    chosen[order] = found
    if not chosen:
        return None
    best = min(chosen, key=lambda order: chosen[order].valid)
    filters = tuple(one.linear.filters[0] for order, one in chosen.items() if order <= best)
    return Fitted(
        Linear(filters),
        chosen[best].ridge,
        chosen[best].valid,
        {order: one.valid for order, one in chosen.items()},
    )


class _Sums(NormalEquations):
    """Normal equations over n origins, and square = |Y|^2."""

    square = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        super().add(x, y)
        self.square += float(np.sum(y**2))

    def error(self, features: np.ndarray, weights: np.ndarray) -> float:
        """Return the mean squared error of a linear forecast, over origins and horizons."""
        gram, moment = self.gram[np.ix_(features, features)], self.moment[features]
        total = self.square + np.sum(weights * (gram @ weights - 2 * moment))
        return float(total / (self.n * moment.shape[1]))


def _longest(lengths: Sequence[int], train: int) -> int | None:
    """Return the longest order that at least half of the training rows have before them."""
    edges = np.minimum(np.cumsum((0, *lengths)), train)
    rows = np.diff(edges)
    fits = [order for order in ORDERS if 2 * np.maximum(rows - order, 0).sum() >= train]
    return fits[-1] if fits else None


def _sums(
    source: Source, make: Any, inputs: Sequence[int], lags: np.ndarray, start: int, stop: int
) -> _Sums | None:
    """Sum over the origins of rows [start, stop); None if there are none."""
    order, sums = max(1, int(lags.max())), None
    for span in _blocks(source.lengths, start, stop):
        batch = make(source, span)
        past, known = past_rows(source, inputs, span, order)
        scored = (np.asarray(batch.weights) > 0) & (known >= order)
        y = np.asarray(batch.targets, np.float64)[scored]
        sums = sums or _Sums(int(lags.sum()) + 1, y.shape[1])
        sums.add(features_of(past, lags, order)[scored], y)
    return sums if sums is not None and sums.n else None


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
