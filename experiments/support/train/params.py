"""What a run has learnt, from its checkpoints: the best one by validation that is sound, else the newest."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.support.common.console import console
from experiments.support.common.json_file import read_object
from experiments.support.train.model import Model, init_params
from tbptt.checkpoints import CheckpointDamaged, Restored, finished, restore


def load_params(run: Path, model: Model, seeds: int = 1, seed: int | None = None) -> tuple[Any, Restored]:
    """Restores the parameters alone; a run that is still going on is not disturbed.

    Checkpoints are tried from the lowest validation metric on, then those without one, the newest first. One that is
    damaged is passed over, with a warning that names it.

    Args:
        run: the run's folder; model: rebuilt from its settings.
        seeds: how many the run trains side by side; seed: which of them, None: the one that summary.json names.

    Returns:
        (params, restored): the parameters of one model, and the checkpoint they are from.

    Raises:
        ValueError: no such seed, or none was named and the run has not ended.
        FileNotFoundError: there is no checkpoint.
        CheckpointDamaged: none is sound. CheckpointMismatch: it is of another model or version; names what differs.
    """
    which = _seed(run, seeds, seed)
    like = init_params(jax.random.key(0), model)
    if seeds > 1:
        like = jax.tree.map(lambda leaf: jnp.zeros((seeds, *leaf.shape), leaf.dtype), like)
    paths = sorted(finished(run / "checkpoints"), key=_order)
    if not paths:
        raise FileNotFoundError(f"{run} has no checkpoint to predict with: train first, or go on training there")
    damaged: list[CheckpointDamaged] = []
    for path in paths:
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                found = restore(path, like, under=".params")
        except CheckpointDamaged as error:
            damaged.append(error)
            continue
        for message in (
            *(f"a damaged checkpoint is passed over: {error}" for error in damaged),
            *(w.message for w in seen),
        ):
            console.print(f"warning: {message}", style="bold yellow", markup=False, highlight=False, soft_wrap=True)
        return found.state if seeds == 1 else jax.tree.map(lambda leaf: leaf[which], found.state), found
    raise CheckpointDamaged(f"none of the {len(paths)} checkpoints of {run} is sound. The first one tried: {damaged[0]}")


def _seed(run: Path, seeds: int, seed: int | None) -> int:
    if seeds == 1:
        if seed is not None:
            raise ValueError(f"--seed chooses among the --seeds of a run, and {run} has one; leave it out")
        return 0
    if seed is None and (run / "summary.json").exists():
        seed = read_object(run / "summary.json")["seed"]
    if seed is None or not 0 <= seed < seeds:
        raise ValueError(f"--seed must say which of the {seeds} seeds of {run} is to predict, 0 .. {seeds - 1}; got {seed}")
    return seed


def _order(path: Path) -> tuple[int, float, int]:
    """Ranks: by metric, then by age. First one whose description cannot be read: `restore` then says what is wrong."""
    step = int(path.name.rpartition("_")[2])
    try:
        metric = read_object(path / "about.json")["metric"]
    except (OSError, ValueError, KeyError):
        return 0, 0.0, -step
    return (2, 0.0, -step) if metric is None else (1, float(metric), -step)
