"""Read the inputs and the true values of a task from the rows of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.support.train.task import Characters, Classify, Forecast, Task
from tbptt.data import BadSample, Source, Vocabulary, open_source, open_text, split_by


class Steps(NamedTuple):
    """Inputs and true values of rows [start, stop).

    inputs: `[n, D]` scaled, or `[n]` symbol numbers
    resets: `[n]` True where a recording begins
    truth:  `[n]` value in its own units, or number of a class or symbol; arbitrary where counts is
    False
    counts: `[n]` whether the prediction is scored: for a forecast if its row is in the recording,
    for a class at the end
    """

    inputs: np.ndarray
    resets: np.ndarray
    truth: np.ndarray
    counts: np.ndarray


def open_for(task: Task, paths: Sequence[Path], score: bool, dtype: Any = np.float32) -> Source:
    """Open the columns that a task needs, by name and in any order of the files.

    Args:
        score: read the target, too.

    Raises:
        ValueError: a column is missing; the message names it and those of the file. See
          `open_source`, `open_text`.
    """
    if isinstance(task, Characters):
        return open_text(paths)
    more = ((task.target,) if score else ()) + ((task.group,) if task.group else ())
    columns = tuple(dict.fromkeys(task.columns + more))
    source = open_source(paths, columns, dtype=dtype)
    return split_by(source, task.group) if task.group else source


def read_steps(task: Task, source: Source, start: int, stop: int, score: bool) -> Steps:
    """Read rows [start, stop) of a source from `open_for`; without `score`, nothing counts.

    Raises:
        BadSample: a value is missing, or a symbol or class is unknown; the message names its
          position.
        SourceChanged: the file has changed.
    """
    edges = np.cumsum((0, *source.lengths))
    at = np.arange(start, stop)
    ends = edges[np.searchsorted(edges, at, side="right")]  # where the recording of each row ends
    resets = np.isin(at, edges)
    if isinstance(task, Characters):
        inputs, truth, counts = _symbols(task, source, start, stop, score, ends)
    else:
        horizon = task.horizon if isinstance(task, Forecast) and score else 0
        rows = source.read(start, min(stop + horizon, int(edges[-1])))
        places = [source.names.index(name) for name in task.columns]
        mean, scale = np.asarray(task.mean, np.float64), np.asarray(task.scale, np.float64)
        inputs = ((rows[: stop - start, places] - mean) / scale).astype(rows.dtype)
        if not score:
            truth, counts = np.zeros(stop - start), np.zeros(stop - start, bool)
        elif isinstance(task, Forecast):
            found = rows[horizon:, source.names.index(task.target)]
            truth = np.concatenate([found, np.zeros(stop - start - len(found))]).astype(np.float64)
            counts = at + horizon < ends
        else:
            truth, counts = _classes(task, source, start, rows), at + 1 == ends
    return Steps(inputs, resets, truth, counts)


def _symbols(
    task: Characters, source: Source, start: int, stop: int, score: bool, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    upto = min(stop + score, sum(source.lengths))
    text = source.read(start, upto)[:, 0]
    numbers = Vocabulary(bytes(task.vocabulary)).encode(text, lambda at: source.path_of(start + at))
    following = np.append(numbers[1:], 0)[: stop - start]
    return numbers[: stop - start], following, (np.arange(start, stop) + 1 < ends) & score


def _classes(task: Classify, source: Source, start: int, rows: np.ndarray) -> np.ndarray:
    labels = rows[:, source.names.index(task.target)].astype(np.float64)
    classes = np.asarray(task.classes)
    numbers = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    if (unknown := classes[numbers] != labels).any():
        row = int(np.argmax(unknown))
        raise BadSample(
            f"{source.path_of(start + row)}, column {task.target!r} is {labels[row]:g}, which is "
            f"not a class of the "
            f"training data ({', '.join(f'{value:g}' for value in task.classes)}). Correct it, or "
            f"predict without --score"
        )
    return numbers
