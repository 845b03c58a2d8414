"""Open the data of a run in three parts, and scale it by the training part."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.support.train.columns import open_columns, printed_table_warnings
from experiments.support.train.linear import Linear, residual_batches
from experiments.support.train.linear_fit import Fitted, fit_linear
from experiments.support.train.split import PartEnds, check_files, check_fractions, hold_out, split
from experiments.support.train.task import Characters, Classify, Forecast, Task, scaled
from tbptt.data import (
    RecordingStream,
    Source,
    Vocabulary,
    count_symbols,
    even_streams,
    forecast_batches,
    label_batches,
    open_text,
    part,
    stream_scaling,
    symbol_batches,
    whole_recordings,
)


class RunData(NamedTuple):
    """Data of a run.

    task:         the task of the model
    source:       all rows with inputs and target, in their own units: training, validation, test
    ends:         the ends of the training, validation and test part
    descriptions: by name of the part, a description of its rows
    rows_of:      maps rows of the source to their numbers in --data, or of the test part in
      --test-data
    """

    task: Task
    source: Source
    ends: PartEnds
    descriptions: dict[str, str]
    rows_of: Callable[[np.ndarray], np.ndarray]


def open_data(config: Any) -> RunData:
    """Open the files of a run and make its task; `config` is that of experiments.train.

    Raises:
        ValueError: a flag does not fit the data; the message names both. Errors of `open_source`
          are not caught.
    """
    if config.task == "characters":
        check_fractions(config)
        text = open_text(config.data)
        vocabulary = count_symbols(text)
        if len(vocabulary) < 2:
            raise ValueError(
                f"--data must contain at least two different characters; got only "
                f"{vocabulary.symbols!r}"
            )
        return RunData(Characters(tuple(vocabulary.symbols)), *split(text, config))
    is_classify = config.task == "classify"
    check_files(config)
    source, columns = open_columns(config)
    if not is_classify and config.horizon == 0 and config.target in columns:
        raise ValueError(
            f"--horizon 0 estimates {config.target!r} from its own row, so it must not be an "
            f"input, as it is by default: give --without {config.target}, or --columns without "
            "it. Or forecast it, with --horizon 1 or more"
        )
    source, ends, descriptions, rows_of = split(source, config)
    group = config.group or hold_out(config)[0]
    keep = [config.target] if is_classify else []
    with printed_table_warnings():
        inputs = [name for name in columns if name != config.target]
        scaling = stream_scaling(part(source, 0, ends.train), keep=keep, constant=inputs)
    numbers = {
        name: (float(scaling.mean[i]), float(scaling.scale[i]))
        for i, name in enumerate(source.names)
    }
    mean, scale = (tuple(numbers[name][i] for name in columns) for i in (0, 1))
    if is_classify:
        task: Task = Classify(
            columns, config.target, source.classes, mean, scale, group, config.answer
        )
    else:
        task = Forecast(
            columns,
            config.target,
            config.horizon,
            mean,
            scale,
            *numbers[config.target],
            config.forecasts,
            group,
        )
    return RunData(task, source, ends, descriptions, rows_of)


def training_stream(
    data: RunData, batch: int, chunk: int, rows: Any = None, linear: Linear | None = None
) -> RecordingStream:
    """Stream the scaled training part as `batch` sequences, in chunks of `chunk` steps.

    With a linear forecast, the targets are its residuals, and its values are further inputs.
    `rows` are the batch rows that this process reads; None: all.
    """
    task, source = data.task, part(data.source, 0, data.ends.train)
    if isinstance(task, Characters):
        return RecordingStream(
            source, batch, chunk, symbol_batches(Vocabulary(bytes(task.vocabulary))), rows=rows
        )
    rescaled = scaled(task, source)
    if isinstance(task, Classify):
        every = task.answer == "every"
        batches = label_batches(task.target, range(len(task.classes)), every=every)
        return RecordingStream(rescaled, batch, chunk, batches, layout=whole_recordings, rows=rows)
    batches = forecast_batches(task.target, task.horizons, inputs=task.columns, partial=True)
    if linear is not None:
        places = [source.names.index(name) for name in task.columns]
        batches = residual_batches(batches, linear, places)
    return RecordingStream(rescaled, batch, chunk, batches, layout=even_streams, rows=rows)


def linear_forecast(data: RunData) -> Fitted | None:
    """Fit the linear forecast; None if the task is no forecast or there are too few rows."""
    task, source = data.task, data.source
    if not isinstance(task, Forecast):
        return None
    make = forecast_batches(task.target, task.horizons, inputs=task.columns)
    places = [source.names.index(name) for name in task.columns]
    own = task.columns.index(task.target) if task.target in task.columns else None
    return fit_linear(scaled(task, source), make, places, own, data.ends.train, data.ends.valid)


def default_batch(data: RunData, k2: int, devices: int = 1) -> int:
    """Choose the batch size: 32, or fewer so that every sequence has at least 20 windows.

    For classification it is at most the number of recordings. It is a multiple of the number of
    devices where possible.
    """
    is_classify = isinstance(data.task, Classify)
    most = largest_batch(data) if is_classify else data.ends.train // (20 * k2)
    return max(1, min(32, most) // devices) * devices


def largest_batch(data: RunData) -> int:
    """Return the number of training rows; of a classification, of training recordings."""
    if not isinstance(data.task, Classify):
        return data.ends.train
    return int(np.searchsorted(np.cumsum(data.source.lengths), data.ends.train, side="right"))


def longest_sequence(data: RunData, batch: int) -> int:
    """Return the number of steps of the longest training sequence of a batch."""
    return max(training_stream(data, batch, 1).steps)
