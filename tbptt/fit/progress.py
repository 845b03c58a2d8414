"""Display the progress of a run: a live bar on a terminal, else plain lines."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console
else:
    Console = Any  # rich is imported when a display is made


class Status(NamedTuple):
    """Progress of a run; None is unknown and is not displayed.

    done, total: number of updates so far, and in total
    fraction:    completed fraction of the run, 0 .. 1
    loss, grad_norm: means over the last updates
    clipped:     fraction of the last updates whose gradient was clipped
    rate, unit:  steps (or updates) per second
    left:        remaining seconds
    valid:       the last validation result, as text
    what:        what done and total count: "update", "row"
    """

    done: int
    total: int | None = None
    fraction: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    clipped: float | None = None
    rate: float | None = None
    unit: str = "steps"
    left: float | None = None
    valid: str | None = None
    what: str = "update"


class Pace:
    """Speed and remaining time of a run, which is limited by updates or seconds or both."""

    def __init__(self, total: int | None, seconds: float | None) -> None:
        self._total, self._budget = total, seconds
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)

    def mark(self, updates: int) -> None:
        """Record that `updates` updates are complete now."""
        self._marks.append((time.monotonic(), updates))

    def newest(self) -> float:
        """Return the time of the newest mark, 0 before the first."""
        return self._marks[-1][0] if self._marks else 0.0

    def rate(self) -> float | None:
        """Return updates per second between the first and the last of the recent marks."""
        if len(self._marks) < 2:
            return None
        (then, first), (now, last) = self._marks[0], self._marks[-1]
        return (last - first) / max(now - then, 1e-9)

    def fraction(self, updates: int, seconds: float) -> float | None:
        """Return the completed fraction of the run, 0 .. 1; None if it has no limit."""
        return completed_fraction(updates, seconds, self._total, self._budget)

    def left(self, updates: int, seconds: float) -> float | None:
        """Return the remaining seconds; None if unknown."""
        rate = self.rate()
        ends = [(self._total - updates) / rate] if self._total and rate else []
        ends += [self._budget - seconds] if self._budget else []
        return max(min(ends), 0.0) if ends else None


def completed_fraction(
    updates: int, seconds: float, max_updates: int | None, max_seconds: float | None
) -> float | None:
    """Return the completed fraction of a run, 0 .. 1, by its nearest limit; None without one."""
    fractions = [updates / max_updates] if max_updates else []
    fractions += [seconds / max_seconds] if max_seconds else []
    return min(max(fractions), 1.0) if fractions else None


@runtime_checkable
class View(Protocol):
    """Display of a Status; `end` shows the last one and closes the display."""

    def note(self, text: str) -> None: ...

    def show(self, status: Status) -> None: ...

    def end(self, status: Status) -> None: ...


def make_view(console: Console | None, every: float) -> View:
    """Make a live bar for a terminal that can move its cursor, otherwise plain lines.

    Without a console nothing is displayed.
    """
    if console is None:
        return NoView()
    live = console.file.isatty() and not console.is_dumb_terminal
    return LiveView(console) if live else PlainView(console, every)


def print_line(console: Console, text: str, style: str = "", whole: bool = False) -> None:
    """Print a line; on a terminal it is broken between words, unless it is to be copied `whole`."""
    whole = whole or not console.is_terminal
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=whole)


class NoView:
    """No display."""

    def note(self, text: str) -> None:
        pass

    def show(self, status: Status) -> None:
        pass

    def end(self, status: Status) -> None:
        pass


class LiveView:
    """A bar with two lines below it, redrawn in place; they fit into 80 columns."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        wraps = Column(no_wrap=False)
        text = TextColumn("{task.description}", markup=False, table_column=wraps)
        columns = (BarColumn(bar_width=16), text)
        # stdout is reserved for the summary and must not be redirected to stderr.
        self._progress = Progress(
            *columns, console=console, redirect_stdout=False, refresh_per_second=4
        )
        self._task = self._progress.add_task("starting", total=None)
        self._progress.start()

    def note(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        self._progress.refresh()

    def show(self, status: Status) -> None:
        total = None if status.fraction is None else 1.0
        self._progress.update(
            self._task,
            total=total,
            completed=status.fraction or 0.0,
            description="\n".join("  ".join(parts) for parts in _described(status) if parts),
        )

    def end(self, status: Status) -> None:
        if status.done:
            self.show(status)
        self._progress.stop()


class PlainView:
    """A plain line every `every` seconds, and a last one."""

    def __init__(self, console: Console, every: float) -> None:
        self._console, self._every = console, every
        # The first line soon, to show that the run has started.
        self._next = time.monotonic() + min(1.0, every)
        self._shown: Status | None = None

    def note(self, text: str) -> None:
        print_line(self._console, text)

    def show(self, status: Status) -> None:
        if time.monotonic() >= self._next:
            self._print(status)

    def end(self, status: Status) -> None:
        if status.done and status != self._shown:
            self._print(status)

    def _print(self, status: Status) -> None:
        print_line(self._console, describe(status))
        self._next, self._shown = time.monotonic() + self._every, status


def describe(status: Status) -> str:
    """Format a status: 'update 120/500  820 steps/s  1 min 20 s left  loss 0.1234  |g| 0.56'."""
    return "  ".join(part for parts in _described(status) for part in parts)


def _described(status: Status) -> tuple[list[str], list[str], list[str]]:
    """Return the parts about the time, about the losses and about the gradient."""
    total = "" if status.total is None else f"/{status.total:,}"
    pace = [f"{status.what} {status.done:,}{total}"]
    pace += [] if status.rate is None else [f"{_count(status.rate)} {status.unit}/s"]
    pace += [] if status.left is None else [f"{duration(status.left)} left"]
    losses = [] if status.loss is None else [f"loss {status.loss:.4g}"]
    losses += [] if status.valid is None else [status.valid]
    gradient = [] if status.grad_norm is None else [f"|g| {status.grad_norm:.2g}"]
    gradient += [] if status.clipped is None else [f"clipped {100 * status.clipped:.0f} %"]
    return pace, losses, gradient


def duration(seconds: int | float) -> str:
    """Format seconds with the two largest units: 4000 -> '1 h 7 min'."""
    total = round(seconds)
    for size, unit, lower in ((86400, "d", 3600), (3600, "h", 60), (60, "min", 1)):
        if total >= size:
            rest = total % size // lower
            return (
                f"{total // size} {unit} {rest} { {3600: 'h', 60: 'min', 1: 's'}[lower] }"
                if rest
                else f"{total // size} {unit}"
            )
    return f"{total} s"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
