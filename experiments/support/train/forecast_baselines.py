"""Score forecasts without a network on the scored rows of the test part.

    mean of training   the mean of the target over the training part
    last value         the target at the row, if the target is an input
    ridge AR(n)        linear in the target's last n rows, if the target is an input
    ridge, n rows      linear in the last n rows of all inputs

The linear ones are fitted to the last 200,000 rows of the training part by ridge regression, one
fit for all horizons. Where a lag lies before the recording, or its row is masked, the mean of the
training part is used. A fit excludes rows with lags before the recording, unless those are more
than half of the rows; it needs rows in which the targets of all horizons are known.
"""

from collections.abc import Iterator

import numpy as np

from experiments.support.common.ridge import NormalEquations
from experiments.support.train.data import RunData
from experiments.support.train.predicting import Score
from experiments.support.train.prediction_steps import Steps, read_steps
from experiments.support.train.task import Forecast
from tbptt.data import Source, part

BLOCK = 4096  # rows per block; with 256 features a block has 8 MB
ROWS = 200_000  # most rows of a fit: hundreds for each weight
ORDERS = (16, 64, 256)
FEATURES = 320  # most features of a linear baseline with several inputs
RIDGE = 1e-6  # penalty per row, in units of the variances


def forecast_scores(data: RunData, task: Forecast) -> dict[str, Score]:
    """Return the scores of the baselines on the test part, by name."""
    train, start, stop = data.ends.train, data.ends.valid, data.ends.test
    linear = _linear(task, train)
    back = max((one.order for one in linear), default=1) - 1
    rows = part(data.source, max(0, train - ROWS), train)
    for steps, past, rows_before in _blocks(task, rows, back, 0) if linear else ():
        scored = np.asarray(steps.scored.all(axis=1))
        targets = (steps.truth - task.target_mean) / task.target_scale
        for one in linear:
            whole = 2 * np.maximum(np.subtract(rows.lengths, one.order - 1), 0).sum() >= sum(
                rows.lengths
            )
            known = scored & (rows_before >= one.order - 1) if whole else scored
            one.add(past, known, targets[known])
    linear = [one for one in linear if one.equations.n]
    names = ["mean of training"] + ["last value"] * (task.target in task.columns)
    scores = {name: Score(task) for name in [*names, *(one.name for one in linear)]}
    skip = min(start, back)
    for steps, past, _ in _blocks(task, part(data.source, start - skip, stop), back, skip):
        shape = steps.truth.shape
        scores["mean of training"].add(np.zeros(shape), steps)
        if "last value" in scores:
            now = past[:, -1, task.columns.index(task.target)]
            scores["last value"].add(np.broadcast_to(now[:, None], shape), steps)
        for one in linear:
            scores[one.name].add(one.outputs(past), steps)
    return scores


class _Linear:
    """Ridge regression on the last `order` rows of some inputs."""

    def __init__(self, name: str, order: int, places: list[int], outputs: int) -> None:
        F = order * len(places) + 1
        self.name, self.order, self._places = name, order, places
        self.equations = NormalEquations(F, outputs)
        self._weights: np.ndarray | None = None

    def add(self, past: np.ndarray, known: np.ndarray, targets: np.ndarray) -> None:
        self.equations.add(self._features(past)[known], targets)

    def outputs(self, past: np.ndarray) -> np.ndarray:
        if self._weights is None:
            self._weights = self.equations.solve(RIDGE, intercept=1e-6)  # almost no penalty on it
        return self._features(past) @ self._weights

    def _features(self, past: np.ndarray) -> np.ndarray:
        found = past[:, past.shape[1] - self.order :, self._places].reshape(len(past), -1)
        return np.column_stack([found, np.ones(len(found))])


def _linear(task: Forecast, rows: int) -> list[_Linear]:
    """Return the linear baselines for which the training part has enough rows."""
    K, own = task.outputs, task.target in task.columns
    found = []
    if own:
        place = [task.columns.index(task.target)]
        found = [_Linear(f"ridge AR({n})", n, place, K) for n in ORDERS]
    if not own or len(task.columns) > 1:
        every = list(range(len(task.columns)))
        most = max(FEATURES // len(every), 1)
        for n in sorted({min(order, most) for order in (1, *ORDERS)}):
            found.append(_Linear(f"ridge, {n} row{'s' * (n > 1)}", n, every, K))
    return [one for one in found if 10 * len(one.equations.gram) + task.horizon <= rows]


def _blocks(
    task: Forecast, rows: Source, back: int, skip: int
) -> Iterator[tuple[Steps, np.ndarray, np.ndarray]]:
    """Yield blocks of n rows of a part, as `(steps, past, rows_before)`.

    past:        `[n, back + 1, D]`, the inputs up to each row
    rows_before: `[n]`, the number of rows before each row in its recording

    The first `skip` rows are only the past of later ones.
    """
    edges, total = np.cumsum((0, *rows.lengths)), sum(rows.lengths)
    size = max(BLOCK // max(1, (back + 1) * len(task.columns) // 256), 256)
    for start in range(skip, total, size):
        stop = min(start + size, total)
        first = max(start - back, 0)
        steps = read_steps(task, rows, first, stop, True)
        inputs = np.concatenate(
            [np.zeros((back - (start - first), steps.inputs.shape[1])), steps.inputs]
        )
        past = np.lib.stride_tricks.sliding_window_view(inputs, back + 1, axis=0)
        at = np.arange(start, stop)
        rows_before = at - edges[np.searchsorted(edges, at, side="right") - 1]
        inside = np.arange(back, -1, -1) <= rows_before[:, None]
        now = [leaf[start - first :] for leaf in steps if leaf is not None]
        yield Steps(*now), np.swapaxes(past, 1, 2) * inside[:, :, None], rows_before
