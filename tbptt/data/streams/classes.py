"""Find the classes of labelled recordings, and the class of one recording."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num

from tbptt.data.streams.layout import Span
from tbptt.data.tables.bad_samples import BadSample, first_good_row
from tbptt.data.tables.sources import Source


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
