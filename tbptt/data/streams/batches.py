"""What a stream's steps are asked: forecasts, the next symbol of a text, the class of a recording."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tbptt import windows
from tbptt.data.streams.classes import check_classes, class_of
from tbptt.data.streams.files_stream import MakeBatch
from tbptt.data.streams.layout import Span
from tbptt.data.tables.bad_samples import good_rows, last_good_row
from tbptt.data.tables.sources import Source
from tbptt.data.tables.text import Vocabulary
from tbptt.types import Batch


def forecast_batches(target: str, horizons: Sequence[int]) -> MakeBatch:
    """Makes the batches of forecasting one column: what will it be, one or several horizons later?

        inputs[t] = row[t];  targets[t, i] = row[t + horizons[i]][target]
        weights[t] = 1 if t + max(horizons) lies within the recording, else 0 (and the targets there are 0)

    Rows that a masked source takes out have mask False; a step whose target is taken out has weight 0.

    Args:
        target: the name of the column.
        horizons: how many steps ahead, each at least 1.

    Raises:
        TypeError, ValueError: a horizon is not an int >= 1, or there is none; at the first batch, the source has no such
            column.
    """
    ahead = [windows.check_window(f"horizons[{i}]", horizon) for i, horizon in enumerate(horizons)]
    if not ahead:
        raise ValueError("horizons must name at least one horizon, in steps; got none")

    def forecast(source: Source, span: Span) -> Batch:
        place = _place(source, target, "target")
        n, upto = span.stop - span.start, min(span.stop + max(ahead), span.end)
        values, good = source.read(span.start, upto), good_rows(source, span.start, upto)
        targets = np.zeros((n, len(ahead)), values.dtype)
        weights = (np.arange(n) + max(ahead) < len(values)).astype(values.dtype)
        for i, horizon in enumerate(ahead):
            found = values[horizon : horizon + n, place]
            targets[: len(found), i] = found
            if good is not None:
                weights[: len(found)] *= good[horizon : horizon + n]
        targets *= weights[:, None] > 0
        return _batch(values[:n], targets, weights, mask=None if good is None else good[:n])

    return forecast


def symbol_batches(vocabulary: Vocabulary) -> MakeBatch:
    """Makes the batches of predicting a text's next symbol; the last one of a file has nothing to predict, weight 0.

        inputs[t] = number of symbol t;  targets[t] = number of symbol t + 1

    Args:
        vocabulary: from `count_symbols`; `len(vocabulary)` is the size of the embedding and of the readout.

    Raises:
        BadSample, at the batch: the text holds a symbol that the vocabulary has not.
    """

    def next_symbol(source: Source, span: Span) -> Batch:
        n, upto = span.stop - span.start, min(span.stop + 1, span.end)
        numbers = vocabulary.encode(source.read(span.start, upto)[:, 0], lambda at: source.path_of(span.start + at))
        targets = np.zeros(n, np.int32)
        targets[: upto - span.start - 1] = numbers[1:][:n]
        weights = (np.arange(n) + 1 < upto - span.start).astype(np.float32)
        return _batch(numbers[:n], targets, weights)

    return next_symbol


def label_batches(label: str, classes: Sequence[float | int]) -> MakeBatch:
    """Makes the batches of classifying recordings: one label each, asked for after its last step.

        inputs[t] = row[t] without the label;  targets[t] = number of the recording's class
        weights[t] = 1 if t is the recording's last step (that a masked source has not taken out), else 0

    Lay the recordings out by `whole_recordings`: on a lane that begins in the middle of one, its start is not known.

    Args:
        label: the name of the column that holds the label: the same in all rows of a recording, and never an input.
        classes: the values that the label takes, from `count_classes`; class i has the number i.

    Raises:
        ValueError: fewer than two classes, or one twice. At the batch: the source has no such column or no other; a label
            changes within a recording or is none of the classes (a BadSample).
    """
    known = check_classes(classes)

    def classify(source: Source, span: Span) -> Batch:
        place = _place(source, label, "label")
        values, good = source.read(span.start, span.stop), good_rows(source, span.start, span.stop)
        number = class_of(source, span, values[:, place], place, known, good)
        last = last_good_row(source, span.begin, span.end)
        weights = (np.arange(span.start, span.stop) == last).astype(values.dtype)
        return _batch(np.delete(values, place, axis=1), np.full(len(values), number, np.int32), weights, mask=good)

    return classify


def _batch(inputs: Any, targets: Any, weights: Any, mask: Any = None) -> Batch:
    """A Batch of numpy arrays, which become jax's where they are put on a device."""
    return Batch(inputs, targets, weights, mask=mask)


def _place(source: Source, column: str, what: str) -> int:
    if column not in source.names:
        raise ValueError(f"{what} must be a column of the source, {', '.join(source.names)}; got {column!r}")
    return source.names.index(column)
