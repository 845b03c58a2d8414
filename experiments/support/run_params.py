"""What a run has learnt, from its checkpoints: the best one by validation that is sound, else the newest."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.support.console import console
from experiments.support.json_file import read_config, read_object
from tbptt.checkpoints import CheckpointDamaged, Restored, finished, restore


def load_params(run: Path, like: Any) -> Restored:
    """Restores the parameters alone; a run that is still going on is not disturbed.

    Checkpoints are tried from the lowest validation metric on, then those without one, the newest first. One that is
    damaged is passed over, with a warning that names it.

    Args:
        run: the run's folder.
        like: parameters of the model; their values do not count.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointDamaged: none is sound. CheckpointMismatch: it is of another model or version; names what differs.
    """
    paths = sorted(finished(run / "checkpoints"), key=_order)
    if not paths:
        raise FileNotFoundError(f"{run} has no checkpoint to predict with: train first, or go on training there")
    damaged: list[CheckpointDamaged] = []
    for path in paths:
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                found = _restored(run, path, like)
        except CheckpointDamaged as error:
            damaged.append(error)
            continue
        for message in (
            *(f"a damaged checkpoint is passed over: {error}" for error in damaged),
            *(w.message for w in seen),
        ):
            console.print(f"warning: {message}", style="bold yellow", markup=False, highlight=False, soft_wrap=True)
        return found
    raise CheckpointDamaged(f"none of the {len(paths)} checkpoints of {run} is sound. The first one tried: {damaged[0]}")


def _restored(run: Path, path: Path, like: Any) -> Restored:
    """Restores the parameters; of a run of several seeds, those of the best one (while it is going on, of the first)."""
    seeds = read_config(run).get("seeds", 1)
    if seeds == 1:
        return restore(path, like, under=".params")
    summary = read_object(run / "summary.json") if (run / "summary.json").exists() else {}
    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * seeds), like)
    found = restore(path, several, under=".params")
    return found._replace(state=jax.tree.map(lambda leaf: leaf[summary.get("seed", 0)], found.state))


def _order(path: Path) -> tuple[bool, float, int]:
    """Ranks: by metric, then by age. One whose description cannot be read is tried last; `restore` then says why."""
    step = int(path.name.rpartition("_")[2])
    try:
        metric = read_object(path / "about.json").get("metric")
    except (OSError, ValueError):
        return True, float("inf"), -step
    return metric is None, 0.0 if metric is None else float(metric), -step
