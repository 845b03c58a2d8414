"""Read the inputs and the true values of a task from the rows of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.support.train.columns import open_table
from experiments.support.train.table_flags import TableFlags
from experiments.support.train.task import Characters, Classify, Forecast, Task
from tbptt.data import Source, Vocabulary, open_text
from tbptt.data.tables.bad_samples import first_good_row, good_rows, known_values


class Steps(NamedTuple):
    """Inputs and true values of rows [start, stop).

    inputs: `[n, D]` scaled, or `[n]` symbol numbers
    resets: `[n]` True where a recording begins
    truth:  for a forecast `[n, K]`, one value per horizon, in the units of the file; otherwise
      `[n]`, the number of a class or symbol. Arbitrary where scored is False
    scored: like truth, whether the prediction is scored: of a forecast if the predicted row is in
      the recording, of a class at the end of the recording; False if the row is masked, or the
      value that is predicted is missing
    mask:   `[n]` False where the row is masked and the carry unchanged; None without a mask
    """

    inputs: np.ndarray
    resets: np.ndarray
    truth: np.ndarray
    scored: np.ndarray
    mask: np.ndarray | None = None


def open_for(
    task: Task,
    paths: Sequence[Path],
    score: bool,
    dtype: Any = np.float64,
    flags: TableFlags | None = None,
) -> Source:
    """Open the columns that a task needs, by name and in any order of the files.

    Args:
        score: read the target, too.
        dtype: the dtype of the values; float64 represents those of the file.
        flags: how the table is read; its group is replaced by that of the task.

    Raises:
        ValueError: a column is missing; the message names it and those of the file. See
          `open_source`, `open_text`.
    """
    if isinstance(task, Characters):
        return open_text(paths)
    flags, columns = (flags or TableFlags())._replace(group=task.group or None), task.columns
    more: dict[str, Any] = {"dtype": dtype}
    if score and isinstance(task, Classify):
        more |= {"label": task.target, "classes": task.classes}
    elif score or task.target in columns:
        more["target"] = task.target
    try:
        return open_table(paths, flags, columns, **more)
    except ValueError as error:
        if score and f"has no column {task.target!r}" in str(error):
            raise ValueError(
                f"{error}. --score compares the predictions with it; omit --score"
            ) from error
        raise


def read_steps(task: Task, source: Source, start: int, stop: int, score: bool) -> Steps:
    """Read rows [start, stop) of a source from `open_for`; without `score`, nothing is scored.

    Raises:
        BadSample: a value is missing, or a symbol or class is unknown; the message names its
          position.
        SourceChanged: the file has changed.
    """
    edges = np.cumsum((0, *source.lengths))
    at = np.arange(start, stop)
    ends = edges[np.searchsorted(edges, at, side="right")]  # where the recording of each row ends
    resets, good = np.isin(at, edges), good_rows(source, start, stop)
    if isinstance(task, Characters):
        inputs, truth, scored = _symbols(task, source, start, stop, score, ends)
    else:
        horizon = task.horizon if isinstance(task, Forecast) and score else 0
        rows = source.read(start, min(stop + horizon, int(edges[-1])))
        places = [source.names.index(name) for name in task.columns]
        mean, scale = np.asarray(task.mean, np.float64), np.asarray(task.scale, np.float64)
        inputs = ((rows[: stop - start, places] - mean) / scale).astype(rows.dtype)
        if not score:
            shape = (stop - start, *((task.outputs,) if isinstance(task, Forecast) else ()))
            truth, scored = np.zeros(shape), np.zeros(shape, bool)
        elif isinstance(task, Forecast):
            found = rows[:, source.names.index(task.target)].astype(np.float64)
            ahead = np.arange(stop - start)[:, None] + task.horizons
            truth = found[np.minimum(ahead, len(found) - 1)]
            scored = start + ahead < ends[:, None]
        else:
            truth = rows[:, source.names.index(task.target)].astype(int)
            scored = at + 1 == ends
        if good is not None:
            inputs = np.where(good[:, None] & ~np.isnan(inputs), inputs, 0)
            resets = _resets(source, edges, start, stop)
            scored &= _scored(task, source, good, edges, start, stop)
    return Steps(inputs, resets, truth, scored, good)


def _resets(source: Source, edges: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return True at the first row of each recording that is not masked.

    A reset at a masked row would have no effect.
    """
    resets = np.zeros(stop - start, bool)
    first, last = np.searchsorted(edges, [start, stop - 1], side="right") - 1
    for begin, end in zip(edges[first : last + 1], edges[first + 1 : last + 2], strict=True):
        row = first_good_row(source, int(begin), int(end))
        if row is not None and start <= row < stop:
            resets[row - start] = True
    return resets


def _scored(
    task: Task, source: Source, good: np.ndarray, edges: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Return which rows are not masked; for a forecast `[n, K]`, and which targets are known."""
    if not isinstance(task, Forecast) or task.target not in source.names:
        return good if not isinstance(task, Forecast) else good[:, None]
    found = known_values(source, start, min(stop + task.horizon, int(edges[-1])))
    assert found is not None  # as `good` is not
    known = found[:, source.names.index(task.target)]
    ahead = np.arange(stop - start)[:, None] + task.horizons
    return good[:, None] & (ahead < len(known)) & known[np.minimum(ahead, len(known) - 1)]


def _symbols(
    task: Characters, source: Source, start: int, stop: int, score: bool, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    upto = min(stop + score, sum(source.lengths))
    text = source.read(start, upto)[:, 0]
    numbers = Vocabulary(bytes(task.vocabulary)).encode(text, lambda at: source.path_of(start + at))
    following = np.append(numbers[1:], 0)[: stop - start]
    return numbers[: stop - start], following, (np.arange(start, stop) + 1 < ends) & score
