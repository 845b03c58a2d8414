"""Count the missing values of a table on disk, and fill them in within their recording."""

from collections.abc import Callable, Sequence

import numpy as np

BLOCK = 1 << 16  # rows filled at once


def fill_missing(
    values: np.ndarray,
    starts: Sequence[int],
    how: str,
    names: Sequence[str],
    numbers: Sequence[int],
    place: Callable[[int], str],
) -> list[str]:
    """Count the missing values of the numbers, fill them in if asked, and return notes."""
    rows = len(values)

    def count() -> tuple[np.ndarray, int, int]:
        counts, bad_rows, first = np.zeros(len(numbers), int), 0, -1
        for start in range(0, rows, BLOCK):
            bad = np.isnan(values[start : start + BLOCK, : len(numbers)])
            if bad.any():
                first = start + int(bad.any(axis=1).argmax()) if first < 0 else first
                counts += bad.sum(axis=0)
                bad_rows += int(bad.any(axis=1).sum())
        return counts, bad_rows, first

    counts, bad_rows, first = count()
    if not bad_rows:
        return []
    each = ", ".join(f"{names[i]}: {counts[i]}" for i in np.flatnonzero(counts).tolist())
    said = f"{counts.sum()} values are missing ({each}), in {bad_rows} rows, first {place(first)}"
    if how in ("hold", "interpolate"):
        fill(values, [*starts, rows], how, numbers)
        left, left_rows, _ = count()
        verb = "held from the row before" if how == "hold" else "interpolated"
        said += f"; {counts.sum() - left.sum()} of them are {verb}"
        said += f", and {left_rows} rows without such values are masked" if left_rows else ""
    elif how == "mask":
        said += "; these rows are masked"
    return [said]


def fill(values: np.ndarray, edges: Sequence[int], how: str, columns: Sequence[int]) -> None:
    """Replace NaN in place, one column of one recording after the other.

        hold          values[t] = the newest value before t
        interpolate   values[t] = the straight line over rows between the values beside t

    What has no value before it in its recording, or for "interpolate" none after it, stays NaN.

    Args:
        values: `[T, C]`, an array or a writable map of a file.
        edges: first row of each recording, and T.
        columns: the columns to fill.
    """
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        newest = {column: (begin - 1, np.nan) for column in columns}
        for start in range(begin, end, BLOCK):
            block = np.asarray(values[start : min(start + BLOCK, end)])
            bad = np.isnan(block)
            for column in columns:
                known = np.flatnonzero(~bad[:, column])
                row, value = newest[column]
                if bad[:, column].any() or row < start - 1:
                    x = np.concatenate([[row], start + known])
                    y = np.concatenate([[value], block[known, column].astype(np.float64)])
                    _fill(values, column, x, y, how, start + len(block))
                    if how == "hold":  # the rest of the block is filled, too
                        newest[column] = start + len(block) - 1, y[-1]
                        continue
                if len(known):
                    newest[column] = start + int(known[-1]), float(block[known[-1], column])


def _fill(
    values: np.ndarray, column: int, x: np.ndarray, y: np.ndarray, how: str, stop: int
) -> None:
    """Fill the rows between the rows x, whose values are y; y[0] may be NaN."""
    ends = np.append(x[1:], stop) if how == "hold" else x[1:]
    for i in np.flatnonzero(ends - x[: len(ends)] > 1):
        rows = np.arange(x[i] + 1, ends[i])
        slope = 0.0 if how == "hold" else (y[i + 1] - y[i]) / (ends[i] - x[i])
        values[rows[0] : rows[-1] + 1, column] = y[i] + (rows - x[i]) * slope
