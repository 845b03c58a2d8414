"""experiments.train and experiments.predict on tables as people have them."""

import json

import jax
import numpy as np
import polars as pl
import pytest

import tbptt
from experiments import predict, train
from experiments.support.train.data import open_data, training_stream
from experiments.support.train.drift import column_warnings
from experiments.support.train.model import init_params, make_model
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_steps import open_for, read_steps
from experiments.support.train.setup import _loss
from experiments.support.train.table_flags import TableFlags
from experiments.support.train.task import Forecast
from tbptt.data import BadSample

T = 300
RNG = np.random.default_rng(0)
HOURS = np.datetime64("2024-01-01T00:00", "us") + np.arange(T) * np.timedelta64(1, "h")
WEATHER = pl.DataFrame(
    {"when": HOURS, "warm": RNG.normal(size=T), "wind": RNG.normal(size=T), "note": ["dry"] * T}
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weather(path, frame=WEATHER):
    """Write a table with ';', decimal commas, dates, a column of text, and empty cells."""
    text = frame.write_csv(separator=";", datetime_format="%Y-%m-%d %H:%M")
    path.write_text(text.replace(".", ","))
    return path


def config(path, **flags):
    return train.Config(data=(path,), epochs=1.0, **flags)


def test_the_columns_of_a_run_and_what_is_printed(in_folder, capsys):
    path = weather(in_folder / "x.csv")
    data = open_data(config(path, target="warm", horizon=2))
    assert data.task.columns == ("warm", "wind") and data.source.time == "when"
    np.testing.assert_array_equal(data.source.times(3, 5), HOURS[3:5])
    wanted = WEATHER.select("warm", "wind").to_numpy()  # the file's own float64
    np.testing.assert_array_equal(data.source.read(0, T), wanted)
    assert capsys.readouterr().err.splitlines() == [
        f"Warning: {path}: column 'note' is left out: text (row 2: 'dry')",
        f"{path}: the separator is ';'",
        f"{path}: decimal comma in warm, wind",
        f"{path}: the time is column 'when', 2024-01-01 to 2024-01-13 11:00:00, usual step 1 hour",
    ]
    chosen = open_data(config(path, target="warm", columns=("wind",)))
    assert chosen.task.columns == ("wind",)  # the target is no input unless it is named
    with pytest.raises(ValueError, match="x.csv, row 2, column 'note' is not a number: 'dry'"):
        open_data(config(path, target="note"))
    with pytest.raises(ValueError, match="x.csv has no column 'cold'; its columns are when, warm"):
        open_data(config(path, target="cold"))
    with pytest.raises(ValueError, match="column 'when' holds dates, not numbers"):
        open_data(config(path, target="when"))


def test_a_gap_in_the_dates_starts_a_recording(in_folder):
    frame = pl.concat([WEATHER[:100], WEATHER[110:]])
    path = weather(in_folder / "x.csv", frame)
    data = open_data(config(path, target="warm", gaps="split"))
    assert data.source.lengths == (100, 190)
    resets = training_stream(data, 1, 290).chunk(0).batch.resets
    assert np.flatnonzero(resets).tolist() == [0, 100]
    assert open_data(config(path, target="warm")).source.lengths == (290,)


def test_groups_by_id_and_labels_by_name(in_folder):
    """Ids beyond 2^24, rows sorted by date, labels of text."""
    n, length = 12, 20
    rows = pl.DataFrame(
        {
            "id": np.repeat(2**24 + np.arange(n), length),
            "x": RNG.normal(size=n * length),
            "kind": np.repeat([["walk", "run"][i % 2] for i in range(n)], length),
            "day": list(range(length)) * n,
        }
    )
    path = in_folder / "x.csv"
    rows.sort("day").write_csv(path)
    flags = {"target": "kind", "task": "classify", "group": "id", "time": "day", "answer": "last"}
    with pytest.raises(ValueError, match=r"The rows of the groups are mixed: .*\(--sort\)"):
        open_data(config(path, **flags))
    data = open_data(config(path, **flags, sort=True))
    assert data.source.lengths == (length,) * n
    assert data.task.classes == ("run", "walk") and data.task.columns == ("x",)
    batch = training_stream(data, 1, n * length).chunk(0).batch
    assert batch.targets[batch.weights > 0].tolist() == ([1, 0] * n)[: (batch.weights > 0).sum()]
    named = data.task.answers(np.array([[0.0, 1.0], [2.0, 0.0]]))
    assert named["prediction"].tolist() == ["walk", "run"] and set(named) >= {"p_walk", "p_run"}
    steps = read_steps(data.task, data.source, 0, 40, True)
    assert steps.truth[[19, 39]].tolist() == [1, 0]


TASK = Forecast(("warm", "wind"), "warm", 2, (0.5, 0.0), (2.0, 1.0), 0.5, 2.0)
GONE = np.r_[0, 1, 7:15, 40, 298]


def test_a_masked_row_holds_the_carry_and_is_not_scored(in_folder):
    wind = pl.when(pl.int_range(T).is_in(GONE.tolist())).then(None).otherwise(pl.col("wind"))
    path = weather(in_folder / "x.csv", WEATHER.with_columns(wind.alias("wind")))
    with pytest.raises(BadSample, match=r"x.csv, row 2 .*'wind' is missing.*\(--missing"):
        read_steps(TASK, open_for(TASK, [path], True), 0, 10, True)
    # two recordings: the second starts with masked rows, too
    source = open_for(TASK, [path, path], True, np.float64, TableFlags(missing="mask"))
    model = make_model(TASK, "elman", 3)
    params = jax.jit(lambda key: init_params(key, model))(jax.random.key(1))
    scored, got, counts = Score(TASK), [], []
    for columns, outputs, steps in predict_blocks(TASK, model, params, source, 5, score=True):
        scored.add(outputs, steps)
        got.append(columns["prediction"])
        counts.append(steps.scored)
    got, good = np.concatenate(got), ~np.isin(np.arange(T), GONE)
    np.testing.assert_allclose(got[T:][good], got[:T][good], rtol=0, atol=1e-12)
    got, known = got[:T], good & np.append(good[2:], [False] * 2)
    np.testing.assert_array_equal(np.concatenate(counts)[:, 0], np.tile(known, 2))
    # the rows that are there, without the others, are the same sequence
    warm, there = WEATHER["warm"].to_numpy(), WEATHER.select("warm", "wind").to_numpy()[good]
    batch = tbptt.Batch(((there - [0.5, 0.0]) / [2.0, 1.0])[:, None], None)

    @jax.jit
    def plain(params, batch):
        carry = model.cell.initial_carry((1,))
        return tbptt.predict(model.cell, model.readout, params, carry, batch)[1]

    outputs = plain(params, batch)
    np.testing.assert_allclose(got[good], 0.5 + 2.0 * outputs[:, 0, 0], rtol=0, atol=1e-12)
    pairs = good[:-2] & good[2:]
    wanted = np.sqrt(np.mean((got[:-2] - warm[2:])[pairs] ** 2))
    np.testing.assert_allclose(scored.result()["rmse"], wanted, rtol=1e-12)


SPARSE = np.arange(T) % 10 == 4  # the rows in which the target is measured


@pytest.mark.parametrize("own", [True, False])
def test_a_rare_target_is_held_as_an_input_and_scored_where_it_is_measured(own, in_folder):
    warm = pl.when(pl.lit(pl.Series(SPARSE))).then(pl.col("warm"))
    path = weather(in_folder / "x.csv", WEATHER.with_columns(warm.alias("warm")))
    flags = {} if own else {"columns": ("wind",)}
    settings = config(path, target="warm", horizon=2, forecasts=2, missing="mask", **flags)
    data = open_data(settings)
    task, truth = data.task, np.where(SPARSE, WEATHER["warm"].to_numpy(), np.nan)
    train_truth = truth[: data.ends.train]
    np.testing.assert_allclose(
        (task.target_mean, task.target_scale),
        (np.nanmean(train_truth), np.nanstd(train_truth)),
        rtol=1e-12,
    )
    assert data.source.good(0, T).all()
    held = pl.Series(truth).fill_nan(None).forward_fill().to_numpy()
    values = np.stack([held, WEATHER["wind"].to_numpy()], axis=1)[:, 0 if own else 1 :]
    inputs = np.nan_to_num((values - task.mean) / task.scale)
    steps = read_steps(task, data.source, 0, T, True)
    np.testing.assert_allclose(steps.inputs, inputs, rtol=0, atol=1e-12)
    ahead = np.arange(T)[:, None] + [1, 2]
    wanted = np.append(SPARSE, [False] * 2)[ahead]
    np.testing.assert_array_equal(steps.scored, wanted)
    np.testing.assert_array_equal(steps.truth[wanted], np.append(truth, [0, 0])[ahead][wanted])
    batch = training_stream(data, 1, data.ends.train).chunk(0).batch
    np.testing.assert_allclose(batch.inputs[:, 0], inputs[: data.ends.train], rtol=0, atol=1e-6)
    wanted[data.ends.train - 2 :] = False  # a target beyond the training part
    np.testing.assert_array_equal(batch.weights[:, 0], wanted[: data.ends.train].mean(axis=1))
    assert column_warnings(data) == []

    if not own:  # the network only has one input less
        return
    model, n = make_model(task, "elman", 3), data.ends.train
    loss = _loss(settings, data, model)

    @jax.jit
    def both(key, batch):
        params, carry = init_params(key, model), model.cell.initial_carry((1,))
        _, outputs = tbptt.predict(model.cell, model.readout, params, carry, batch)
        return loss(params, carry, batch)[0], outputs

    whole, outputs = both(jax.random.key(1), batch)
    scaled = (np.append(truth, [0, 0])[ahead] - task.target_mean) / task.target_scale
    errors = (np.asarray(outputs)[:, 0] - scaled[:n])[wanted[:n]]
    np.testing.assert_allclose(whole, np.sum(errors**2) / 2, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_run_on_a_packed_file_with_missing_values_predicts_it(in_folder, capsys):
    wind = pl.when(pl.int_range(T).is_in(GONE.tolist())).then(None).otherwise(pl.col("wind"))
    path = weather(in_folder / "x.csv", WEATHER.with_columns(wind.alias("wind")))
    flags = {
        "target": "warm",
        "hidden": 4,
        "k1": 10,
        "cell": "mingru",
        "missing": "hold",
        "out": in_folder / "run",
    }
    assert train.run(lambda **_: config(path, **flags)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["updates"] > 0
    done = predict.main(predict.Config(in_folder / "run", path, score=True))
    assert done["rows"] == T and done["scored"] == T - 3  # two rows have no value to hold
    assert "held from the row before" in capsys.readouterr().err
