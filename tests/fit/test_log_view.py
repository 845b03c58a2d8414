"""Tests of the progress display."""

import io
import os
import pty
import re
import select

import pytest
from rich.console import Console

from tbptt.fit.log import RunLog
from tbptt.fit.progress import (
    LiveView,
    Pace,
    PlainView,
    Status,
    describe,
    duration,
    make_view,
    print_line,
)
from tests.support.logged_updates import one, said, silent

FULL = Status(1200, 5000, 0.24, 0.12345, 0.5, 0.123, 8201.0, "steps", 4000.0, "valid mse 0.2")
FULL_LINES = (
    "update 1,200/5,000  8,201 steps/s  1 h 6 min left",
    "loss 0.1235  valid mse 0.2",
    "|g| 0.5  clipped 12 %",
)


def test_a_pipe_and_a_dumb_terminal_get_lines_a_terminal_a_bar():
    assert isinstance(make_view(silent(), 1.0), PlainView)
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        dumb = Console(file=terminal, _environ={"TERM": "dumb"})
        assert isinstance(make_view(dumb, 1.0), PlainView)
        for environment, colours in (
            ({"TERM": "xterm"}, True),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ):
            console = Console(file=terminal, width=80, _environ=environment)
            view = make_view(console, 1.0)
            assert isinstance(view, LiveView)
            view.note("compiling the train step")
            view.end(FULL)
            terminal.flush()
            seen, last = "", "clipped 12 %"
            while last not in seen and select.select([master], [], [], 20.0)[0]:
                seen += os.read(master, 1 << 16).decode()
            lines = [
                line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen).split("\r\n")
            ]
            first, *others = FULL_LINES
            assert any("compiling the train step" in line for line in lines)
            assert any(line.endswith(first) for line in lines), "the pace beside the bar"
            assert all(any(line.strip() == other for line in lines) for other in others)
            assert ("\x1b[3" in seen) == colours
    os.close(master)


def test_a_terminal_breaks_lines_between_words_unless_they_are_whole():
    text = "standardised errors of the validation part"
    for terminal, whole, lines in ((True, False, 2), (True, True, 1), (False, False, 1)):
        console = Console(file=io.StringIO(), width=40, force_terminal=terminal)
        print_line(console, text, whole=whole)
        assert said(console).count("\n") == lines and " ".join(said(console).split()) == text


def test_the_view_names_the_best_validation():
    with RunLog(console=silent()) as log:
        log.update(one(0))
        for value in (0.5, 0.2, 0.3):
            log.valid(value, mse=value, other=9.0)
            shown = log._status().valid
            assert shown == ("valid mse 0.3 (best 0.2)" if value == 0.3 else f"valid mse {value}")


def test_plain_lines_have_a_minimal_interval(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = silent()
    view = PlainView(console, 10.0)
    for step in range(1, 121):  # 30 seconds
        now[0] += 0.25
        view.show(Status(step))
    view.end(Status(120))
    assert [int(line.split()[1]) for line in said(console).splitlines()] == [4, 44, 84, 120]
    assert "\x1b" not in said(console)


def test_the_remaining_time_is_that_of_the_first_limit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    both, free = Pace(1000, 40.0), Pace(None, None)
    assert both.rate() is None and both.left(0, 0.0) == 40.0
    for second in range(1, 6):
        now[0] = float(second)
        both.mark(100 + 10 * second)
        free.mark(second)
    assert (
        both.rate() == pytest.approx(10)
        and both.left(150, 5.0) == 35.0
        and both.left(900, 5.0) == pytest.approx(10)
    )
    assert both.fraction(150, 5.0) == 0.15 and both.fraction(150, 30.0) == 0.75
    assert (
        free.rate() == pytest.approx(1)
        and free.left(5, 5.0) is None
        and free.fraction(5, 5.0) is None
    )
    assert describe(FULL) == "  ".join(FULL_LINES)
    assert [duration(s) for s in (0.4, 59.6, 61, 7200, 90000)] == [
        "0 s",
        "1 min",
        "1 min 1 s",
        "2 h",
        "1 d 1 h",
    ]
