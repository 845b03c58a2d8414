"""Labels of recordings: which classes there are, and which one a recording is of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Num

from tbptt.data.streams.layout import Span
from tbptt.data.tables.bad_samples import BadSample, first_good_row
from tbptt.data.tables.sources import Source


def count_classes(source: Source, label: str) -> tuple[float, ...]:
    """Collects the values that a label takes, in ascending order, from one row of each recording.

    Raises:
        ValueError: the source has no such column.
    """
    if label not in source.names:
        raise ValueError(f"label must be a column of the source, {', '.join(source.names)}; got {label!r}")
    place, found, begin = source.names.index(label), set(), 0
    for length in source.lengths:
        row = first_good_row(source, begin, begin + length)
        if row is not None:
            found.add(float(source.read(row, row + 1)[0, place]))
        begin += length
    return tuple(sorted(found))


def check_classes(classes: Sequence[float | int]) -> tuple[float, ...]:
    """Returns the classes as a tuple; a ValueError if there are fewer than two, or one twice."""
    known = tuple(float(value) for value in classes)
    if len(known) < 2 or len(set(known)) < len(known):
        raise ValueError(f"classes must be at least two different values of the label; got {known}")
    return known


def class_of(
    source: Source,
    span: Span,
    labels: Num[np.ndarray, " n"],
    place: int,
    classes: tuple[float, ...],
    good: Bool[np.ndarray, " n"] | None,
) -> int:
    """Returns the number of the class that a recording is of, having checked the labels of a span of it.

    Args:
        labels: the labels of the span's rows; good: which of them count.
        place: the column that holds them.

    Raises:
        BadSample: a row's label is another one than the recording's first, or it is none of the classes.
    """
    first: Any = first_good_row(source, span.begin, span.end)
    if first is None:  # nothing of the recording counts, whatever its class
        return 0
    value = float(source.read(first, first + 1)[0, place])
    other = (labels != value) if good is None else (labels != value) & good
    if other.any():
        at = int(np.argmax(other))
        raise BadSample(
            f"{source.path_of(span.start + at)}, column {source.names[place]!r} is {labels[at]:g}, and {value:g} where the "
            "recording starts. A recording has one label: correct it, or cut there into two recordings"
        )
    if value not in classes:
        raise BadSample(
            f"{source.path_of(first)}, column {source.names[place]!r} is {value:g}, none of the known classes "
            f"({', '.join(f'{known:g}' for known in classes)}). Correct it, or train anew with all classes"
        )
    return classes.index(value)
