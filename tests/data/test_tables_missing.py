"""Missing values are refused, masked, held or interpolated, within a recording, and counted."""

import inspect

import numpy as np
import polars as pl
import pytest

from tbptt.data import (
    BadSample,
    RecordingStream,
    forecast_batches,
    load_series,
    open_source,
    part,
    pick,
    standardised,
    stream_scaling,
)
from tbptt.data.tables import convert, scan

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
    monkeypatch.setattr(scan, "GROUP", 32)


def write(frame, path):
    if path.suffix == ".npy":
        np.save(path, frame.to_numpy())
    else:
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(path)


@pytest.mark.parametrize("kind", ["x.csv", "x.parquet", "x.npy"])
@pytest.mark.parametrize("how", ["hold", "interpolate"])
def test_filled_values_are_those_of_polars_over_the_groups(how, kind, tmp_path):
    path = tmp_path / kind
    write(FRAME, path)
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
        r"file, exclude the column \(without=\('b',\), --without b\) unless it is the target, or "
        r'open it with missing="mask", "hold" or "interpolate" \(--missing',
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


# a target that is measured in one row of ten, never in the first rows of a recording
SPARSE = FRAME.with_columns(pl.when(pl.int_range(T) % 10 == 7).then(pl.col("b")).alias("y"))


@pytest.mark.parametrize("kind", ["x.csv", "x.parquet", "x.npy"])
@pytest.mark.parametrize("chunk", [7, T])
def test_a_missing_target_is_held_as_an_input_and_masks_no_row(kind, chunk, tmp_path):
    path = tmp_path / kind
    write(SPARSE, path)
    who, a, y = ("0", "1", "3") if kind == "x.npy" else ("who", "a", "y")
    source = open_source(path, (a, y), group=who, missing="mask", target=y, dtype=np.float64)
    good, known = (SPARSE[name].is_not_null().to_numpy() for name in ("a", "y"))
    held = SPARSE.select(pl.col("y").forward_fill().over("who"))["y"].to_numpy()
    assert 0 < np.isnan(held[good]).sum() < 20 and 0 < (known & ~good).sum()
    np.testing.assert_array_equal(source.good(0, T), good)
    np.testing.assert_array_equal(source.known(3, T), np.stack([good, good & known], axis=1)[3:])
    wanted = np.stack([SPARSE["a"].to_numpy(), held], axis=1)
    np.testing.assert_array_equal(source.read(5, T), np.where(good[:, None], wanted, 0)[5:])
    lost = [SPARSE["a"].null_count(), SPARSE["y"].null_count()]
    assert (
        f"{sum(lost)} values are missing ({a}: {lost[0]}, {y}: {lost[1]}), in "
    ) in source.notes[-1] and source.notes[-1].endswith(
        f"these rows are masked, but not those without {y!r} alone; where the target {y!r} is "
        "missing, nothing is scored; as an input it is the newest value before it; "
        f"{np.isnan(held).sum()} values have none before and are the mean"
    )

    scaling = stream_scaling(source, block=32)
    known &= good
    counted = SPARSE.filter(pl.Series(good)).select("a", "y")
    mean, scale = counted.mean().to_numpy()[0], counted.std(ddof=0).to_numpy()[0]
    np.testing.assert_allclose(scaling, [mean, scale], rtol=1e-12)
    inputs = np.where(good[:, None], np.nan_to_num((wanted - mean) / scale), 0)
    scaled = standardised(source, scaling).read(2, T)
    np.testing.assert_allclose(scaled, inputs[2:], rtol=0, atol=1e-12)
    ends = np.repeat(np.cumsum(LENGTHS), LENGTHS)
    ahead = np.arange(T)[:, None] + [1, 11]
    inside = (ahead < ends[:, None]).all(axis=1)
    ahead = np.minimum(ahead, T - 1)
    counts = known[ahead] & inside[:, None]
    truth = ((SPARSE["y"].to_numpy() - mean[1]) / scale[1])[ahead]
    for partial, weights in ((False, counts.all(axis=1)), (True, counts.mean(axis=1))):
        make = forecast_batches(y, (1, 11), partial=partial)
        view = standardised(pick(part(source, 0, T), range(len(LENGTHS))), scaling)
        stream = RecordingStream(view, 1, chunk, make)
        batches = [stream.chunk(i).batch for i in range(len(stream))]
        joined = [np.concatenate([getattr(b, name)[:, 0] for b in batches])[:T]
                  for name in ("inputs", "targets", "weights", "mask")]  # fmt: skip
        np.testing.assert_allclose(joined[0], inputs, rtol=0, atol=1e-12)
        unknown = np.nan if partial else 0
        np.testing.assert_allclose(
            joined[1],
            np.where(weights[:, None] > 0, np.where(counts, truth, unknown), 0),
            rtol=0,
            atol=1e-12,
        )
        np.testing.assert_array_equal(joined[2], weights)
        np.testing.assert_array_equal(joined[3], good)
    assert (weights == 0.5).any() and (weights == 1).sum() > 5 and known.sum() < T / 10


@pytest.mark.filterwarnings("ignore::tbptt.data.TableWarning")
def test_a_target_must_be_read(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c\n1,2,x\n3,,y\n")
    path = tmp_path / "x.csv"
    for missing in ("refuse", "mask"):
        open_source(path, missing=missing)  # its conversion is not used for target c
        with pytest.raises(ValueError, match="row 2, column 'c' is .*'x'.* or name another target"):
            open_source(path, missing=missing, target="c")
        with pytest.raises(ValueError, match="'a' is the time, .*so it is no target. Name another"):
            open_source(path, missing=missing, target="a", time="a")
    for more in ({"columns": ("a",)}, {}, {"without": ("b",)}, {"columns": ("a", "b")}):
        source = open_source(path, missing="mask", target="b", **more)
        assert source.names == ("a", "b") and source.good(0, 2).all()
        assert source.read(0, 2).tolist() == [[1, 2], [3, 2]]
    with pytest.raises(BadSample, match="column 'b' is missing"):
        open_source(path, target="b").read(0, 2)
    path.write_text("b,a\n2,1\n,3\n")
    for more, names in (({}, ("b", "a")), ({"without": ("b",)}, ("a", "b"))):
        for _ in range(2):  # converted, and from the cache
            assert open_source(path, target="b", **more).names == names
    assert open_source(path, target="a", without=("b",)).names == ("a",)


@pytest.mark.parametrize("how", ["hold", "interpolate"])
def test_a_filled_file_is_read_in_memory_only_if_no_value_is_left_out(how, tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n,2\n3,4\n")
    with pytest.raises(BadSample, match="row 2 .*column 'a' is missing"):
        load_series(tmp_path / "x.csv", missing=how)
    np.save(tmp_path / "x.npy", [1.0, np.nan])
    with pytest.raises(ValueError, match="for .csv and .parquet files.*use open_source"):
        load_series(tmp_path / "x.npy", missing=how)
    assert open_source(tmp_path / "x.npy", missing="hold").read(0, 2).tolist() == [[1], [1]]
