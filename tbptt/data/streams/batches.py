"""Build the batches of a stream: forecasts, next symbols of a text, classes of recordings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num

from tbptt import windows
from tbptt.data.streams.recording_stream import MakeBatch, Span
from tbptt.data.tables.bad_samples import (
    BadSample,
    first_good_row,
    good_rows,
    known_values,
    last_good_row,
)
from tbptt.data.tables.sources import Source
from tbptt.data.tables.text import Vocabulary
from tbptt.types import Batch


def forecast_batches(
    target: str,
    horizons: Sequence[int],
    *,
    inputs: Sequence[str] | None = None,
    partial: bool = False,
) -> MakeBatch:
    """Return a function that makes batches for forecasting one column at one or more horizons.

        inputs[t] = row[t][inputs];  targets[t, i] = row[t + horizons[i]][target]
        weights[t] = 1 if t + max(horizons) lies within the recording, else 0 (and targets 0)

    Rows that a masked source excludes have mask False. A step with a target that is missing, or
    in an excluded row, has weight 0.

    Args:
        target: the name of the column.
        horizons: numbers of steps ahead, each at least 1; or 0, the same row, if the target is
            not an input.
        inputs: the input columns, in order; None: all columns.
        partial: a step counts if the target is present at some of the horizons. Its weight is
            their fraction, and the other targets are NaN, which the loss function must leave out
            of its mean.

    Raises:
        TypeError, ValueError: a horizon is not an int, or is too small, or there is none. When
            the first batch is made: the source has no such column.
    """
    least = 0 if inputs is not None and target not in inputs else 1
    ahead = [
        horizon
        if type(horizon) is int and least == horizon == 0
        else windows.check_positive_int(f"horizons[{i}]", horizon)
        for i, horizon in enumerate(horizons)
    ]
    if not ahead:
        raise ValueError(
            "horizons must have at least one horizon, in steps; got none. For example horizons=(1,)"
        )

    def forecast(source: Source, span: Span) -> Batch:
        place = _column_index(source, target, "target")
        chosen = source.names if inputs is None else inputs
        places = [_column_index(source, name, "inputs") for name in chosen]
        n, upto = span.stop - span.start, min(span.stop + max(ahead), span.end)
        values, good = source.read(span.start, upto), good_rows(source, span.start, span.stop)
        known = known_values(source, span.start, upto)
        inside = max(0, min(n, len(values) - max(ahead)))  # steps whose targets are all there
        counts, targets = np.zeros((n, len(ahead)), bool), np.zeros((n, len(ahead)), values.dtype)
        for i, horizon in enumerate(ahead):
            rows = slice(horizon, horizon + inside)
            targets[:inside, i] = values[rows, place]
            counts[:inside, i] = True if known is None else known[rows, place]
        weights = (counts.mean(axis=1) if partial else counts.all(axis=1)).astype(values.dtype)
        targets = np.where(counts, targets, np.nan) if partial else targets
        targets = np.where(weights[:, None] > 0, targets, 0)
        now = values[:n] if inputs is None else values[:n, places]
        if good is not None:  # NaN is a target before its first value
            now = np.where(np.isnan(now), 0, now)
        return _batch(now, targets, weights, mask=good)

    return forecast


def symbol_batches(vocabulary: Vocabulary) -> MakeBatch:
    """Return a function that makes batches for predicting the next symbol of a text.

        inputs[t] = number of symbol t;  targets[t] = number of symbol t + 1

    The last symbol of a file has no target and weight 0.

    Args:
        vocabulary: from `count_symbols`; `len(vocabulary)` is the size of the embedding and of
            the readout.

    Raises:
        BadSample: when a batch is made, the text has a symbol that is not in the vocabulary.
    """

    def next_symbol(source: Source, span: Span) -> Batch:
        n, upto = span.stop - span.start, min(span.stop + 1, span.end)
        numbers = vocabulary.encode(
            source.read(span.start, upto)[:, 0], lambda at: source.path_of(span.start + at)
        )
        targets = np.zeros(n, np.int32)
        targets[: upto - span.start - 1] = numbers[1:][:n]
        weights = (np.arange(n) + 1 < upto - span.start).astype(np.float32)
        return _batch(numbers[:n], targets, weights)

    return next_symbol


def label_batches(label: str, classes: Sequence[float | int], *, every: bool = False) -> MakeBatch:
    """Return a function that makes batches for classifying recordings.

        inputs[t] = row[t] without the label;  targets[t] = number of the recording's class
        weights[t] = 1 if every, or if t is the last step of the recording, else 0

    With a masked source, the last step is the last one that the mask keeps, and steps that it does
    not keep have weight 0. Use the layout
    `whole_recordings`: a stream that begins inside a recording lacks the start of it.

    Args:
        label: the name of the label column; constant within a recording, and not an input.
        classes: the values of the label, from `count_classes`; class i has the number i.
        every: whether the label counts at every step. In long recordings a gradient from the last
            step alone does not reach most of the rows.

    Raises:
        ValueError: fewer than two classes, or a duplicate. When a batch is made: the source has
            no such column or no other column; a label changes within a recording or is not one
            of the classes (a BadSample).
    """
    labels = check_classes(classes)

    def classify(source: Source, span: Span) -> Batch:
        place = _column_index(source, label, "label")
        values, good = source.read(span.start, span.stop), good_rows(source, span.start, span.stop)
        number = class_of(source, span, values[:, place], place, labels, good)
        last = last_good_row(source, span.begin, span.end)
        counts = np.arange(span.start, span.stop) == last
        if every:
            counts = np.ones(len(values), bool) if good is None else np.asarray(good)
        weights = counts.astype(values.dtype)
        return _batch(
            np.delete(values, place, axis=1),
            np.full(len(values), number, np.int32),
            weights,
            mask=good,
        )

    return classify


def count_classes(source: Source, label: str) -> tuple[float, ...]:
    """Return the distinct values of a label, ascending, from one row of each recording.

    Raises:
        ValueError: the source has no such column.
    """
    if label not in source.names:
        raise ValueError(
            f"label must be a column of the source, {', '.join(source.names)}; got {label!r}"
        )
    place, found, begin = source.names.index(label), set(), 0
    for length in source.lengths:
        row = first_good_row(source, begin, begin + length)
        if row is not None:
            found.add(float(source.read(row, row + 1)[0, place]))
        begin += length
    return tuple(sorted(found))


def check_classes(classes: Sequence[float | int]) -> tuple[float, ...]:
    """Return the classes as a tuple; raise a ValueError for fewer than two, or a duplicate."""
    values = tuple(float(value) for value in classes)
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(
            f"classes must be at least two different values of the label; got {values}"
        )
    return values


def class_of(
    source: Source,
    span: Span,
    labels: Num[np.ndarray, " n"],
    place: int,
    classes: tuple[float, ...],
    good: Bool[np.ndarray, " n"] | None,
) -> int:
    """Return the class number of a recording, after checking the labels of a span of it.

    Args:
        labels: the labels of the rows of the span.
        place: index of the label column.
        good: which of the rows count; None if all do.

    Raises:
        BadSample: the label of a row differs from the first one of the recording, or is not
            one of the classes.
    """
    first: Any = first_good_row(source, span.begin, span.end)
    if first is None:  # no row of the recording counts, so its class has weight 0
        return 0
    value = float(source.read(first, first + 1)[0, place])
    other = (labels != value) if good is None else (labels != value) & good
    if other.any():
        at = int(np.argmax(other))
        raise BadSample(
            f"{source.path_of(span.start + at)}, column {source.names[place]!r} is {labels[at]:g}, "
            f"but {value:g} at the start of the recording. A recording has one label: correct it, "
            "or split the recording there"
        )
    if value not in classes:
        raise BadSample(
            f"{source.path_of(first)}, column {source.names[place]!r} is {value:g}, which is not "
            f"one of the classes ({', '.join(f'{c:g}' for c in classes)}). Correct it, or train a "
            "new model with all classes"
        )
    return classes.index(value)


def _batch(inputs: Any, targets: Any, weights: Any, mask: Any = None) -> Batch:
    """Return a Batch of numpy arrays, which become jax arrays when put on a device."""
    return Batch(inputs, targets, weights, mask=mask)


def _column_index(source: Source, column: str, what: str) -> int:
    if column not in source.names:
        raise ValueError(
            f"{what} must be a column of the source, {', '.join(source.names)}; got {column!r}"
        )
    return source.names.index(column)
