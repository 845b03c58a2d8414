"""Convert a table, once and in blocks, to arrays on disk whose rows are found by position."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tbptt.data.tables.columns import Reading, Roles, roles_of
from tbptt.data.tables.file_changes import FileStamp, SourceChanged
from tbptt.data.tables.fill import fill_missing
from tbptt.data.tables.npy import open_npy
from tbptt.data.tables.runs import Runs, check_groups, group_value, joined
from tbptt.data.tables.scan import Scan, need_polars, place_of, scan_csv, scan_parquet
from tbptt.data.tables.steps import check_steps
from tbptt.data.tables.table import Table, kind_of

if TYPE_CHECKING:
    import polars as pl

BLOCK = 1 << 16  # rows converted at once
SMALL = ("Int8", "Int16", "UInt8", "UInt16", "Float32", "Boolean")  # exact in float32


def convert(path: Path, reading: Reading, folder: Path) -> None:
    """Write a table into a new folder, for `open_converted`.

        values.npy   `[T, C]` the numbers, and the number of the label's class as the last column;
                     float32 if the types of a Parquet file fit, else float64
        times.npy    `[T]` int64, microseconds since 1970, or float64
        order.npy    `[T]` row of the file, if the rows were sorted
        starts.npy   first row of each recording
        about.json   names, groups, classes, and what was noticed

    Raises:
        ImportError: polars is not installed.
        ValueError: the file is not such a table; the message gives the row and the remedy.
    """
    need_polars(path)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if kind_of(path) == ".npy":
            _write_npy(path, reading, folder, Path(scratch))
        else:
            scan = scan_parquet(path) if kind_of(path) == ".parquet" else scan_csv(path)
            roles = roles_of(scan, reading)
            kept = [scan.columns[name].about in SMALL for name in roles.numbers]
            dtype = np.dtype(np.float32 if scan.first == 0 and all(kept) else np.float64)
            lazy = _selected(scan, roles, reading.sort)
            blocks = _blocks(lazy, scan.rows, Path(scratch))
            written = _write(blocks, roles, scan.rows, dtype, folder)
            _finish(path, scan.first, roles, reading, written, folder, scan.notes)


def open_converted(stamp: FileStamp, folder: Path) -> Table:
    """Open what `convert` wrote, as the table of the file with the given stamp."""
    about = json.loads((folder / "about.json").read_text())
    values = open_npy(folder / "values.npy", None)
    starts = np.load(folder / "starts.npy")
    total, first = sum(values.lengths), about["first"]

    def mapped(name: str) -> Any:
        path = folder / f"{name}.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    times, order = mapped("times"), mapped("order")

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

    def read_times(start: int, stop: int) -> np.ndarray:
        found = np.array(times[start:stop])
        return found.view("M8[us]") if found.dtype.kind == "i" else found

    return Table(
        stamp,
        tuple(about["names"]),
        tuple(np.diff(starts, append=total).tolist()),
        read,
        lambda row: place_of(first, row if order is None else int(order[row])),
        None if times is None else read_times,
        about["time"],
        tuple(map(group_value, about["groups"])),
        tuple(about["classes"]),
        tuple(about["notes"]),
        tuple(about["warnings"]),
        about["time_format"],
    )


def _selected(scan: Scan, roles: Roles, sort: bool) -> "pl.LazyFrame":
    """Return the query for the columns "0", "1", ..., "time", "group", "label" and "row"."""
    columns = scan.columns
    picked = [columns[name].value.alias(str(i)) for i, name in enumerate(roles.numbers)]
    keys = {}
    if roles.group:
        by = [columns[name] for name in roles.group]
        picked.append(joined([column.text for column in by]).alias("group"))
        for i, column in enumerate(by):
            whole = column.kind == "number" and not column.bad
            keys[f"key{i}"] = column.value if whole else column.text
    if roles.time:
        picked.append(columns[roles.time].value.alias("time"))
        keys["time"] = columns[roles.time].value
    if roles.label:
        picked.append(columns[roles.label].text.alias("label"))
    lazy = scan.lazy.head(scan.rows) if scan.first else scan.lazy
    if not sort:
        return lazy.select(picked)
    if not keys:
        raise ValueError(
            f"{scan.path} has neither groups nor a time to sort by; name them (`group`, `time`), "
            "or leave out sort=True (--sort)"
        )
    picked += [key.alias(name) for name, key in keys.items() if name != "time"]
    lazy = lazy.with_row_index("row").select(*picked, "row")
    return lazy.sort(list(keys), maintain_order=True, nulls_last=True)


def _blocks(lazy: "pl.LazyFrame", rows: int, scratch: Path) -> Iterator["pl.DataFrame"]:
    """Yield the rows of a query in order, through a file of row groups of one block each."""
    import polars as pl

    file = scratch / "rows.parquet"
    lazy.sink_parquet(file, row_group_size=BLOCK, compression="uncompressed", statistics=False)
    for start in range(0, rows, BLOCK):
        yield pl.scan_parquet(file, glob=False).slice(start, BLOCK).collect()


def _write_npy(path: Path, reading: Reading, folder: Path, scratch: Path) -> None:
    """Convert a .npy file, whose columns are all numbers."""
    import polars as pl

    table = open_npy(path, None)
    used = (reading.time, *reading.group, reading.label)
    for name in (*used, *(reading.columns or ())):
        if name is not None and name not in table.names:
            raise ValueError(
                f"{path} has no column {name!r}; its columns are {', '.join(table.names)}"
            )
    numbers = reading.columns or tuple(name for name in table.names if name not in used)
    roles = Roles(numbers, reading.time, reading.group, reading.label, {})
    total = sum(table.lengths)

    def blocks() -> Iterator["pl.DataFrame"]:
        for start in range(0, total, BLOCK):
            rows = table.read(start, min(start + BLOCK, total))
            column = dict(zip(table.names, rows.T, strict=True))
            block = {str(i): column[name].astype(np.float64) for i, name in enumerate(numbers)}
            text = {n: pl.Series(column[n]).cast(pl.String) for n in used[1:] if n}
            if reading.group:
                block["group"] = pl.select(
                    joined([text[name] for name in reading.group])
                ).to_series()
            block |= {"label": text[reading.label]} if reading.label else {}
            block |= {"time": column[reading.time].astype(np.float64)} if reading.time else {}
            block |= {f"key{i}": column[name] for i, name in enumerate(reading.group)}
            yield pl.DataFrame(block)

    found = blocks()
    if reading.sort:
        keys = [f"key{i}" for i in range(len(reading.group))] + ["time"] * bool(reading.time)
        whole = pl.concat(found).lazy().with_row_index("row")
        found = _blocks(whole.sort(keys, maintain_order=True), total, scratch)
    written = _write(found, roles, total, np.dtype(np.float64), folder)
    _finish(path, 0, roles, reading, written, folder, [])


class Written(NamedTuple):
    """What one pass over the rows found: stretches of groups and labels, and numbers of classes."""

    groups: Runs
    labels: Runs
    classes: dict[str, int]


def _write(
    blocks: Iterator["pl.DataFrame"], roles: Roles, rows: int, dtype: np.dtype, folder: Path
) -> Written:
    """Write values.npy, times.npy and order.npy from the blocks of a table, in one pass."""
    columns = [str(i) for i in range(len(roles.numbers))]
    groups, labels, classes, at = Runs(), Runs(), {}, 0
    files = {"values": (folder / "values.npy").open("wb")}
    _head(files["values"], (rows, len(columns) + bool(roles.label)), dtype)
    try:
        for frame in blocks:
            values = frame.select(columns).to_numpy() if columns else np.zeros((len(frame), 0))
            if roles.label:
                values = np.column_stack([values, labels.add(frame["label"], at, classes)])
            np.ascontiguousarray(values, dtype).tofile(files["values"])
            if roles.group:
                groups.add(frame["group"], at)
            for side in {"time", "row"} & set(frame.columns):
                array = _side(frame[side])
                if side not in files:
                    name = {"time": "times", "row": "order"}[side]
                    files[side] = (folder / f"{name}.npy").open("wb")
                    _head(files[side], (rows,), array.dtype)
                array.tofile(files[side])
            at += len(frame)
    finally:
        for file in files.values():
            file.close()
    return Written(groups, labels, classes)


def _finish(
    path: Path,
    first: int,
    roles: Roles,
    reading: Reading,
    written: Written,
    folder: Path,
    notes: list[str],
) -> None:
    """Check the rows that were written, fill in missing values, and describe the table."""
    values = np.load(folder / "values.npy", mmap_mode="r+")
    order = np.load(folder / "order.npy", mmap_mode="r") if reading.sort else None
    names = (*roles.numbers, *([roles.label] if roles.label else []))

    def place(row: int) -> str:
        return place_of(first, row if order is None else int(order[row]))

    starts, found, warnings = _recordings(
        path, roles, reading, written.groups, len(values), folder, place
    )
    warnings = [
        *(f"{path}: column {name!r} is left out: {why}" for name, why in roles.left_out.items()),
        *warnings,
    ]
    if roles.label:
        written.labels.check_constant(starts, lambda row: f"{path}, {place(row)}", roles.label)
    numbers = range(len(roles.numbers))
    missing = fill_missing(values, starts, reading.missing, names, numbers, place)
    np.save(folder / "starts.npy", np.asarray(starts, np.int64))
    about = {
        "names": names,
        "first": first,
        "time": roles.time,
        "time_format": roles.time_format,
        "groups": written.groups.at(starts) if roles.group else [],
        "classes": list(written.classes),
        "notes": [*notes, *found, *missing],
        "warnings": warnings,
    }
    (folder / "about.json").write_text(json.dumps(about))


def _recordings(
    path: Path,
    roles: Roles,
    reading: Reading,
    groups: Runs,
    rows: int,
    folder: Path,
    place: Callable[[int], str],
) -> tuple[list[int], list[str], list[str]]:
    """Return the first row of each recording, notes and warnings."""
    times, notes, warnings = None, [], []
    name = ", ".join(map(repr, roles.group))
    starts, split = groups.starts or [0], reading.gaps == "split"
    if roles.time:
        times = np.load(folder / "times.npy", mmap_mode="r")
        times = times.view("M8[us]") if times.dtype.kind == "i" else times
    if roles.group:
        notes += check_groups(groups, rows, times, name, lambda row: f"{path}, {place(row)}")
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


def _side(column: "pl.Series") -> np.ndarray:
    """Return times as microseconds since 1970 (the smallest int64 if missing), or numbers."""
    if column.dtype.is_temporal():
        return column.to_numpy().astype("M8[us]").view(np.int64)
    return column.to_numpy().astype(np.int64 if column.dtype.is_integer() else np.float64)


def _head(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
