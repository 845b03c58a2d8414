"""Start a run from the parameters and the scaling of an earlier one, on new or longer data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData
from experiments.support.train.model import Model
from experiments.support.train.params import load_params
from experiments.support.train.task import Characters, from_json

MODEL = ("cell", "hidden", "layers")  # flags that must be those of the earlier run


def with_scaling_of(data: RunData, config: Any) -> RunData:
    """Return the data with the scaling of --init-from, with which its parameters were trained.

    A resumed run has it in its own config.json.

    Raises:
      ValueError: the models differ, or the tasks in more than mean and scale; the message names
        the flag or the field.
    """
    run = config.resume or config.init_from
    settings = read_config(run)
    task = from_json(settings.get("task", {}), f"{run / 'config.json'}")
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
    own = {name: getattr(config, name) for name in MODEL}
    if other := {name: settings.get(name) for name in MODEL if settings.get(name) != own[name]}:
        raise ValueError(
            f"--init-from {run} must have the same model; here "
            + ", ".join(f"--{name} is {own[name]}, there {old}" for name, old in other.items())
            + ". Give "
            + " ".join(f"--{name} {old}" for name, old in other.items())
        )
    return data._replace(task=task)


def with_params_of(state: tbptt.TrainState, config: Any, model: Model) -> Any:
    """Return the state with the best parameters of --init-from, on the devices of its own."""
    run, seeds = config.init_from, config.seeds
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
