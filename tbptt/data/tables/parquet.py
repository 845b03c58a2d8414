"""Open a Parquet file as a table, converted once to an array on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tbptt.data.tables.cache import open_converted
from tbptt.data.tables.file_changes import stamp_of
from tbptt.data.tables.table import Table, choose_columns, need_pyarrow

BATCH = 1 << 14  # rows decoded at once


def open_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    """Open a Parquet file of numeric columns; nulls are missing values, as NaN is.

    Random access by row groups would need, for every stream and column, a decoded page and a
    dictionary (about a megabyte each), or decoding them again for every chunk. Therefore the
    columns are converted once, to float32 if all of them fit, else to float64; see
    `open_converted`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is not a Parquet file, or was cut short; a column is missing or not
            numeric.
        DataUnavailable: the cache folder is not writable.
    """
    need_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    stamp = stamp_of(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"cannot read {path} as a Parquet file: {error}. If it was cut short, copy it again"
        ) from error
    names, _ = choose_columns(path, tuple(schema.names), columns)
    for name in names:
        kind = schema.field(name).type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise ValueError(
                f"{path}, column {name!r} holds {kind}, not numbers. Exclude it by naming the "
                "others in `columns`, or convert it"
            )
    kinds = [
        pa.array([], schema.field(name).type).to_numpy(zero_copy_only=False).dtype for name in names
    ]
    dtype = np.result_type(np.float32, *kinds)
    return open_converted(
        stamp,
        names,
        str(schema),
        lambda: _blocks(path, names, dtype),
        lambda row: f"row {row} (from 0)",
    )


def _blocks(path: Path, names: tuple[str, ...], dtype: Any) -> Iterator[np.ndarray]:
    """Yield the rows, `[n, C]`, without holding a whole row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            for batch in file.iter_batches(BATCH, columns=list(names), use_threads=False):
                parts = [batch.column(batch.schema.get_field_index(name)) for name in names]
                columns = [
                    part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
                    for part in parts
                ]
                yield np.stack(columns, axis=1).astype(dtype)
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        raise ValueError(f"{path} is damaged: {error}. Copy or write it again") from error
    finally:
        pa.default_memory_pool().release_unused()  # otherwise arrow keeps freed memory
