"""Start a run from the parameters and the scaling of an earlier one, on new or longer data."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData
from experiments.support.train.model import Model
from experiments.support.train.params import load_params
from experiments.support.train.task import Characters, from_json


def with_scaling_of(data: RunData, run: Path) -> RunData:
    """Return the data with the scaling of an earlier run, with which its parameters were trained.

    Raises:
      ValueError: the tasks differ in more than mean and scale; the message names the field.
    """
    task = from_json(read_config(run).get("task", {}), f"{run / 'config.json'}")
    new, old = dataclasses.asdict(data.task), dataclasses.asdict(task)
    scaling = ("mean", "scale", "target_mean", "target_scale")
    differing = [name for name in new if name not in scaling and new[name] != old.get(name)]
    if type(data.task) is not type(task) or differing:
        what = differing[0] if differing else "kind"
        hint = ": the new text has other characters" if isinstance(data.task, Characters) else ""
        raise ValueError(
            f"--init-from {run} must have the same task; its {what} is {old.get(what)!r}, here "
            f"{new.get(what)!r}{hint}. Give the flags of that run, or omit --init-from"
        )
    return data._replace(task=task)


def with_params_of(state: tbptt.TrainState, run: Path, model: Model, seeds: int) -> Any:
    """Return the state with the best parameters of an earlier run, on the devices of its own."""
    settings = read_config(run)
    params, _ = load_params(run, model, settings.get("seeds", 1))
    if seeds > 1:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf] * seeds), params)
    placed = jax.tree.map(
        lambda new, old: jax.device_put(jnp.asarray(new, old.dtype), old.sharding),
        params,
        state.params,
    )
    return state._replace(params=placed)
