"""A forecast of two columns: its model, and tables to predict from."""

import csv
import functools

import jax
import numpy as np

from experiments.support.train.model import init_params, make_model
from experiments.support.train.task import Forecast

T = 150
_RNG = np.random.default_rng(3)
A, B = np.cumsum(_RNG.normal(size=T)), _RNG.normal(size=T) + 40
TASK = Forecast(("a", "b"), "a", 3, (1.5, 40.0), (4.0, 2.0), 1.5, 4.0)


@functools.cache
def trained(task=TASK, cell="lstm"):
    model = make_model(task, cell, 3)
    return model, jax.jit(lambda key: init_params(key, model))(jax.random.key(1))


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
