"""Groups and labels of any length or text stay distinct; rows of mixed groups are never trained."""

import numpy as np
import polars as pl
import pytest

from tbptt.data import (
    BadSample,
    RecordingStream,
    label_batches,
    open_source,
    pick,
    whole_recordings,
)
from tbptt.data.tables import convert

N, T = 3, 50
VALUES = np.arange(N * T, dtype=float)
DAYS = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 2, 19), eager=True)
PANEL = pl.DataFrame(
    {
        "day": pl.concat([DAYS] * N),
        "who": np.repeat(["10", "b", "9"], T),
        "x": VALUES,
    }
)


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "BLOCK", 32)


@pytest.mark.parametrize("kind", ["x.csv", "x.parquet", "x.npy"])
def test_ids_beyond_the_integers_of_float32_stay_distinct(kind, tmp_path):
    ids = np.repeat([2**24, 2**24 + 1, 2**24 + 2], [20, 20, 20])
    labels = np.repeat([1000001, 1000002, 1000001], [20, 20, 20])
    frame = pl.DataFrame({"id": ids, "x": np.arange(60), "kind": labels})
    if kind == "x.csv":
        frame.write_csv(tmp_path / kind)
    elif kind == "x.parquet":
        frame.write_parquet(tmp_path / kind)
    else:
        np.save(tmp_path / kind, frame.to_numpy())
    who, x, label = ("0", "1", "2") if kind == "x.npy" else ("id", "x", "kind")
    source = open_source(tmp_path / kind, (x,), group=who, label=label)
    assert source.lengths == (20, 20, 20)
    assert source.groups == ("16777216", "16777217", "16777218")
    assert source.classes == (1000001, 1000002) and source.names == (x, label)
    np.testing.assert_array_equal(source.read(0, 60)[:, 1], labels == 1000002)


def test_ids_beyond_the_integers_of_float64_stay_distinct(tmp_path):
    ids = np.repeat([2**60, 2**60 + 1], 5)
    pl.DataFrame({"id": ids, "x": np.arange(10)}).write_csv(tmp_path / "x.csv")
    source = open_source(tmp_path / "x.csv", group="id")
    assert source.lengths == (5, 5) and source.groups == (str(2**60), str(2**60 + 1))


@pytest.mark.parametrize("dated", [True, False])
def test_rows_of_mixed_groups_are_refused_or_sorted(dated, tmp_path):
    """A panel sorted by date has rows of one group between those of others."""
    path = tmp_path / "x.csv"
    rows = PANEL.sort("day", maintain_order=True).drop([] if dated else ["day"])
    rows.write_csv(path)
    with pytest.raises(
        ValueError,
        match=r"x.csv, row 5 \(the header is row 1\), column 'who': group '10' comes back after "
        r"other groups; 3 groups are in 150 stretches. The rows of the groups are mixed: sort the "
        r"file by group, then time, or pass sort=True \(--sort\)",
    ):
        open_source(path, group="who")
    source = open_source(path, group="who", sort=True)
    assert source.lengths == (T, T, T) and source.groups == ("10", "9", "b")
    wanted = np.concatenate([VALUES[:T], VALUES[2 * T :], VALUES[T : 2 * T]])
    np.testing.assert_array_equal(source.read(0, N * T)[:, 0], wanted)
    if dated:
        np.testing.assert_array_equal(source.times(0, T), DAYS.cast(pl.Datetime("us")).to_numpy())
    PANEL.write_csv(tmp_path / "sorted.csv")
    assert open_source(tmp_path / "sorted.csv", group="who").groups == ("10", "b", "9")


def test_a_panel_in_blocks_of_weeks_is_mixed_too_if_its_dates_tell(tmp_path):
    weeks = PANEL.with_columns(week=pl.col("day").dt.week())
    weeks.sort("week", "who", "day").drop("week").write_csv(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="The rows of the groups are mixed"):
        open_source(tmp_path / "x.csv", group="who")
    assert open_source(tmp_path / "x.csv", group="who", sort=True).lengths == (T, T, T)


def test_a_group_that_returns_later_is_another_recording_and_noted(tmp_path):
    """What a person does, one activity after the other."""
    frame = pl.DataFrame({"day": DAYS, "does": np.repeat(["walk", "sit", "walk"], [20, 20, 10])})
    frame.with_columns(x=pl.int_range(50)).write_csv(tmp_path / "x.csv")
    source = open_source(tmp_path / "x.csv", group="does")
    assert source.lengths == (20, 20, 10) and source.groups == ("walk", "sit", "walk")
    assert any("row 42" in note and "Each stretch is a recording" in note for note in source.notes)


def test_recordings_of_one_row_and_missing_groups_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id,x\n1,1\n2,2\n3,3\n")
    with pytest.raises(ValueError, match=r"x.csv, row 3 .*3 recordings in 3 rows, most of them of"):
        open_source(path, group="id")
    assert open_source(path, ("x",)).lengths == (3,)  # without the group
    path.write_text("id,x\n1,1\n1,2\n,3\n2,4\n2,5\n")
    with pytest.raises(ValueError, match="x.csv, row 4 .*column 'id' is missing.*Fill it in"):
        open_source(path, group="id")
    path.write_text("id,x\n1,1\n1,2\n1,3\n2,4\n2,5\n")
    assert open_source(path, group="id").lengths == (3, 2)
    with pytest.raises(ValueError, match="x.csv has neither groups nor a time to sort by; name"):
        open_source(path, sort=True)


