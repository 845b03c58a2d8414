"""Check the times of a table: falling, equal, missing and irregular steps."""

import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1 << 20  # times compared at once
GAP = 1.5  # a step longer than this many median steps is a gap


class Steps(NamedTuple):
    """Result of `check_steps`.

    gaps:     rows that follow a gap
    warnings: one sentence for each fault
    note:     first and last time, and the usual step
    """

    gaps: list[int]
    warnings: list[str]
    note: str


def check_steps(
    times: np.ndarray,
    starts: Sequence[int],
    path: Path,
    place: Callable[[int], str],
    name: str,
    split: bool,
) -> Steps:
    """Check the steps of the time within each recording, in two passes over blocks.

    Args:
        times: `[T]`, dates or numbers.
        starts: first row of each recording.
        path: the file, for messages.
        place: row -> its position for messages.
        name: the column.
        split: whether a gap starts a new recording; otherwise it is a warning.

    Raises:
        ValueError: the time falls within a recording.
    """
    falls, equal, lost, sample = [0, -1], [0, -1], [0, -1], []
    for at, step in _steps(times, starts):
        _count(falls, at, step < np.zeros((), step.dtype))
        _count(equal, at, step == np.zeros((), step.dtype))
        if sum(map(len, sample)) < BLOCK:
            sample.append(step[step > np.zeros((), step.dtype)])
    if row := falls[1] * bool(falls[0]):
        raise ValueError(
            f"{path}, {place(row)}, column {name!r} falls from {shown(times[row - 1])} to "
            f"{shown(times[row])}; {falls[0]} of {len(times)} times do. Sort the file by time, or "
            "pass sort=True (--sort), which sorts the rows by group and time"
        )
    for at in range(0, len(times), BLOCK):
        _count(lost, at, np.isnan(times[at : at + BLOCK]))
    positive = np.concatenate(sample) if sample else np.zeros(0, times.dtype)
    usual = float(np.median(positive.astype(np.float64))) if len(positive) else np.nan
    short, longest, gaps = [0, -1], None, []
    for at, step in _steps(times, starts) if len(positive) else ():
        number = step.astype(np.float64)
        number[np.isnan(step)] = usual
        _count(short, at, (number > 0) & (number < usual / 2))
        found = np.flatnonzero(number > GAP * usual)
        gaps += (at + found).tolist()
        if found.size and (longest is None or number.max() > longest[0]):
            longest = float(number.max()), at + int(number.argmax())
    unit = times.dtype if times.dtype.kind == "M" else None
    said = _step(usual, unit) if len(positive) else ""
    warnings = []
    for (count, row), what in (
        (equal, "equal to the one before"),
        (lost, "missing"),
        (short, f"less than half the usual step, {said}, after the one before"),
    ):
        if count:
            verb = "is" if count == 1 else "are"
            warnings.append(
                f"{path}, {place(row)}: column {name!r}: {count} of {len(times)} times {verb} "
                f"{what}, this one first"
            )
    if longest and not split:
        warnings.append(
            f"{path}, {place(gaps[0])}: column {name!r}: {len(gaps)} steps are longer than "
            f"{GAP:g} times the usual one, {said}; this row follows the first. The longest, "
            f"{_step(longest[0], unit)}, ends at {place(longest[1])}. The steps are treated as "
            'equal; with gaps="split" (--gaps split) each gap starts a new recording'
        )
    note = f"the time is column {name!r}, {shown(times[0])} to {shown(times[-1])}"
    note += f", usual step {said}" if said else ""
    if gaps and split:
        note += f"; {len(gaps)} gaps of more than {GAP:g} steps start new recordings"
    return Steps(gaps, warnings, note)


def shown(time: Any) -> str:
    """Return a time for messages, without a part of a second or a day that is zero."""
    if isinstance(time, np.datetime64):
        text = str(time).replace("T", " ")
        return text.removesuffix(".000000").removesuffix(" 00:00:00")
    return f"{time:g}"


def _steps(times: np.ndarray, starts: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, steps) of consecutive rows in blocks; the step into a recording is NaN."""
    edges = np.asarray(starts)
    for at in range(1, len(times), BLOCK):
        stop = min(at + BLOCK, len(times))
        step = np.diff(times[at - 1 : stop])
        here = edges[(edges >= at) & (edges < stop)] - at
        step[here] = np.array("NaT", step.dtype) if step.dtype.kind == "m" else np.nan
        yield at, step


def _count(found: list[int], at: int, faults: np.ndarray) -> None:
    """Add to [number of faults, row of the first one]."""
    if faults.any():
        found[1] = at + int(np.argmax(faults)) if not found[0] else found[1]
        found[0] += int(faults.sum())


def _step(step: float, dtype: np.dtype | None) -> str:
    return f"{step:g}" if dtype is None else str(datetime.timedelta(microseconds=round(step)))
