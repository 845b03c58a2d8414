"""metrics.jsonl: what a run did, a JSON object a line, in which no step stands twice, however often it was resumed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Reads the whole lines of a metrics file; a last line that a killed process left unfinished is not one of them.

    Raises:
        ValueError: a line before the last is not a JSON object; names the file and the line.
    """
    if not path.exists():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished  # empty, or what a process had written when it was killed
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}). Correct or delete that line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object; got {line[:60]!r}. Correct or delete that line")
        rows.append(row)
    return rows


def cut_after(path: Path, step: int) -> tuple[list[Row], int]:
    """Keeps the rows up to an update and takes out the later ones, which a resumed run will write again.

    The new file replaces the old one in a single move, so that a process killed meanwhile loses nothing.

    Returns:
        (rows kept, rows taken out).
    """
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(b"".join(_encoded(row) for row in kept))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return kept, len(rows) - len(kept)


class MetricsFile:
    """Appends rows, each written in one go when it is given.

    A row that cannot be written (a full disk) is kept and tried again with the next one; `trouble(error)` is called at the
    first failure of a row of failures. So a run outlives its log.
    """

    def __init__(self, path: Path, trouble: Callable[[OSError], None]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._file).st_size
        self._waiting: list[bytes] = []
        self._trouble = trouble
        self._failing = False

    def append(self, row: Row) -> None:
        """Adds one row; a ValueError if it holds NaN or inf, which JSON has not."""
        self._waiting.append(_encoded(row))
        self.retry()

    def retry(self) -> None:
        """Writes the rows that wait."""
        data = b"".join(self._waiting)
        try:
            written = os.write(self._file, data) if data else 0
            if written < len(data):  # the disk took a part: the next write says why not all
                os.write(self._file, data[written:])
        except OSError as error:
            if os.fstat(self._file).st_size > self._size:
                os.ftruncate(self._file, self._size)  # no half row in the middle of the file
            if not self._failing:
                self._trouble(error)
            self._failing = True
            return
        self._size += len(data)
        self._waiting.clear()
        self._failing = False

    def close(self) -> int:
        """Tries once more, closes, and returns how many rows could not be written."""
        self.retry()
        os.close(self._file)
        return len(self._waiting)


def _encoded(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
