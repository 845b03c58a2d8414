"""What a person sees while a program works: on stderr, so that stdout is left to the summary."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# A pipe has no width of its own; rich would assume 80 columns and break the tables.
console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@contextmanager
def progress() -> Iterator[Progress]:
    """Opens a progress display: a bar, the loss, the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        yield display


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; numbers stand right."""
    view = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        view.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        view.add_row(*row)
    console.print(view)


def human_bytes(size: int) -> str:
    """Writes bytes in the unit that fits: 1536 -> '1.5 KiB'."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