def test_labels_of_text_are_numbered_across_files(tmp_path):
    for name, kinds in (("a.csv", ("walk", "sit")), ("b.csv", ("sit", "run"))):
        frame = pl.DataFrame(
            {"who": np.repeat([1, 2], 10), "x": np.arange(20), "does": np.repeat(kinds, 10)}
        )
        frame.write_csv(tmp_path / name)
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    source = open_source(paths, group="who", label="does")
    assert source.names == ("x", "does") and source.classes == ("run", "sit", "walk")
    np.testing.assert_array_equal(source.read(0, 40)[:, 1], np.repeat([2, 1, 1, 0], 10))
    batches = label_batches("does", range(3))
    chunk = RecordingStream(source, 1, 40, batches, layout=whole_recordings).chunk(0).batch
    assert chunk.targets[chunk.weights > 0].tolist() == [2, 1, 1, 0]
    known = ("walk", "sit")
    assert open_source(paths[0], group="who", label="does", classes=known).classes == known
    with pytest.raises(
        BadSample, match=r"b.csv, row 12 .*column 'does' is run, which is not a class .*walk, sit"
    ):
        open_source(paths[1], group="who", label="does", classes=known)
    with pytest.raises(
        ValueError, match=r"a.csv, row 12 .*column 'does' is 'sit', but 'walk' in the row before"
    ):
        open_source(paths[0], label="does")
    with pytest.raises(ValueError, match="label must not be one of columns.*got 'does' in both"):
        open_source(paths[0], ("x", "does"), label="does")


@pytest.mark.parametrize("kind", ["x.csv", "x.npy"])
def test_several_columns_are_one_group(kind, tmp_path):
    """Trials are numbered anew for each person: a change of either starts a recording."""
    frame = pl.DataFrame(
        {
            "who": [2, 2, 2, 2, 10, 10, 10, 10],
            "trial": [0, 0, 1, 1, 1, 1, 0, 0],
            "x": range(8),
            "y": range(8, 16),
        }
    )
    frame.write_csv(tmp_path / kind) if kind == "x.csv" else np.save(
        tmp_path / kind, frame.to_numpy()
    )
    names = frame.columns if kind == "x.csv" else ["0", "1", "2", "3"]
    source = open_source(tmp_path / kind, names[2:], group=names[:2])
    assert source.lengths == (2, 2, 2, 2)
    assert source.groups == (("2", "0"), ("2", "1"), ("10", "1"), ("10", "0"))
    mixed = frame.sort("x", descending=True).with_columns(pl.col("x").alias("x"))
    mixed = mixed[[0, 2, 4, 6, 1, 3, 5, 7]]
    mixed.write_csv(tmp_path / kind) if kind == "x.csv" else np.save(
        tmp_path / kind, mixed.to_numpy()
    )
    message = "column '(who|0)', '(trial|1)': group '10, 0' comes back after other groups.*--sort"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / kind, names[2:], group=names[:2])
    source = open_source(tmp_path / kind, names[2:], group=names[:2], time=names[2], sort=True)
    assert source.groups == (("2", "0"), ("2", "1"), ("10", "0"), ("10", "1"))
    assert source.times(0, 8).tolist() == [0, 1, 2, 3, 6, 7, 4, 5]


def test_recordings_can_be_picked_in_another_order(tmp_path):
    values = PANEL.with_columns(
        pl.when(pl.col("x") == 70).then(None).otherwise(pl.col("x")).alias("x")
    )
    values.write_csv(tmp_path / "x.csv")
    source = open_source(tmp_path / "x.csv", group="who", missing="mask")
    picked = pick(source, [2, 0, 1])
    assert picked.lengths == (T, T, T) and picked.groups == ("9", "10", "b")
    order = np.concatenate([np.arange(100, 150), np.arange(100)])
    np.testing.assert_array_equal(picked.rows_of(np.arange(150)), order)
    for read in ("read", "read_unchecked", "good", "times"):
        whole = getattr(source, read)(0, 150)[order]
        for start, stop in [(0, 150), (49, 51), (7, 7), (149, 150), (20, 120)]:
            found = getattr(picked, read)(start, stop)
            np.testing.assert_array_equal(found, whole[start:stop])
    assert picked.path_of(0) == source.path_of(100) and picked.path_of(149) == source.path_of(99)
    assert pick(source, [1]).lengths == (T,) and picked.time == "day"
    apart = np.concatenate([np.arange(50), np.arange(100, 150)])
    np.testing.assert_array_equal(pick(source, [0, 2]).read(0, 100), source.read(0, 150)[apart])
    with pytest.raises(IndexError, match="not among the 150 rows"):
        picked.read(149, 151)
    for wrong in ([], [0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="numbers from 0 to 2, at least one and none twice"):
            pick(source, wrong)
