"""Missing values are refused, masked, held or interpolated, within a recording, and counted."""

import inspect

import numpy as np
import polars as pl
import pytest

from tbptt.data import BadSample, RecordingStream, forecast_batches, load_series, open_source
from tbptt.data.tables import bad_samples, convert

RNG = np.random.default_rng(1)
T, LENGTHS = 400, (150, 1, 130, 119)
FRAME = pl.DataFrame(
    {
        "who": np.repeat([3, 1, 4, 2], LENGTHS),
        "a": RNG.normal(size=T),
        "b": np.cumsum(RNG.normal(size=T)),
    }
).with_columns(
    pl.when(pl.Series(RNG.random(T) < 0.3)).then(None).otherwise(pl.col("a")).alias("a"),
    # a hole of many blocks, to the end of a recording and into the next one
    pl.when(pl.Series((np.arange(T) >= 20) & (np.arange(T) < 140))).then(None)
    .otherwise(pl.col("b")).alias("b"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(convert, "BLOCK", 32)
    monkeypatch.setattr(bad_samples, "BLOCK", 32)


@pytest.mark.parametrize("kind", ["x.csv", "x.parquet", "x.npy"])
@pytest.mark.parametrize("how", ["hold", "interpolate"])
def test_filled_values_are_those_of_polars_over_the_groups(how, kind, tmp_path):
    path = tmp_path / kind
    if kind == "x.csv":
        FRAME.write_csv(path)
    elif kind == "x.parquet":
        FRAME.write_parquet(path)
    else:
        np.save(path, FRAME.to_numpy())
    who, a, b = ("0", "1", "2") if kind == "x.npy" else ("who", "a", "b")
    numbers = pl.col("a", "b")
    filled = numbers.forward_fill() if how == "hold" else numbers.interpolate()
    wanted = FRAME.select(filled.over("who")).fill_null(np.nan).to_numpy()
    good = np.isfinite(wanted).all(axis=1)
    assert 0 < (~good).sum() < 20  # the first or last rows of recordings
    source = open_source(path, (a, b), group=who, missing=how, dtype=np.float64)
    assert source.lengths == LENGTHS and source.groups[0] in ("3", "3.0")
    np.testing.assert_array_equal(source.good(0, T), good)
    np.testing.assert_allclose(source.read(0, T), np.where(good[:, None], wanted, 0), rtol=1e-13)
    missing = FRAME.null_count().row(0)[1:]
    verb = "held from the row before" if how == "hold" else "interpolated"
    left = int(np.isnan(wanted).sum())
    assert (
        f"{sum(missing)} values are missing ({a}: {missing[0]}, {b}: {missing[1]})"
        in source.notes[-1]
    )
    assert (
        f"{sum(missing) - left} of them are {verb}, and {(~good).sum()} rows without such values "
        "are masked"
    ) in source.notes[-1]


def test_a_missing_value_is_refused_with_flags_that_exist(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,\n5,NA\n7,8\n")
    source = open_source(path)
    assert source.notes == (f"{path}: 2 values are missing (b: 2), in 2 rows, first row 3 (the "
                            "header is row 1)",)  # fmt: skip
    with pytest.raises(
        BadSample,
        match=r"x.csv, row 3 \(the header is row 1\), column 'b' is missing or NaN. Correct the "
        r'file, exclude the column \(`columns`\), or open it with missing="mask", "hold" or '
        r'"interpolate" \(--missing',
    ):
        source.read(0, 4)
    assert open_source(path, ("a",)).read(0, 4).tolist() == [[1], [3], [5], [7]]
    masked = open_source(path, missing="mask")
    assert masked.notes == (source.notes[0] + "; these rows are masked",)
    assert masked.good(0, 4).tolist() == [True, False, False, True]
    assert open_source(path, missing="hold").read(0, 4).tolist() == [[1, 2], [3, 2], [5, 2], [7, 8]]
    line = open_source(path, missing="interpolate", dtype=np.float64).read(0, 4)
    assert line.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    np.testing.assert_array_equal(load_series(path, missing="interpolate").values, line)
    with pytest.raises(ValueError, match="missing must be one of refuse, mask, hold, interpolate"):
        # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
        inspect.unwrap(open_source)(path, missing="drop")


def test_a_stream_of_masked_rows_counts_neither_them_nor_forecasts_of_them(tmp_path):
    FRAME.write_csv(tmp_path / "x.csv")
    source = open_source(tmp_path / "x.csv", ("a", "b"), group="who", missing="mask")
    stream = RecordingStream(source, 1, T, forecast_batches("a", (1,)))
    batch = stream.chunk(0).batch
    good = FRAME.select(pl.all_horizontal(pl.col("a", "b").is_not_null())).to_series().to_numpy()
    ends = np.cumsum(LENGTHS)
    wanted = np.append(good[1:], False) & ~np.isin(np.arange(T) + 1, ends)
    np.testing.assert_array_equal(batch.mask[:, 0], good)
    np.testing.assert_array_equal(batch.weights[:, 0] > 0, wanted)
    assert "values are missing" in source.notes[-1]


@pytest.mark.parametrize("how", ["hold", "interpolate"])
def test_a_filled_file_is_read_in_memory_only_if_no_value_is_left_out(how, tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n,2\n3,4\n")
    with pytest.raises(BadSample, match="row 2 .*column 'a' is missing"):
        load_series(tmp_path / "x.csv", missing=how)
    np.save(tmp_path / "x.npy", [1.0, np.nan])
    with pytest.raises(ValueError, match="for .csv and .parquet files.*use open_source"):
        load_series(tmp_path / "x.npy", missing=how)
    assert open_source(tmp_path / "x.npy", missing="hold").read(0, 2).tolist() == [[1], [1]]
