"""The answer of a recording is the mean of the log-probabilities over its rows."""

import json
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest
import tyro
from scipy.special import log_softmax

from experiments import predict, train
from experiments.support.train.data import open_data, training_stream
from experiments.support.train.mean_log_probabilities import MeanLogProbabilities, initial_mean
from experiments.support.train.model import init_params, make_model
from experiments.support.train.predicting import Score, predict_blocks
from experiments.support.train.prediction_steps import open_for
from experiments.support.train.table_flags import TableFlags
from experiments.support.train.task import Classify
from tbptt.fit.stopping import Stop

RNG = np.random.default_rng(0)
LENGTHS = (6, 9, 4, 7)
ROWS = pl.DataFrame(
    {
        "id": np.repeat(np.arange(4), LENGTHS),
        "x": RNG.normal(size=sum(LENGTHS)),
        "kind": np.repeat(["b", "a", "b", "a"], LENGTHS),
    }
)
TASK = Classify(("x",), "kind", ("a", "b"), (0.1,), (1.5,), "id", "every")


def test_the_mean_over_blocks_equals_a_plain_loop():
    outputs, mask = RNG.normal(size=(20, 3)), RNG.random(20) < 0.7
    resets = np.isin(np.arange(20), (0, 7, 12))
    mask[[0, 7, 12]] = True
    total, n, want = np.zeros(3), 0, []
    for t in range(20):
        total, n = (np.zeros(3), 0) if resets[t] else (total, n)
        if mask[t]:
            total, n = total + log_softmax(outputs[t]), n + 1
        want.append(total / n)
    for size in (1, 5, 20):
        mean = MeanLogProbabilities(initial_mean(3))
        blocks = [slice(i, i + size) for i in range(0, 20, size)]
        got = np.concatenate([mean(outputs[b], resets[b], mask[b]) for b in blocks])
        np.testing.assert_allclose(got, want, rtol=1e-12)
        np.testing.assert_allclose(mean.state[0], total, rtol=1e-12)
        assert mean.state[1] == n


def test_a_prediction_is_the_mean_of_its_recording_alone(tmp_path):
    ROWS.write_csv(tmp_path / "x.csv")
    missing = pl.when(pl.int_range(pl.len()).is_in([1, 8, 12])).then(None).otherwise(pl.col("x"))
    ROWS.with_columns(x=missing).write_csv(tmp_path / "y.csv")
    model = make_model(TASK, "elman", 3)
    params = jax.device_get(jax.jit(lambda key: init_params(key, model))(jax.random.key(1)))
    params = params._replace(cell=jax.tree.map(lambda a: np.asarray(a, float), params.cell))
    initial = jax.jit(model.cell.initial_carry)()

    @jax.jit
    def step(params, carry, x):
        carry, y = model.cell(params.cell, carry, x)
        return carry, model.readout.apply(params.readout, y)

    for name, gone in (("x.csv", ()), ("y.csv", (1, 8, 12))):
        flags = TableFlags(missing="mask")
        source = open_for(TASK, [tmp_path / name], True, np.float64, flags)
        score, left, got, logs = Score(TASK), [], [], np.zeros(0)
        for _, outputs, steps in predict_blocks(
            TASK, model, params, source, 5, score=True, ended=left.append
        ):
            score.add(outputs, steps)
            got.append(outputs)
        got, right = np.concatenate(got), 0
        for begin, end in zip(np.cumsum((0, *LENGTHS)), np.cumsum(LENGTHS), strict=False):
            rows = [row for row in range(begin, end) if row not in gone]
            xs = (ROWS["x"].to_numpy()[rows] - 0.1) / 1.5
            carry, ys = initial, []
            for x in xs[:, None]:
                carry, y = step(params, carry, x)
                ys.append(np.asarray(y, float))
            logs = log_softmax(np.stack(ys), axis=1)
            np.testing.assert_allclose(got[rows[-1]], logs.mean(0), rtol=1e-6)
            right += np.argmax(logs.mean(0)) == (ROWS["kind"][int(begin)] == "b")
        assert score.result() == {"accuracy": right / 4, "scored": 4}
        np.testing.assert_allclose(left[0][1][0], logs.sum(0), rtol=1e-6)


@pytest.fixture
def in_float32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    ROWS.write_csv("x.csv")
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


FLAGS = ["--data", "x.csv", "--target", "kind", "--task", "classify", "--group", "id"]


@pytest.mark.usefixtures("in_float32")
def test_the_flag_sets_which_rows_train():
    parsed = lambda *more: tyro.cli(train.Config, args=[*FLAGS, *more])  # noqa: E731
    for more, answer, counted in (
        ((), "every", [1, 1, 1, 1, 1, 1] + [1] * 9),
        (("--answer", "last"), "last", [0, 0, 0, 0, 0, 1] + [0] * 8 + [1]),
    ):
        data = open_data(parsed(*more))
        assert isinstance(data.task, Classify) and data.task.answer == answer
        weights = np.asarray(training_stream(data, 1, 15).chunk(0).batch.weights)
        assert weights.ravel().tolist() == counted


@pytest.mark.exhaustive
@pytest.mark.usefixtures("in_float32")
def test_a_run_and_its_predictions_follow_the_flag():
    """A carry between two files continues the sum; the classes of a run are its own."""
    small = ["--cell", "mingru", "--hidden", "3", "--k1", "5", "--epochs", "2", "--out", "run"]
    summary = train.main(tyro.cli(train.Config, args=[*FLAGS, *small]), Stop())
    assert summary["metric"] == "accuracy" and summary["test_scored"] == 1
    assert json.loads(Path("run/config.json").read_text())["task"]["answer"] == "every"
    one, two = ROWS.filter(pl.col("id") == 1), ROWS.filter(pl.col("id") == 1)
    one.write_csv("one.csv")
    one[:4].write_csv("first.csv")
    two[4:].write_csv("second.csv")

    def predicted(name, **more):
        out = Path(f"p-{name}")
        predict.main(predict.Config(run=Path("run"), data=Path(name), out=out, **more))
        return pl.read_csv(out)["p_a"].to_numpy()

    whole = predicted("one.csv")
    parts = [predicted("first.csv", carry_out=Path("carry"))]
    parts.append(predicted("second.csv", carry_in=Path("carry")))
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
