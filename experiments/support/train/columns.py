"""Choose the input columns of a run from an open table."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common.console import console
from experiments.support.train.split import hold_out
from experiments.support.train.table_flags import TableFlags
from tbptt.data import TableWarning, open_source


def open_columns(config: Any) -> tuple[Any, tuple[str, ...]]:
    """Open the files of a run; return the source and the input columns.

    The input columns are --columns, or all numeric columns without another use, except --without.
    The source has these columns, and after them the target if it is not an input.

    Raises:
        ValueError: a named column does not exist or cannot be an input, or there is no input.
          Errors of `open_source` are not caught.
    """
    files, path, whole = config.data + config.test_data, config.data[0], config.task == "classify"
    held = hold_out(config)[0]
    group = tuple(name for name in dict.fromkeys((held, config.group)) if name)
    flags = TableFlags.of(config)._replace(group=group or None)
    if config.target is None:
        names = open_table(config.data, TableFlags()).names
        raise ValueError(f"--target is required: the column to predict, one of {', '.join(names)}")
    if config.group == config.target:
        raise ValueError(
            f"--group and --target must be different columns; got {config.target!r} for both"
        )
    if set(config.columns) & {*group, *([config.target] if whole else [])}:
        raise ValueError(
            "--columns must not contain --group, the column of --hold-out or the class, which are "
            f"not inputs; got {', '.join(config.columns)}"
        )
    columns = tuple(config.columns) or None
    if config.without:
        columns = _others(config, flags, columns, config.target if whole else None)
    read = columns
    if columns is not None and not whole and config.target not in columns:
        read = (*columns, config.target)
    # In float64: float32 would round away a small change of a large number.
    source = open_table(
        files, flags, read, label=config.target if whole else None, dtype=np.float64
    )
    if whole and len(source.classes) < 2:
        raise ValueError(
            f"--target {config.target} must hold at least two classes; all rows of "
            f"{', '.join(map(str, files))} have {', '.join(map(str, source.classes)) or 'none'}. "
            "Give files with other classes, or name another column by --target"
        )
    chosen = columns
    if columns is None:
        chosen = tuple(name for name in source.names if not whole or name != config.target)
    if not whole and config.target not in source.names:
        open_table(files, flags, (config.target,))  # raises, with the reason that it is left out
    if not chosen:
        raise ValueError(
            f"{path} has no numeric input column besides --group and --target; its columns are "
            f"{', '.join(source.names)}. Use a table with other columns of numbers"
        )
    return source, chosen


def _others(
    config: Any, flags: TableFlags, columns: tuple[str, ...] | None, label: str | None
) -> tuple[str, ...]:
    """Return the input columns without those of --without."""
    names: Sequence[str] = columns or ()
    if columns is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TableWarning)  # shown when the table is opened again
            names = open_source(config.data, None, **flags._asdict(), label=label).names
    if unknown := [name for name in config.without if name not in names]:
        raise ValueError(
            f"--without must name input columns, {', '.join(names)}; got {unknown[0]!r}"
        )
    return tuple(name for name in names if name not in (*config.without, label))


def open_table(
    paths: Sequence[Path], flags: TableFlags, columns: Sequence[str] | None = None, **more: Any
) -> Any:
    """Open tables by `open_source`, and print its notes and warnings."""
    with printed_table_warnings():
        source = open_source(paths, columns, **flags._asdict(), **more)
    for note in source.notes:
        _print(note)
    return source


@contextlib.contextmanager
def printed_table_warnings() -> Iterator[None]:
    """Print the table warnings of a `with` block on stderr; warn of all others as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TableWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, TableWarning):
            _print(f"Warning: {warning.message}")
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _print(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
