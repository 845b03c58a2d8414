"""Print progress, tables and messages on stderr; stdout is reserved for the summary."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tbptt.fit.progress import print_line

# rich assumes 80 columns for a pipe, which would wrap the tables.
console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def say(text: str, style: str = "", whole: bool = False) -> None:
    """Print a line on stderr, as `print_line`."""
    print_line(console, text, style, whole)


@contextmanager
def progress() -> Iterator[Progress]:
    """Open a progress display with a bar, the loss and the remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        yield display


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; all columns but the first are right-aligned."""
    view = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        view.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        view.add_row(*row)
    console.print(view)


def human_bytes(size: int) -> str:
    """Format a number of bytes: 1536 -> '1.5 KiB'."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
