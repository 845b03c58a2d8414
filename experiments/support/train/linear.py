"""Linear forecasts from past rows; a network is trained on their residuals."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tbptt import Batch
from tbptt.data import Source, Span
from tbptt.data.tables.bad_samples import good_rows

LINEAR_FILE = "linear.npz"  # in the folder of a run
TILE = 64  # rows per matrix product; a fixed shape, so that later rows do not change the rounding


class Filter(NamedTuple):
    """A linear forecast of K values from a fixed number of past rows.

        forecast[t, k] = b[k] + sum_c sum_{l < lags[c]} w[c, l, k] x[t - l, c]

    lags:    `[C]` number of rows of every input
    weights: `[sum(lags) + 1, K]`: w in the order of the sum, then b
    """

    lags: np.ndarray
    weights: np.ndarray

    @property
    def order(self) -> int:
        """Number of rows that it uses, the newest included."""
        return max(1, int(self.lags.max()))


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """Linear forecast by filters of ascending order.

    Each row is forecast by the longest filter that does not reach back beyond its recording. If
    none is short enough, the forecast is 0, the mean of the training part.
    """

    filters: tuple[Filter, ...]

    @property
    def order(self) -> int:
        """Number of rows that the longest filter uses, the newest included."""
        return self.filters[-1].order

    @property
    def outputs(self) -> int:
        """K, the number of forecast values."""
        return self.filters[-1].weights.shape[1]

    def __call__(self, past: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the forecasts `[n, K]`.

        Args:
            past: rows `[order - 1 + n, C]`, scaled; the forecasts are those of the last n.
            known: `[n]` number of rows of the recording up to each row, that row included.
        """
        found, n = np.zeros((len(known), self.outputs)), len(known)
        padded = np.concatenate([past, np.zeros((-n % TILE, past.shape[1]), past.dtype)])
        for i, one in enumerate(self.filters):
            upto = self.filters[i + 1].order if i + 1 < len(self.filters) else np.inf
            rows = (one.order <= known) & (known < upto)
            if rows.any():
                features = features_of(padded[self.order - one.order :], one.lags, one.order)
                values = features.reshape(-1, TILE, features.shape[1]) @ one.weights
                found[rows] = values.reshape(-1, self.outputs)[:n][rows]
        return found

    def save(self, path: Path) -> None:
        """Write the weights to a .npz file."""
        named = {f"lags_{i}": one.lags for i, one in enumerate(self.filters)}
        named |= {f"weights_{i}": one.weights for i, one in enumerate(self.filters)}
        with path.open("wb") as file:
            np.savez(file, **named)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def load(path: Path) -> "Linear":
        """Read the weights from a .npz file."""
        with np.load(path) as found:
            n = len(found.files) // 2
            return Linear(
                tuple(Filter(found[f"lags_{i}"], found[f"weights_{i}"]) for i in range(n))
            )


def past_rows(
    source: Source,
    inputs: Sequence[int],
    span: Span,
    order: int,
    before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the arguments `(past, known)` of a `Linear` for the rows of a span.

    A masked row has the values of the last row before it that is not masked.

    Args:
        before: rows `[m, C]` of the recording that precede its first row in the source.
    """
    before = np.zeros((0, len(inputs))) if before is None else before
    first = max(span.begin, span.start - order + 1)
    rows, good = source.read(first, span.stop)[:, list(inputs)], good_rows(source, first, span.stop)
    if first == span.begin:
        rows = np.concatenate([before.astype(rows.dtype), rows])
        good = None if good is None else np.concatenate([np.ones(len(before), bool), good])
    if good is not None:
        newest = np.maximum.accumulate(np.where(good, np.arange(len(good)), -1))
        rows = np.where((newest >= 0)[:, None], rows[newest], 0)
    needed = order - 1 + span.stop - span.start
    rows = rows[max(0, len(rows) - needed) :]
    past = np.concatenate([np.zeros((needed - len(rows), rows.shape[1]), rows.dtype), rows])
    return past, np.arange(span.start, span.stop) - span.begin + 1 + len(before)


class SourceForecasts:
    """Compute the linear forecasts of any rows of a source with several recordings.

    Args:
        linear: the forecast.
        source: the scaled rows.
        inputs: indices of the input columns in the source.
        before: rows `[m, C]` before the first row, which then continues their recording; rows with
            NaN are ignored. None: the first row begins a recording.
    """

    def __init__(
        self,
        linear: Linear,
        source: Source,
        inputs: Sequence[int],
        before: np.ndarray | None = None,
    ) -> None:
        self._linear, self._source, self._inputs = linear, source, list(inputs)
        self._before = None if before is None else before[~np.isnan(before).any(axis=1)]
        self._edges = np.cumsum((0, *source.lengths))

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Return the forecasts `[stop - start, K]` of rows [start, stop)."""
        found = []
        first, last = np.searchsorted(self._edges, [start, stop - 1], side="right") - 1
        for begin, end in itertools.pairwise(self._edges[first : last + 2].tolist()):
            span = Span(max(start, begin), min(stop, end), begin, end)
            found.append(self._linear(*self._past(span)))
        return np.concatenate(found)

    def last_rows(self) -> np.ndarray:
        """Return the last `[order - 1, C]` rows, the argument `before` for the next file.

        Rows before the last recording are NaN.
        """
        begin, total = self._edges[-2:].tolist()
        past, known = self._past(Span(total - 1, total, begin, total))
        past = past[1:]
        past[: max(0, len(past) - int(known[-1]))] = np.nan
        return past

    def _past(self, span: Span) -> tuple[np.ndarray, np.ndarray]:
        before = self._before if span.begin == 0 else None
        return past_rows(self._source, self._inputs, span, self._linear.order, before)


def residual_batches(make: Any, linear: Linear, inputs: Sequence[int]) -> Any:
    """Return a function that makes the batches of `make` for training on the residuals.

    inputs[t] = (row[t], forecast[t]);  targets[t] = targets[t] - forecast[t]
    """

    def residual(source: Source, span: Span) -> Batch:
        batch = make(source, span)
        found = linear(*past_rows(source, inputs, span, linear.order)).astype(batch.inputs.dtype)
        rest = np.where(batch.weights[:, None] > 0, batch.targets - found, 0)
        return batch._replace(inputs=np.concatenate([batch.inputs, found], axis=1), targets=rest)

    return residual


def features_of(past: np.ndarray, lags: np.ndarray, order: int) -> np.ndarray:
    """Return x[t], x[t - 1], ... of every column, and a 1: `[n, F]`."""
    n = len(past) - order + 1
    found = []
    for c, lag in enumerate(lags.tolist()):
        if lag:
            column = past[order - lag :, c].astype(np.float64)
            found.append(np.lib.stride_tricks.sliding_window_view(column, lag)[:, ::-1])
    return np.concatenate([*found, np.ones((n, 1))], axis=1)
