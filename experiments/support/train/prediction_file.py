"""Write predictions block by block to a .csv, .parquet or .npy file."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

SUFFIXES = (".csv", ".npy", ".parquet")
GROUP = 1 << 16  # rows of a Parquet row group


class Sink(Protocol):
    """Writer of columns; every call of `write` has the same columns, of equal length."""

    def write(self, columns: dict[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...


class PredictionFile:
    """Context manager with `write(columns)`; the file gets its name when it is complete.

    Args:
        path: the file; its suffix determines the format.
        time_format: format of dates in a .csv file, as of polars; "": 2024-01-31 12:30:00.

    Raises:
        FileExistsError: the file exists.
        ValueError: the suffix is unknown.
        ImportError: the suffix is .parquet and polars is not installed.
    """

    def __init__(self, path: Path, time_format: str = "") -> None:
        sinks: dict[str, Callable[[Path], Sink]] = {
            ".csv": lambda path: _Csv(path, time_format or "%Y-%m-%d %H:%M:%S%.f"),
            ".npy": _Npy,
            ".parquet": _Parquet,
        }
        if path.suffix.lower() not in sinks:
            raise ValueError(f"--out must end in one of {', '.join(SUFFIXES)}; got {path}")
        if path.exists():
            raise FileExistsError(f"--out {path} exists; give another name or delete it")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._temporary = path, path.with_name(path.name + ".unfinished")
        self._sink: Sink = sinks[path.suffix.lower()](self._temporary)

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sink.close()
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink()

    def write(self, columns: dict[str, np.ndarray]) -> None:
        """Append rows."""
        self._sink.write(columns)


class _Csv:
    """CSV file; numbers have the fewest digits that identify them, and NaN is an empty cell."""

    def __init__(self, path: Path, time_format: str) -> None:
        self._time_format = time_format
        self._file = path.open("w", encoding="utf-8", newline="")
        self._csv: Any = csv.writer(self._file)
        self._begun = False

    def write(self, columns: dict[str, np.ndarray]) -> None:
        if not self._begun:
            self._csv.writerow(columns)
            self._begun = True
        lists = [_cells(values, self._time_format) for values in columns.values()]
        self._csv.writerows(zip(*lists, strict=True))

    def close(self) -> None:
        self._file.close()


class _Npy:
    """The predictions alone, float64 `[rows]`, or `[rows, K]` for K horizons."""

    def __init__(self, path: Path) -> None:
        self._file, self._rows, self._shape = path.open("wb"), 0, ()

    def write(self, columns: dict[str, np.ndarray]) -> None:
        found = [columns[name] for name in columns if name.startswith("prediction")]
        values = found[0] if len(found) == 1 else np.stack(found, axis=1)
        if not self._rows:
            self._shape = values.shape[1:]
            self._head()
        if values.dtype.kind not in "biuf":
            raise ValueError(
                "a .npy file contains numbers, but these predictions are symbols: use a .csv or "
                ".parquet file for --out"
            )
        self._file.write(np.ascontiguousarray(values, np.float64).tobytes())
        self._rows += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        """Write the header, which numpy pads so that the number of rows can grow."""
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": "<f8", "fortran_order": False, "shape": (self._rows, *self._shape)},
        )


class _Parquet:
    """Parquet file, collected from one small file per row group; NaN is null."""

    def __init__(self, path: Path) -> None:
        try:
            import polars  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"writing {path.stem} needs polars, which is not installed: pip install "
                f"'tbptt[data]'"
            ) from error
        self._path, self._groups = path, 0
        self._folder = tempfile.TemporaryDirectory(dir=path.parent)
        self._waiting: list[dict[str, np.ndarray]] = []

    def write(self, columns: dict[str, np.ndarray]) -> None:
        self._waiting.append(columns)
        if sum(len(next(iter(block.values()))) for block in self._waiting) >= GROUP:
            self._flush()

    def close(self) -> None:
        import polars as pl

        self._flush()
        files = [self._group(i) for i in range(self._groups)]
        with self._folder:
            rows = pl.scan_parquet(files, glob=False) if files else pl.LazyFrame()
            rows.sink_parquet(self._path, row_group_size=GROUP)

    def _flush(self) -> None:
        import polars as pl

        if not self._waiting:
            return
        whole = {
            name: np.concatenate([block[name] for block in self._waiting])
            for name in self._waiting[0]
        }
        self._waiting.clear()
        pl.DataFrame(whole).fill_nan(None).write_parquet(self._group(self._groups))
        self._groups += 1

    def _group(self, i: int) -> Path:
        return Path(self._folder.name) / f"{i:06d}.parquet"


def _cells(values: np.ndarray, time_format: str) -> list[Any]:
    if values.dtype.kind == "M":
        import polars as pl

        text = pl.Series(values).dt.to_string(time_format)
        return text.fill_null("").to_list()
    if values.dtype.kind != "f":
        return values.tolist()
    if values.dtype == np.float32:  # its own shortest digits, not those of a float64
        return ["" if text == "nan" else text for text in values.astype(str).tolist()]
    return ["" if x != x else repr(x).removesuffix(".0") for x in values.tolist()]
