"""A forecast of two columns: its model, tables to predict from, and folders of runs."""

import csv
import functools
import json

import jax
import numpy as np

from experiments.support.train import task as run_task
from experiments.support.train.linear import LINEAR_FILE
from experiments.support.train.model import init_params, make_model
from experiments.support.train.task import Forecast
from tbptt.checkpoints import Checkpoints
from tbptt.training import TrainState

T = 150
_RNG = np.random.default_rng(3)
A, B = np.cumsum(_RNG.normal(size=T)), _RNG.normal(size=T) + 40
TASK = Forecast(("a", "b"), "a", 3, (1.5, 40.0), (4.0, 2.0), 1.5, 4.0)


INIT = jax.jit(init_params, static_argnums=1)


@functools.cache
def trained(task=TASK, cell="elman", linear=None):
    """Return a model and its parameters, which are arrays of numpy."""
    model = make_model(task, cell, 3, linear=linear)
    return model, jax.device_get(INIT(jax.random.key(1), model))


def a_run(folder, task, metrics_by_step, linear=None):
    """Make the folder of a run; step k of its checkpoints has the parameters plus k."""
    folder.mkdir()
    settings = {"cell": "elman", "hidden": 3, "layers": 1, "linear": linear is not None}
    if linear is not None:
        linear.save(folder / LINEAR_FILE)
    (folder / "config.json").write_text(json.dumps({**settings, "task": run_task.to_json(task)}))
    _, params = trained(task, linear=linear)
    with Checkpoints(folder / "checkpoints", {}, keep=9) as checkpoints:
        for step, metric in metrics_by_step.items():
            moved = jax.tree.map(
                lambda leaf, step=step: leaf + np.asarray(step, leaf.dtype), params
            )
            checkpoints.save(step, TrainState(moved, (), (), np.asarray(step)), 0, metric)
    return folder


def table(path, rows=slice(None), **more):
    """Write a CSV with columns in another order than the model's, one of them not numeric."""
    columns = {"note": ["x y"] * T, "b": B, **more, "a": A}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(
            list(zip(*(list(map(str, values)) for values in columns.values()), strict=True))[rows]
        )
    return path
