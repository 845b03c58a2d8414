"""Read and write metrics.jsonl, which has one JSON object per line, each update once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read the complete lines of a metrics file; a killed process may leave an incomplete one.

    Raises:
        ValueError: a line is not a JSON object; the message names the file and the line.
    """
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished  # empty, or the start of a line of a process that was killed
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}). Correct or delete that line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} must be a JSON object; got {line[:60]!r}. Correct or "
                f"delete that line"
            )
        rows.append(row)
    return rows


def remove_after(path: Path, step: int) -> tuple[list[Row], int]:
    """Remove the rows after an update, which a resumed run will write again.

    The new file replaces the old one atomically, so that a process that is killed meanwhile loses
    nothing.

    Returns:
        (the remaining rows, the number of removed rows).
    """
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(b"".join(_encoded(row) for row in kept))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return kept, len(rows) - len(kept)


class MetricsFile:
    """Append-only file of rows; each row is written when it is added.

    A row that cannot be written (a full disk) is kept in memory and written with the next one, so
    that training continues. `on_error(error)` is called at the first of several consecutive
    failures.
    """

    def __init__(self, path: Path, on_error: Callable[[OSError], None]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._file).st_size
        self._waiting: list[bytes] = []
        self._on_error = on_error
        self._failing = False

    def append(self, row: Row) -> None:
        """Append one row; raise ValueError if it contains NaN or inf, which JSON does not have."""
        self._waiting.append(_encoded(row))
        self.retry()

    def retry(self) -> None:
        """Write the pending rows."""
        data = b"".join(self._waiting)
        try:
            written = os.write(self._file, data) if data else 0
            if written < len(data):  # a partial write: the next call raises the reason
                os.write(self._file, data[written:])
        except OSError as error:
            if os.fstat(self._file).st_size > self._size:
                os.ftruncate(self._file, self._size)  # remove the incomplete row
            if not self._failing:
                self._on_error(error)
            self._failing = True
            return
        self._size += len(data)
        self._waiting.clear()
        self._failing = False

    def close(self) -> int:
        """Write the pending rows, close the file, and return the number of lost rows."""
        self.retry()
        os.close(self._file)
        return len(self._waiting)


def _encoded(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
