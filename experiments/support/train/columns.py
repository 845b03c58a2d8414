"""Choose the input columns of a run from an open table."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.support.common.console import say
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
    for flag in ("group", "time"):
        if getattr(config, flag) == config.target:
            raise ValueError(
                f"--{flag} and --target must be different columns; got {config.target!r} for both"
            )
    if set(config.columns) & {*group, *([config.target] if whole else [])}:
        raise ValueError(
            "--columns must not contain --group, the column of --hold-out or the class, which are "
            f"not inputs; got {', '.join(config.columns)}"
        )
    use: dict[str, Any] = {"label" if whole else "target": config.target}
    # In float64: float32 would round away a small change of a large number.
    source = open_table(
        files, flags, config.columns or None, without=config.without, dtype=np.float64, **use
    )
    if whole and len(source.classes) < 2:
        raise ValueError(
            f"--target {config.target} must hold at least two classes; all rows of "
            f"{', '.join(map(str, files))} have {', '.join(map(str, source.classes)) or 'none'}. "
            "Give files with other classes, or name another column by --target"
        )
    unused = (*config.without, *([config.target] if whole else []))
    chosen = tuple(name for name in config.columns or source.names if name not in unused)
    if not chosen:
        raise ValueError(
            f"{path} has no numeric input column besides --group and --target; its columns are "
            f"{', '.join(source.names)}. Use a table with other columns of numbers"
            + (", or fewer columns in --without" if config.without else "")
        )
    return source, chosen


def open_table(
    paths: Sequence[Path], flags: TableFlags, columns: Sequence[str] | None = None, **more: Any
) -> Any:
    """Open tables by `open_source`, and print its notes and warnings."""
    with printed_table_warnings():
        source = open_source(paths, columns, **flags._asdict(), **more)
    for note in source.notes:
        say(note)
    return source


@contextlib.contextmanager
def printed_table_warnings() -> Iterator[None]:
    """Print the table warnings of a `with` block on stderr; warn of all others as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TableWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, TableWarning):
            say(f"Warning: {warning.message}")
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
