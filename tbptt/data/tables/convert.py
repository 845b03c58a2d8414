"""Convert a table to arrays on disk, in one pass, whose rows are found by position."""

import contextlib
import functools
import gzip
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tbptt.data.tables.bad_samples import fill
from tbptt.data.tables.csv_file import scan_csv
from tbptt.data.tables.recordings import Runs, check_steps, group_value, joined
from tbptt.data.tables.scan import (
    Reading,
    Roles,
    Scan,
    need_polars,
    place_of,
    roles_of,
    scan_npy,
    scan_parquet,
    shortened,
)
from tbptt.data.tables.table import FileStamp, SourceChanged, Table, kind_of, open_npy

if TYPE_CHECKING:
    import polars as pl

BLOCK = 1 << 16  # rows converted at once
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)  # a compressed file that was cut short
SMALL = ("Int8", "Int16", "UInt8", "UInt16", "Float32", "Boolean")  # exact in float32


def convert(path: Path, reading: Reading, folder: Path) -> None:
    """Write a table into a new folder, for `open_converted`.

        values.npy   `[T, C]` the numbers, and the number of the label's class as the last column;
                     float32 if the types of the file fit, else float64
        times.npy    `[T]` int64, microseconds since 1970, or float64
        held.npy     `[T, 1]` the target, its missing values held, if its rows are not masked
        order.npy    `[T]` row of the file, if the rows were sorted
        starts.npy   first row of each recording
        about.json   names, groups, classes, and what was noticed

    A CSV file is read in one pass if its first rows tell what its columns hold. If that fails, its
    rows are counted and every column is tried before; the errors are those of this second attempt.

    Raises:
        ImportError: polars is not installed.
        ValueError: the file is not such a table; the message gives the row and the remedy.
    """
    need_polars(path)
    import polars as pl

    scans = {".npy": scan_npy, ".parquet": scan_parquet}
    scan = scans.get(kind_of(path), functools.partial(scan_csv, quick=False))
    try:
        if kind_of(path) not in scans and not reading.sort:
            with contextlib.suppress(ValueError, pl.exceptions.PolarsError):
                return _write(scan_csv(path, quick=True), reading, folder)
            shutil.rmtree(folder, ignore_errors=True)
        _write(scan(path), reading, folder)
    except (pl.exceptions.PolarsError, *DAMAGED) as error:
        raise ValueError(
            f"{path} is damaged: {shortened(error)}. Copy or write it again"
        ) from error


def open_converted(stamp: FileStamp, folder: Path) -> Table:
    """Open what `convert` wrote, as the table of the file with the given stamp."""
    about = json.loads((folder / "about.json").read_text())
    values = open_npy(folder / "values.npy")
    starts = np.load(folder / "starts.npy")
    total, first = sum(values.lengths), about["first"]
    times, order = _mapped(folder, "times"), _mapped(folder, "order")

    def read(start: int, stop: int) -> np.ndarray:
        # No stamp check, unlike for the original: another process may have replaced the converted
        # file with the same bytes.
        try:
            return values.read(start, stop)
        except FileNotFoundError as error:
            raise SourceChanged(
                f"{folder}, the converted form of {stamp.path}, is gone. Resume the run, which "
                "converts it again"
            ) from error

    return Table(
        stamp,
        tuple(about["names"]),
        tuple(np.diff(starts, append=total).tolist()),
        read,
        lambda row: place_of(first, row if order is None else int(order[row])),
        None if times is None else lambda start, stop: np.array(times[start:stop]),
        about["time"],
        tuple(map(group_value, about["groups"])),
        tuple(about["classes"]),
        tuple(about["notes"]),
        tuple(about["warnings"]),
        about["time_format"],
        open_npy(folder / "held.npy").read if (folder / "held.npy").exists() else None,
    )


def _mapped(folder: Path, name: str) -> Any:
    """Return times or row numbers that were written, mapped; None if there are none."""
    path = folder / f"{name}.npy"
    found = np.load(path, mmap_mode="r") if path.exists() else None
    return (
        found.view("M8[us]")
        if name == "times" and found is not None and found.dtype.kind == "i"
        else found
    )


