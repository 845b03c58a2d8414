"""A Parquet file as a table: row groups to begin at, and cursors that go on from where the last read stopped."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.table import Table, choose_columns, need_pyarrow
from tbptt.data.watched import watch

BATCH = 4096  # rows decoded at once
CURSORS = 256  # as many places are read side by side; a lane is one


def open_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    """Opens a Parquet file of numeric columns (nulls are NaN, so missing).

    A read goes on with the cursor that stopped there, as each lane's reads do; any other place is found through the
    nearest row group before it. So no row group is ever held whole, and none is decoded twice by readers that move on.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no Parquet file, or was cut short; a column is missing or not numeric.
    """
    need_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    watched = watch(path)
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
    except pa.ArrowInvalid as error:
        raise ValueError(f"cannot read {path} as a Parquet file: {error}. If it was cut short, copy it again") from error
    schema = file.schema_arrow
    names, _ = choose_columns(path, tuple(schema.names), columns)
    for name in names:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                f"{path}, column {name!r} holds {kind}, not numbers. Leave it out by naming the others in `columns`, or "
                "convert it"
            )
    if file.metadata.num_rows == 0:
        raise ValueError(f"{path} has no rows; wanted at least one")
    cursors = _Cursors(file, names)
    return Table(watched, names, file.metadata.num_rows, cursors.read, lambda row: f"row {row} (from 0)")


class _Cursors:
    """Places in one file at which reading goes on; the one that was not used longest is given up first."""

    def __init__(self, file: Any, names: tuple[str, ...]):
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._edges = np.concatenate([[0], np.cumsum(rows)])
        self._file, self._names = file, names
        self._cursors: list[_Cursor] = []
        self._lock = threading.Lock()  # a read-ahead and a validation may share one source

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._lock:
            cursor = next((c for c in self._cursors if c.begin <= start <= c.end), None)
            if cursor is None:
                group = int(np.searchsorted(self._edges, start, side="right")) - 1
                cursor = _Cursor(self._batches(group), int(self._edges[group]), len(self._names))
            else:
                self._cursors.remove(cursor)
            values = cursor.read(start, stop)
            self._cursors = [*self._cursors[-(CURSORS - 1) :], cursor]
            return values

    def _batches(self, group: int) -> Iterator[np.ndarray]:
        import pyarrow as pa

        groups = list(range(group, self._file.num_row_groups))
        batches = self._file.iter_batches(BATCH, row_groups=groups, columns=list(self._names), use_threads=False)
        for batch in batches:
            parts = [batch.column(batch.schema.get_field_index(name)) for name in self._names]
            yield np.stack([p.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for p in parts], axis=1)


class _Cursor:
    """Rows [begin, end) at hand, and the batches that follow them."""

    def __init__(self, batches: Iterator[np.ndarray], begin: int, C: int):
        self._batches, self.begin = batches, begin
        self._held = np.empty((0, C))

    @property
    def end(self) -> int:
        return self.begin + len(self._held)

    def read(self, start: int, stop: int) -> np.ndarray:
        if self.end < stop:
            parts, end = [self._held], self.end
            while end < stop:
                parts.append(next(self._batches))
                end += len(parts[-1])
                if end <= start:  # what lies before `start` is not asked for again
                    parts = []
            self._held = np.concatenate(parts)[-(end - start) :]
            self.begin = end - len(self._held)
        return self._held[start - self.begin : stop - self.begin].copy()
