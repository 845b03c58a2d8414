"""A column of times is kept exactly, checked, and cuts recordings at its gaps."""

import datetime
import inspect

import numpy as np
import polars as pl
import pytest

from tbptt.data import TableWarning, open_source, part
from tbptt.data.tables import convert, recordings
from tbptt.data.tables.recordings import time_span

HOUR = np.timedelta64(1, "h")
START = np.datetime64("2024-03-01T00:00", "us")
TIMES = START + np.arange(300) * HOUR


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "BLOCK", 64)
    monkeypatch.setattr(recordings, "BLOCK", 50)


def write(path, times, format="%Y-%m-%d %H:%M", **more):
    """Write a column of dates, and one of numbers that count the rows."""
    frame = pl.DataFrame({"when": times, "x": np.arange(len(times)), **more})
    frame.write_csv(path, datetime_format=format)
    return path


@pytest.mark.parametrize(
    "format",
    [
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M:%S",
        "%Y-%m-%dT%H:%M:%S%.6fZ",
        "%Y/%m/%d %H:%M:%S",
        "%d.%m.%Y %H:%M",
        "%d/%m/%Y %H:%M",
        "%m/%d/%Y %H:%M",
        "%m/%d/%Y %I:%M %p",
    ],
)
def test_dates_are_kept_to_the_microsecond(format, tmp_path):
    path = write(tmp_path / "x.csv", pl.Series(TIMES), format)
    source = open_source(path)
    assert (source.names, source.time) == (("x",), "when")
    np.testing.assert_array_equal(source.times(0, 300), TIMES)
    np.testing.assert_array_equal(part(source, 100, 200).times(3, 5), TIMES[103:105])
    noted = [f"{path}: the dates of column 'when' are read as {format}"]
    assert list(source.notes[:-1]) == (noted if "%Y" not in format[:2] else [])
    assert source.notes[-1].endswith(
        "the time is column 'when', 2024-03-01 to 2024-03-13 11:00:00, usual step 1 hour"
    )


def test_the_unnamed_index_of_a_frame_of_dates_is_its_time(tmp_path):
    path = write(tmp_path / "x.csv", TIMES)
    path.write_text(path.read_text().replace("when", "", 1))
    source = open_source(path)
    assert (source.names, source.time) == (("x",), "index")
    np.testing.assert_array_equal(source.times(7, 9), TIMES[7:9])


def test_dates_written_in_two_ways_are_no_time(tmp_path):
    path = write(tmp_path / "x.csv", TIMES)
    path.write_text(path.read_text().replace("2024-03-02 03:00,", "2.3.24 3h,"))
    with pytest.warns(
        TableWarning,
        match=r"'when' is left out: dates, but for 1 of 300 cells \(row 29: '2.3.24 3h'\)",
    ):
        assert open_source(path).time is None
    with pytest.raises(
        ValueError,
        match="row 29 .*'when' is neither a number nor a date: '2.3.24 3h'. Write dates as 2024-",
    ):
        open_source(path, time="when")
    path.write_text(path.read_text().replace("2.3.24 3h,", "2024-03-02 03:00,"))
    np.testing.assert_array_equal(open_source(path, time="when").times(0, 300), TIMES)


def test_a_time_of_numbers_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("t,x\n0.5,1\n0.75,2\n1.0,3\n")
    assert open_source(tmp_path / "x.csv").names == ("t", "x")
    source = open_source(tmp_path / "x.csv", time="t")
    assert source.names == ("x",) and source.times(0, 3).tolist() == [0.5, 0.75, 1.0]
    np.save(tmp_path / "x.npy", [[0.5, 1], [0.75, 2]])
    assert open_source(tmp_path / "x.npy", time="0").times(0, 2).tolist() == [0.5, 0.75]
    (tmp_path / "y.csv").write_text("t,x\nsoon,1\nlater,2\n")
    with pytest.raises(
        ValueError, match="y.csv, row 2 .*column 't' is neither a number nor a date: 'soon'. Write"
    ):
        open_source(tmp_path / "y.csv", time="t")


