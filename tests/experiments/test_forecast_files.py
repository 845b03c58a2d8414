"""Predictions at every horizon join back onto the file by time; errors and baselines by horizon."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from experiments import predict, train
from experiments.support.common.baselines import persistence
from experiments.support.train import forecast_baselines
from experiments.support.train.data import open_data, training_stream
from experiments.support.train.forecast_baselines import forecast_scores
from experiments.support.train.result import score_rows, summary_of
from experiments.support.train.row_labels import RowLabels
from experiments.support.train.task import Forecast
from tbptt.data import open_source
from tests.support.predictions import a_run, trained

T = 150
RNG = np.random.default_rng(5)
HOURS = np.datetime64("2024-03-01T00:00", "us") + np.arange(T) * np.timedelta64(1, "h")
# Three decimals, which float32 does not hold; two sites with the same hours.
FRAME = pl.DataFrame(
    {
        "date": np.tile(HOURS, 2),
        "site": ["north"] * T + ["7"] * T,
        "warm": np.round(RNG.normal(size=2 * T), 3) + 10.685,
        "wind": np.round(RNG.normal(size=2 * T), 2),
    }
).with_columns(pl.col("warm").round(3))
GERMAN = "%d.%m.%Y %H:%M"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path, frame=FRAME, dates=GERMAN):
    frame.write_csv(path, datetime_format=dates)
    return path


def opened(path, **flags):
    return open_data(train.Config(data=(path,), target="warm", **flags))


def rows_of(path, **types):
    return pl.read_csv(path, schema_overrides=types)


def test_every_horizon_joins_back_onto_the_file(in_folder):
    path = written(in_folder / "x.csv")
    data = opened(path, group="site", horizon=6, forecasts=2)
    model, params = trained(data.task)
    score = score_rows(data, model, params, 240, 2 * T, 4, in_folder / "p.csv")
    got = rows_of(in_folder / "p.csv", group=pl.String)
    named = [f"{what}_{h}" for h in (3, 6) for what in ("target_time", "truth", "prediction")]
    assert got.columns == ["row", "time", "group", *named]
    file = rows_of(path, site=pl.String)
    origin = file.with_row_index("row")[240:].select("row", "date", "site")
    assert origin.rows() == got.select("row", "time", "group").rows()
    for i, h in enumerate((3, 6)):
        joined = got.join(
            file, left_on=["group", f"target_time_{h}"], right_on=["site", "date"], how="left"
        )
        assert joined[f"truth_{h}"].to_list() == joined["warm"].to_list()  # the same numbers
        assert joined["warm"].null_count() == h  # only the targets beyond the file
        errors = (joined[f"prediction_{h}"] - joined["warm"]).drop_nulls().to_numpy()
        own = score.by_horizon()[i]
        assert own["scored"] == 60 - h
        assert own["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
        assert own["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-12)
    # Beyond the file the usual step continues: 07.03. 05:00 is the last row.
    assert got["target_time_6"][-1] == "07.03.2024 11:00"
    total = sum(one["rmse"] ** 2 * one["scored"] for one in score.by_horizon())
    assert score.result()["rmse"] == pytest.approx(np.sqrt(total / 111), rel=1e-12)


def test_one_horizon_of_parquet_keeps_the_plain_names_and_the_type_of_the_time(in_folder):
    frame = FRAME.drop("site")[:T].with_columns(pl.col("date").dt.cast_time_unit("ms"))
    frame.write_parquet(in_folder / "x.parquet")
    task = Forecast(("warm", "wind"), "warm", 2, (10.0, 0.0), (1.0, 1.0), 10.0, 1.0)
    run = a_run(in_folder / "run", task, {1: 0.5})
    done = predict.main(predict.Config(run, in_folder / "x.parquet", in_folder / "p.parquet"))
    got = pl.read_parquet(in_folder / "p.parquet")
    assert got.columns == ["row", "time", "target_time", "prediction"] and done["rows"] == T
    assert got["time"].to_list() == frame["date"].to_list()
    assert got["target_time"][:-2].to_list() == frame["date"][2:].to_list()
    predict.main(predict.Config(run, in_folder / "x.parquet", in_folder / "p.csv"))
    assert rows_of(in_folder / "p.csv")["time"][3] == "2024-03-01 03:00:00"
    several = a_run(in_folder / "two", Forecast(**{**task.__dict__, "outputs": 2}), {1: 0.5})
    done = predict.main(
        predict.Config(several, in_folder / "x.parquet", in_folder / "q.csv", score=True)
    )
    got = rows_of(in_folder / "q.csv")
    for i, one in enumerate(done["horizons"]):
        errors = (got[f"prediction_{i + 1}"] - got[f"truth_{i + 1}"]).drop_nulls().to_numpy()
        assert (one["horizon"], one["scored"]) == (i + 1, T - 1 - i)
        assert one["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
    predict.main(predict.Config(several, in_folder / "x.parquet", in_folder / "p.npy"))
    assert np.load(in_folder / "p.npy").shape == (T, 2)


def test_groups_by_two_columns_are_two_columns():
    source = SimpleNamespace(lengths=(1, 2), groups=(("a", "1"), ("b", "1")))
    columns, _ = RowLabels(source, ()).columns(0, 3)
    assert {name: values.tolist() for name, values in columns.items()} == {
        "group_1": ["a", "b", "b"], "group_2": ["1"] * 3,
    }  # fmt: skip


def test_times_beyond_a_recording_are_empty_where_the_step_is_not_usual():
    months = np.arange("2024-01", "2024-11", dtype="M8[M]").astype("M8[us]")
    ends = np.array([10, 20, 30, 37.0])  # the step into the second recording is no step
    for times, lengths, wanted in (
        (months, (10,), [*months[2:], *np.array(["NaT"] * 2, "M8[us]")]),
        (ends, (3, 1), [30, 40, 50, 57]),
        (np.arange(5) * 10.0, (3, 2), [20, 30, 40, 50, 60]),
    ):
        source = SimpleNamespace(lengths=lengths, times=lambda a, b, times=times: times[a:b])
        columns, targets = RowLabels(source, (2,)).columns(0, len(times))
        np.testing.assert_array_equal(columns["time"], times)
        np.testing.assert_array_equal(targets[0], np.asarray(wanted, times.dtype))


def test_predictions_have_the_digits_of_their_scale():
    task = Forecast(("x",), "x", 1, (0.0,), (1.0,), 1000.0, 20.0)
    outputs = np.array([[0.1], [1 / 3]], np.float32)
    assert task.answers(outputs)["prediction"].tolist() == [1002.0, 1006.66667]
    exact = task.answers(outputs.astype(np.float64))["prediction"]
    assert exact[1] == 1000.0 + 20.0 * float(np.float32(1 / 3))


def test_columns_means_what_it_says(in_folder, capsys):
    path = written(in_folder / "x.csv", FRAME.drop("site")[:T])
    assert opened(path).task.columns == ("warm", "wind")
    for flags in ({"columns": ("wind",)}, {"without": ("warm",)}):
        for horizon in (0, 3):
            data = opened(path, horizon=horizon, **flags)
            assert data.task.columns == ("wind",) and data.source.names == ("wind", "warm")
    with pytest.raises(ValueError, match="needs at least 2 rows in each part"):
        short = written(in_folder / "short.csv", FRAME.head(12))
        opened(short, horizon=0, without=("warm",), valid=0.1, test=0.1)
    with pytest.raises(ValueError, match=r"--horizon 0 estimates 'warm' from its own row.*--with"):
        opened(path, horizon=0)
    with pytest.raises(ValueError, match=r"no numeric input column besides"):
        opened(path, without=("warm", "wind"))
    status = train.run(
        lambda **_: train.Config(
            data=(path,), target="warm", horizon=0, forecasts=2, without=("warm",)
        )
    )
    assert status == 1 and "--forecasts must be 1; got 2" in capsys.readouterr().err


def test_an_estimate_does_not_see_the_target_and_its_file_need_not_have_it(in_folder):
    frame = FRAME.drop("site")[:T]
    data = opened(written(in_folder / "x.csv", frame), horizon=0, without=("warm",))
    run = a_run(in_folder / "run", data.task, {1: 0.5})
    other = written(in_folder / "without.csv", frame.drop("warm"))
    wild = written(in_folder / "wild.csv", frame.with_columns(warm=pl.lit(1e6)))
    found = []
    for name, score in ((in_folder / "x.csv", True), (other, False), (wild, True)):
        out = in_folder / f"p-{name.stem}.csv"
        predict.main(predict.Config(run, name, out, score=score))
        found.append(rows_of(out))
    for got in found[1:]:
        assert got["prediction"].to_list() == found[0]["prediction"].to_list()
    assert found[0]["truth"].to_list() == frame["warm"].to_list()  # of the same row
    assert found[0]["target_time"].to_list() == found[0]["time"].to_list()
    with pytest.raises(ValueError, match=r"without.csv has no column 'warm'; .*omit --score"):
        predict.main(predict.Config(run, other, in_folder / "q.csv", score=True))


def test_baselines_of_an_estimate_are_the_mean_and_a_regression_on_the_inputs(in_folder):
    x = RNG.normal(size=(600, 2))
    y = 3 + 2 * x[:, 0] - np.append([0], x[:-1, 1])
    np.save("x.npy", np.column_stack([x, y]))
    data = open_data(
        train.Config(data=(in_folder / "x.npy",), target="2", horizon=0, columns=("0", "1"))
    )
    scores = forecast_scores(data, data.task)
    errors = {name: score.result()["rmse"] for name, score in scores.items()}
    assert list(errors) == ["mean of training", "ridge, 1 row", "ridge, 16 rows"]
    test = y[540:]
    assert errors["mean of training"] == pytest.approx(np.std(test - y[:480].mean(), mean=0.0))
    assert errors["ridge, 16 rows"] < 1e-2 < 0.9 < errors["ridge, 1 row"] < 1.1


@pytest.mark.parametrize("fitted", [1000, 100])
def test_linear_baselines_of_two_recordings_equal_dense_least_squares(
    fitted, in_folder, monkeypatch
):
    """The fit leaves out origins that reach before their recording, where rows are the mean."""
    monkeypatch.setattr(forecast_baselines, "ROWS", fitted)
    frame = FRAME.with_columns(warm=FRAME["warm"].to_numpy().cumsum() % 7)
    data = opened(written(in_folder / "x.csv", frame), group="site", horizon=2, forecasts=2)
    task, scores = data.task, forecast_scores(data, data.task)
    warm = (frame["warm"].to_numpy() - task.target_mean) / task.target_scale
    names = ["mean of training", "last value", "ridge AR(16)", "ridge, 1 row"]
    assert list(scores) == names

    def features(t):
        begin = 0 if t < T else T
        return [warm[t - lag] if t - lag >= begin else 0.0 for lag in range(16)] + [1.0]

    first = max(0, 240 - fitted)  # fitted to the last rows of the training part
    starts = [first if t < T else T for t in range(240)]
    origins = [t for t in range(240) if t - starts[t] >= 15 and t + 2 < (T if t < T else 240)]
    past = np.array([features(t) for t in origins])
    truth = np.array([[warm[t + h] for h in (1, 2)] for t in origins])
    penalty = np.diag([1e-6 * len(origins)] * 16 + [0])
    weights = np.linalg.solve(past.T @ past + penalty, past.T @ truth)
    for i, h in enumerate((1, 2)):
        tested = range(270, 300 - h)
        found = np.array([features(t) for t in tested]) @ weights[:, i]
        wanted = np.sqrt(np.mean((found - warm[np.array(tested) + h]) ** 2)) * task.target_scale
        assert scores["ridge AR(16)"].by_horizon()[i]["rmse"] == pytest.approx(wanted, rel=1e-6)
        last = persistence(frame.select("warm").to_numpy(), 0, h, 270, 300) ** 0.5
        assert scores["last value"].by_horizon()[i]["rmse"] == pytest.approx(last, rel=1e-12)


def test_the_summary_has_one_name_for_each_number(in_folder):
    data = opened(written(in_folder / "x.csv"), group="site", horizon=2, forecasts=2)
    model, params = trained(data.task)
    found = summary_of(data, model, params, 4, in_folder, {})
    assert found["metric"] == "rmse" and found["target"] == "warm"
    scale = data.task.target_scale
    assert found["test_rmse"] / scale == pytest.approx(found["test_standardised_rmse"])
    assert found["test_mae"] / scale == pytest.approx(found["test_standardised_mae"])
    assert found["baseline"] == min(
        found["baselines"], key=lambda name: found["baselines"][name]["rmse"]
    )
    assert [one["horizon"] for one in found["horizons"]] == [1, 2]
    best = min((n for n in found["baselines"] if "ridge" in n), key=lambda n: found["baselines"][n]["rmse"])  # fmt: skip  # noqa: E501
    assert set(found["horizons"][0]) == {
        "horizon", "rmse", "mae", "scored", "mean of training", "last value", best,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_the_format_of_the_dates_and_the_groups_of_a_part_are_known(in_folder):
    for dates, wanted in (
        (GERMAN, GERMAN),
        ("%Y-%m-%d", "%Y-%m-%d"),
        ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%.fZ"),
    ):
        frame = FRAME.drop("site")[:T:24]
        source = open_source(written(in_folder / "x.csv", frame, dates))
        assert source.time_format == wanted
        shown = pl.Series(source.times(0, 3)).dt.to_string(source.time_format)
        assert shown.to_list() == rows_of(in_folder / "x.csv")["date"][:3].to_list()


def test_what_trains_is_scaled_in_float64_and_has_the_chosen_columns(in_folder):
    frame = FRAME.drop("site")[:T].with_columns(wind=pl.col("wind") + 2.0**26)
    data = opened(written(in_folder / "x.csv", frame), horizon=0, without=("warm",))
    batch = training_stream(data, 1, 120).chunk(0).batch
    wind, warm = frame["wind"].to_numpy()[:120], frame["warm"].to_numpy()[:120]
    assert batch.inputs.dtype == np.float32 and batch.inputs.shape == (120, 1, 1)
    np.testing.assert_allclose(
        batch.inputs[:, 0, 0], (wind - wind.mean()) / wind.std(), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        batch.targets[:, 0, 0], (warm - warm.mean()) / warm.std(), rtol=1e-5, atol=1e-6
    )


def test_a_run_names_each_number_once_and_writes_short_ones(in_folder, capsys, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, buffer, **how: buffer.write(b"PNG"))
    path = written(in_folder / "x.csv", FRAME.with_columns(note=pl.lit("dry")))
    flags = {"group": "site", "horizon": 2, "forecasts": 2, "epochs": 1.0, "k1": 10}
    flags |= {"cell": "mingru", "hidden": 3}
    jax.config.update("jax_enable_x64", False)
    try:
        config = train.Config(data=(path,), target="warm", out=in_folder / "run", **flags)
        assert train.run(lambda **_: config) == 0
    finally:
        jax.config.update("jax_enable_x64", True)
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    for part in ("valid", "test"):
        errors = [f"{name} {summary[f'{part}_{name}']:.4g}" for name in ("rmse", "mae")]
        assert f"{part:<6} {'  '.join(errors)} (in units of warm)\n" in err
    best = summary["baseline"]
    shown = f"rmse {summary['baselines'][best]['rmse']:.4g}"
    assert f"test   {shown}" in err and f"(in units of warm): baseline, {best}\n" in err
    lines = (in_folder / "run/metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    valid = [row for row in logged if row["kind"] == "valid"][-1]
    assert set(valid) == {"kind", "step", "rmse", "mae", "scored", "metric", "seconds"}
    assert valid["metric"] == valid["rmse"]
    got = (in_folder / "run/predictions.csv").read_text().splitlines()[1].split(",")
    assert all(len(cell.partition(".")[2]) <= 7 for cell in got[3:] if ":" not in cell), got
    config = json.loads((in_folder / "run/config.json").read_text())
    assert any("column 'note' is left out: text" in note for note in config["notes"])
    assert config["chosen"] and config["chosen"][0] in err
    text = (in_folder / "run/report.html").read_text()
    assert all(note.replace("'", "&#x27;") in text for note in config["notes"])
    assert "Chosen from the data" in text and "1 row = 1 h" not in text  # drawn, not written
    assert summary["step"] == "1 hour" and summary["left_out"] is None
    last = str(HOURS[-1]).replace("T", " ").removesuffix(".000000")
    assert summary["times"] == {
        "training": ["2024-03-01", last],
        "validation": [str(HOURS[90])[:10] + " 18:00:00", str(HOURS[119])[:10] + " 23:00:00"],
        "test": [str(HOURS[120])[:10], last],
    }
