"""experiments.predict: which checkpoint it loads, what it writes, what it refuses."""

import csv
import json
import runpy
import sys

import jax
import numpy as np
import pytest

import tbptt
from experiments import predict
from experiments.support.train.params import load_params
from experiments.support.train.prediction_steps import open_for, read_steps
from tbptt.checkpoints import Checkpoints
from tbptt.training import TrainState
from tests.support.predictions import TASK, T, a_run, table, trained


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))


def test_the_program_predicts_with_the_best_valid_checkpoint(tmp_path, capsys):
    run_folder = a_run(tmp_path / "run", TASK, {1: 0.5, 2: 0.2, 3: None, 4: 0.3})
    data, shuffled = table(tmp_path / "new.csv"), tmp_path / "p.parquet"
    done = predict.main(predict.Config(run_folder, data, score=True, block=32))
    assert done["step"] == 2 and done["rows"] == T and done["scored"] == T - 3
    with open(done["predictions"]) as file:
        rows = list(csv.DictReader(file))
    model, params = trained()
    source = open_for(TASK, [data], False, np.float32)
    inputs = read_steps(TASK, source, 0, T, False).inputs
    shifted = jax.tree.map(lambda leaf: leaf + 2, params)

    @jax.jit
    def plain(params, inputs):
        carry = model.cell.initial_carry()
        return tbptt.predict(model.cell, model.readout, params, carry, tbptt.Batch(inputs, None))[1]

    outputs = plain(shifted, inputs)
    np.testing.assert_allclose(
        [float(row["prediction"]) for row in rows], 1.5 + 4 * outputs[:, 0], rtol=0, atol=1e-4
    )
    with pytest.raises(FileExistsError, match="predictions-new.csv exists"):
        predict.main(predict.Config(run_folder, data))
    (run_folder / "checkpoints" / "step_000000002" / "metadata.json").write_text("{}")
    again = predict.main(predict.Config(run_folder, data, shuffled))
    assert again["step"] == 4 and "step_000000002" in capsys.readouterr().err
    for path in (run_folder / "checkpoints").glob("step_*/metadata.json"):
        path.unlink()
    with pytest.raises(ValueError, match="all 4 checkpoints .* are damaged"):
        predict.main(predict.Config(run_folder, data, tmp_path / "q.csv"))
    assert not (tmp_path / "q.csv").exists()


def test_the_seed_of_the_summary_is_used_by_default(tmp_path):
    run_folder = a_run(tmp_path / "run", TASK, {})
    model, params = trained()
    many = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1, leaf + 2]), params)
    with Checkpoints(run_folder / "checkpoints", {}) as checkpoints:
        checkpoints.save(1, TrainState(many, (), (), np.ones(3, int)), 0)
    with pytest.raises(
        ValueError, match="--seed must be the index of one of the 3 seeds .*, 0 .. 2; got None"
    ):
        load_params(run_folder, model, 3)
    (run_folder / "summary.json").write_text('{"seed": 2}')
    for seed, more in ((None, 2), (1, 1)):
        got, _ = load_params(run_folder, model, 3, seed)
        jax.tree.map(
            np.testing.assert_array_equal,
            got,
            jax.tree.map(lambda leaf, more=more: leaf + more, params),
        )
    with pytest.raises(ValueError, match="has only one; omit --seed"):
        load_params(run_folder, model, 1, 0)


def test_a_run_without_checkpoints_or_of_another_model_is_refused(tmp_path):
    run_folder = a_run(tmp_path / "run", TASK, {})
    data = table(tmp_path / "new.csv")
    with pytest.raises(FileNotFoundError, match="has no checkpoint to predict with"):
        predict.main(predict.Config(run_folder, data))
    other = a_run(tmp_path / "other", TASK, {1: None})
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "hidden": 4}))
    with pytest.raises(ValueError, match=r"is of another model.*\[3, 3\].*\[4, 4\]"):
        predict.main(predict.Config(other, data))
    with pytest.raises(FileNotFoundError, match="it has no config.json"):
        predict.main(predict.Config(tmp_path, data))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:'experiments.predict' found in sys.modules")
def test_the_command_ends_with_one_line_of_json(tmp_path, capsys, monkeypatch):
    run_folder, data = a_run(tmp_path / "run", TASK, {1: 0.5}), table(tmp_path / "new.csv")
    flags = [str(run_folder), "--data", str(data), "--block", "50"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *flags])
    runpy.run_module("experiments.predict", run_name="__main__")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    summary = json.loads(line)
    assert summary["rows"] == T and summary["step"] == 1
    assert summary["predictions"].endswith("predictions-new.csv")
    assert "row 150/150" in err