def test_dates_that_fall_are_refused_or_sorted(tmp_path):
    path = write(tmp_path / "x.csv", TIMES[::-1])
    with pytest.raises(
        ValueError,
        match=r"x.csv, row 3 \(the header is row 1\), column 'when' falls from 2024-03-13 11:00:00 "
        r"to 2024-03-13 10:00:00; 299 of 300 times do. "
        r"Sort the file by time, or pass sort=True \(--sort\)",
    ):
        open_source(path)
    source = open_source(path, sort=True)
    np.testing.assert_array_equal(source.times(0, 300), TIMES)
    np.testing.assert_array_equal(source.read(0, 300)[:, 0], np.arange(300)[::-1])
    assert source.path_of(0) == f"{path}, row 301 (the header is row 1)"  # where the file has it
    write(tmp_path / "late.csv", np.r_[TIMES[:250], TIMES[240:250]])
    with pytest.raises(ValueError, match="row 252 .*falls from .*03-11 09:00:00 to .*03-11"):
        open_source(tmp_path / "late.csv")


def test_equal_missing_and_irregular_times_are_warnings_with_their_place(tmp_path):
    times = list(TIMES[:100].astype(datetime.datetime))
    times[60] = times[59]
    times[70:] = [time + datetime.timedelta(days=2) for time in times[70:]]
    times[20] += datetime.timedelta(minutes=50)
    times[80] = None
    path = write(tmp_path / "x.csv", times)
    with pytest.warns(TableWarning) as caught:
        source = open_source(path)
    assert source.lengths == (100,) and np.isnat(source.times(80, 81)[0])
    for message, wanted in zip(
        [str(warning.message) for warning in caught],
        [
            r"x.csv, row 62 (the header is row 1): column 'when': 1 of 100 times is equal to",
            r"x.csv, row 82 (the header is row 1): column 'when': 1 of 100 times is missing",
            r"x.csv, row 23 (the header is row 1): column 'when': 1 of 100 times is less than half",
            r"x.csv, row 22 (the header is row 1): column 'when': 3 steps are longer than 1.5 "
            r"times the usual one, 1 hour; this row follows the first. The longest, 2 days "
            r"1 hour, ends at row 72 (the header is row 1).",
        ],
        strict=True,
    ):
        assert wanted in message


def test_gaps_start_new_recordings(tmp_path):
    times = np.r_[TIMES[:70], TIMES[100:180], TIMES[182:300]]
    path = write(tmp_path / "x.csv", times)
    with pytest.warns(TableWarning, match=r'2 steps .*gaps="split" \(--gaps split\)'):
        assert open_source(path).lengths == (268,)
    source = open_source(path, gaps="split")
    assert source.lengths == (70, 80, 118)
    np.testing.assert_array_equal(source.times(69, 72), times[69:72])
    assert "2 gaps of more than 1.5 steps start new recordings" in source.notes[-1]
    (tmp_path / "y.csv").write_text("x\n1\n2\n")
    with pytest.raises(ValueError, match="y.csv has no column of times, so gaps='split'"):
        open_source(tmp_path / "y.csv", gaps="split")
    with pytest.raises(ValueError, match="gaps one of keep, split; got missing='refuse', gaps='x'"):
        # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
        inspect.unwrap(open_source)(path, gaps="x")


def test_a_time_span_is_written_in_words():
    spans = {
        86400: "1 day",
        3 * 3600: "3 hours",
        900: "15 minutes",
        30 * 3600: "1 day 6 hours",
        604800: "7 days",
        90061.5: "1 day 1 hour 1 minute 1.5 seconds",
        0.25: "0.25 seconds",
        1e-6: "1e-06 seconds",
        1: "1 second",
        0: "0 seconds",
    }
    assert {seconds: time_span(seconds) for seconds in spans} == spans