def _write(scan: Scan, reading: Reading, folder: Path) -> None:
    """Write the rows of a table in one pass, check them, fill them in and describe them."""
    folder.mkdir(parents=True)
    roles = roles_of(scan, reading)
    small = all(scan.columns[name].about in SMALL for name in roles.numbers)
    arrays = _Arrays(folder, roles, np.dtype(np.float32 if small and roles.numbers else np.float64))
    with arrays:
        _read(scan, roles, reading.sort, arrays)
    if arrays.unsure or not arrays.rows:
        raise ValueError(f"{scan.path} has no rows; expected at least one row of numbers")
    values = np.load(folder / "values.npy", mmap_mode="r+")
    order = _mapped(folder, "order")

    def place(row: int) -> str:
        return scan.place(row if order is None else int(order[row]))

    starts, notes, warnings = _recordings(scan, roles, reading, arrays, place)
    if roles.label:
        arrays.labels.check_constant(starts, lambda row: f"{scan.path}, {place(row)}", roles.label)
    notes += arrays.fill_missing(values, starts, reading, place)
    np.save(folder / "starts.npy", np.asarray(starts, np.int64))
    left_out = [f"column {name!r} is left out: {why}" for name, why in roles.left_out.items()]
    about = {
        "names": (*roles.numbers, *([roles.label] if roles.label else [])),
        "first": scan.first,
        "time": roles.time,
        "time_format": roles.time_format,
        "groups": arrays.groups.at(starts) if roles.group else [],
        "classes": list(arrays.classes),
        "notes": [*scan.notes, *notes],
        "warnings": [*(f"{scan.path}: {said}" for said in left_out), *warnings],
    }
    (folder / "about.json").write_text(json.dumps(about))


def _read(scan: Scan, roles: Roles, sort: bool, arrays: "_Arrays") -> None:
    """Read the columns "0", "1", ..., "time", "group", "label", "row" and "unsure" into arrays."""
    columns, by = scan.columns, [scan.columns[name] for name in roles.group]
    picked = [columns[name].value.alias(str(i)) for i, name in enumerate(roles.numbers)]
    keys = {
        f"key{i}": column.value if column.kind == "number" and not column.bad else column.text
        for i, column in enumerate(by)
    }
    if by:
        picked.append(joined([column.text for column in by]).alias("group"))
    if roles.time:
        keys["time"] = columns[roles.time].value
        picked.append(keys["time"].alias("time"))
    if roles.label:
        picked.append(columns[roles.label].text.alias("label"))
    if scan.unsure is not None:
        picked.append(scan.unsure.alias("unsure"))
    texts = (*roles.group, *([roles.label] if roles.label else []))
    if scan.blocks is not None and not sort:
        for frame in scan.blocks(texts, picked):
            arrays.add(frame if scan.rows is None else frame.head(scan.rows - arrays.rows))
        return
    lazy = scan.open(texts)
    lazy = lazy if scan.rows is None else lazy.head(scan.rows)
    if sort and not keys:
        raise ValueError(
            f"{scan.path} has neither groups nor a time to sort by; name them (`group`, `time`), "
            "or leave out sort=True (--sort)"
        )
    if sort:
        picked += [key.alias(name) for name, key in keys.items() if name != "time"]
        lazy = lazy.with_row_index("row").select(*picked, "row")
        lazy = lazy.sort(list(keys), maintain_order=True, nulls_last=True)
    else:
        lazy = lazy.select(picked)
    lazy.sink_batches(arrays.add, chunk_size=BLOCK, maintain_order=True, engine="streaming")


