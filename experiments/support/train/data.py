"""The data of a run: opened, cut into training, validation and test part in the order of time, and scaled by the first."""

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.support.train.columns import chosen_columns
from experiments.support.train.prediction_steps import open_for
from experiments.support.train.task import Characters, Classify, Forecast, Task
from tbptt.data import (
    RecordingStream,
    Scaling,
    Source,
    Vocabulary,
    count_classes,
    count_symbols,
    even_streams,
    forecast_batches,
    label_batches,
    open_source,
    open_text,
    part,
    split_by,
    standardised,
    stream_scaling,
    symbol_batches,
    whole_recordings,
)
from tbptt.data import without as without_columns


class Parts(NamedTuple):
    """Rows [0, train), [train, valid) and [valid, test) of a source, test = all rows."""

    train: int
    valid: int
    test: int


class RunData(NamedTuple):
    """What a run learns from and is judged by.

    task:   what is predicted
    source: the rows as the model is judged by them, in their own units, from `open_for`
    parts:  where training ends, where validation ends, all rows
    """

    task: Task
    source: Source
    parts: Parts


def open_data(config: Any) -> RunData:
    """Opens the files of a run and makes its task; `config` is the one of experiments.train.

    Raises:
        ValueError: a flag does not fit the data; names both. And what `open_source` raises.
    """
    if config.task == "characters":
        if not 0 < config.valid + config.test < 1:
            raise ValueError(_shares(config))
        text = open_text(config.data)
        vocabulary = count_symbols(text)
        if len(vocabulary) < 2:
            raise ValueError(f"--data must hold at least two different characters; got {vocabulary.symbols!r} alone")
        return RunData(Characters(tuple(vocabulary.symbols)), text, _parts(text.lengths, config, whole=False))
    columns = chosen_columns(config)
    group = config.group or ""
    read: tuple[str, ...] = tuple(dict.fromkeys((*columns, str(config.target), *([group] if group else []))))
    source = open_source(config.data, read)
    source = split_by(source, group) if group else source
    whole = config.task == "classify"
    parts = _parts(source.lengths, config, whole)
    keep = [name for name in source.names if name == group or (whole and name == config.target)]
    scaling = stream_scaling(part(source, 0, parts.train), keep=keep)
    numbers = {name: (float(scaling.mean[i]), float(scaling.scale[i])) for i, name in enumerate(source.names)}
    mean, scale = (tuple(numbers[name][i] for name in columns) for i in (0, 1))
    if whole:
        task: Task = Classify(columns, config.target, count_classes(source, config.target), mean, scale, group)
    else:
        task = Forecast(
            columns, config.target, config.horizon, mean, scale, *numbers[config.target], config.forecasts, group
        )
    return RunData(task, open_for(task, config.data, True), parts)


def training_stream(data: RunData, lanes: int, chunk: int, rows: Any = None) -> RecordingStream:
    """Lays the training part out in lanes, scaled."""
    task, source = data.task, part(data.source, 0, data.parts.train)
    if isinstance(task, Characters):
        return RecordingStream(source, lanes, chunk, symbol_batches(Vocabulary(bytes(task.vocabulary))), rows=rows)
    scaled: Source = without_columns(source, [task.group]) if task.group else source
    numbers = dict(zip(task.columns, zip(task.mean, task.scale, strict=True), strict=True))
    if isinstance(task, Forecast):
        numbers[task.target] = task.target_mean, task.target_scale
    mean, scale = (np.asarray([numbers.get(name, (0.0, 1.0))[i] for name in scaled.names]) for i in (0, 1))
    scaled = standardised(scaled, Scaling(mean, scale))
    if isinstance(task, Classify):
        batches = label_batches(task.target, task.classes)
        return RecordingStream(scaled, lanes, chunk, batches, layout=whole_recordings, rows=rows)
    every = task.horizon // task.outputs
    batches = forecast_batches(task.target, range(every, task.horizon + 1, every))
    return RecordingStream(scaled, lanes, chunk, batches, layout=even_streams, rows=rows)


def default_lanes(data: RunData, k2: int, devices: int = 1) -> int:
    """Chooses how many lanes: 32, or as few as leave each at least 20 windows; of recordings, one a lane at most.

    A multiple of the devices, if there is one.
    """
    most = data.parts.train // (20 * k2)
    if isinstance(data.task, Classify):
        most = _recordings_before(data.source.lengths, data.parts.train)
    return max(1, min(32, most) // devices) * devices


def longest_lane(data: RunData, lanes: int) -> int:
    """Returns the steps of the longest lane."""
    return max(training_stream(data, lanes, 1).steps)


def _recordings_before(lengths: tuple[int, ...], row: int) -> int:
    return int(np.searchsorted(np.cumsum(lengths), row, side="right"))


def _parts(lengths: tuple[int, ...], config: Any, whole: bool) -> Parts:
    """Cuts off the ends that are held out; at the seams of recordings if these must stay whole."""
    total = sum(lengths)
    if not (0 < config.valid and 0 < config.test and config.valid + config.test < 1):
        raise ValueError(_shares(config))
    if whole:
        n, edges = len(lengths), np.cumsum(lengths)
        valid, test = math.ceil(n * config.valid), math.ceil(n * config.test)
        if n - valid - test < 1:
            raise ValueError(
                f"classes are learnt from whole recordings, at least one in each of the three parts; got {n} in all. Give "
                "several files, or name the column that tells them apart: --group"
            )
        return Parts(int(edges[n - valid - test - 1]), int(edges[n - test - 1]), total)
    train, valid = int(total * (1 - config.valid - config.test)), int(total * (1 - config.test))
    least = config.horizon + 1 if config.task == "forecast" else 2
    if min(train, valid - train, total - valid) < least:
        what = f"a forecast {config.horizon} rows ahead (--horizon)" if config.task == "forecast" else "a prediction"
        raise ValueError(
            f"{what} needs at least {least} rows in each part; the {total} rows of the data make {train} for training, "
            f"{valid - train} for validation (--valid {config.valid:g}) and {total - valid} for the test (--test "
            f"{config.test:g}). Give more data, or larger shares of it"
        )
    return Parts(train, valid, total)


def _shares(config: Any) -> str:
    return (
        f"--valid and --test are the shares of the data that are held out, both above 0, together below 1; got "
        f"{config.valid:g} and {config.test:g}"
    )