class _Arrays:
    """Arrays of a folder that blocks of rows are appended to; what is counted in the same pass.

    rows:           number of rows
    groups, labels: stretches of equal text
    classes:        text of a label -> its number
    unsure:         whether a row may have too few cells
    """

    def __init__(self, folder: Path, roles: Roles, dtype: np.dtype):
        self.folder, self.rows, self.unsure = folder, 0, False
        self.groups, self.labels, self.classes = Runs(), Runs(), {}
        self._roles, self._dtype, self._files = roles, dtype, {}
        self._missing, self._bad_rows, self._first = np.zeros(len(roles.numbers), int), 0, -1

    def __enter__(self) -> "_Arrays":
        return self

    def __exit__(self, *error: object) -> None:
        for file, tail, dtype in self._files.values():
            if error[0] is None:
                _head(file, (self.rows, *tail), dtype)
            file.close()

    def add(self, frame: "pl.DataFrame") -> None:
        """Append rows: the columns that `_selected` gives."""
        roles, n = self._roles, len(self._roles.numbers)
        values = frame.select(map(str, range(n))).to_numpy() if n else np.zeros((len(frame), 0))
        bad = np.isnan(values)
        if bad.any():
            rows = bad.any(axis=1)
            self._first = self.rows + int(rows.argmax()) if self._first < 0 else self._first
            self._missing += bad.sum(axis=0)
            self._bad_rows += int(rows.sum())
        if roles.label:
            codes = self.labels.add(frame["label"], self.rows, self.classes)
            values = np.column_stack([values, codes])
        self._append("values", np.asarray(values, self._dtype))
        if roles.group:
            self.groups.add(frame["group"], self.rows)
        if roles.time:
            times = frame["time"].to_numpy()
            dates = frame["time"].dtype.is_temporal()
            self._append("times", times.astype("M8[us]").view(np.int64) if dates else times)
        if "row" in frame.columns:
            self._append("order", frame["row"].to_numpy().astype(np.int64))
        if "unsure" in frame.columns:
            self.unsure |= bool(frame["unsure"].any())
        self.rows += len(frame)

    def _append(self, name: str, array: np.ndarray) -> None:
        if name not in self._files:
            file = (self.folder / f"{name}.npy").open("wb")
            self._files[name] = file, array.shape[1:], array.dtype
            _head(file, (0, *array.shape[1:]), array.dtype)
        np.ascontiguousarray(array).tofile(self._files[name][0])

    def fill_missing(
        self, values: np.ndarray, starts: list[int], reading: Reading, place: Callable[[int], str]
    ) -> list[str]:
        """Fill in the missing values that were counted, if asked, and return notes."""
        missing, names, how = self._missing, self._roles.numbers, reading.missing
        edges = [*starts, len(values)]
        target = reading.target if how == "mask" else None
        before = 0 if target is None else self._hold_target(values, edges, target)
        if not missing.any():
            return []
        each = ", ".join(f"{names[i]}: {missing[i]}" for i in np.flatnonzero(missing).tolist())
        said = f"{missing.sum()} values are missing ({each}), in {self._bad_rows} rows, first "
        said += place(self._first)
        if how in ("hold", "interpolate"):
            columns = np.flatnonzero(missing).tolist()
            fill(values, edges, how, columns)
            left = [np.isnan(values[i : i + BLOCK, columns]) for i in range(0, len(values), BLOCK)]
            rows = sum(int(bad.any(axis=1).sum()) for bad in left)
            verb = "held from the row before" if how == "hold" else "interpolated"
            said += f"; {missing.sum() - sum(map(np.sum, left))} of them are {verb}"
            said += f", and {rows} rows without such values are masked" if rows else ""
        elif how == "mask":
            lost = 0 if target is None else int(missing[names.index(target)])
            said += "; these rows are masked" if missing.sum() > lost else ""
            if lost and missing.sum() > lost:
                said += f", but not those without {target!r} alone"
            if lost:
                said += (
                    f"; where the target {target!r} is missing, nothing is scored; as an input it "
                    "is the newest value before it"
                )
            said += f"; {before} values have none before and are the mean" if before else ""
        return [said]

    def _hold_target(self, values: np.ndarray, edges: list[int], target: str) -> int:
        """Write the target with its missing values held; return how many have none before them."""
        place = self._roles.numbers.index(target)
        held = np.lib.format.open_memmap(
            self.folder / "held.npy", "w+", values.dtype, (len(values), 1)
        )
        blocks = [slice(at, at + BLOCK) for at in range(0, len(values), BLOCK)]
        for block in blocks:
            found = values[block, place]
            held[block, 0] = np.where(np.isfinite(found), found, np.nan)
        fill(held, edges, "hold", [0])
        return sum(int(np.isnan(held[block]).sum()) for block in blocks)


def _recordings(
    scan: Scan, roles: Roles, reading: Reading, arrays: _Arrays, place: Callable[[int], str]
) -> tuple[list[int], list[str], list[str]]:
    """Return the first row of each recording, notes and warnings."""
    path, rows, split = scan.path, arrays.rows, reading.gaps == "split"
    name, times, notes, warnings = ", ".join(map(repr, roles.group)), None, [], []
    starts = arrays.groups.starts or [0]
    if roles.time:
        times = _mapped(arrays.folder, "times")
    if roles.group:
        notes += arrays.groups.check_apart(rows, times, name, lambda row: f"{path}, {place(row)}")
    if times is not None and roles.time:
        steps = check_steps(times, starts, path, place, roles.time, split)
        notes.append(steps.note)
        warnings = steps.warnings
        starts = sorted({*starts, *steps.gaps}) if split else starts
    elif split:
        raise ValueError(
            f"{path} has no column of times, so gaps='split' (--gaps split) finds no gaps. Name "
            "the column by time=... (--time), or leave the gaps"
        )
    if len(starts) > 1 and np.median(np.diff(starts, append=rows)) <= 1:
        raise ValueError(
            f"{path}, {place(starts[1])}: {len(starts)} recordings in {rows} rows, most of them of "
            f"one row{f' (group {name})' if roles.group else ''}. Sort the file by group, "
            'then time, or pass sort=True (--sort); leave out groups and gaps="split" if the rows '
            "are one recording"
        )
    return starts, notes, warnings


def _head(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write the header at the start, which numpy pads so that the number of rows can grow."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
