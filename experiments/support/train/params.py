"""Load the parameters of a run from its best intact checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import jax

import tbptt
from experiments.support.common.console import say
from experiments.support.common.json_file import read_object
from experiments.support.train.linear import LINEAR_FILE, Linear
from experiments.support.train.model import Model, init_params, make_model
from experiments.support.train.task import Task
from tbptt.checkpoints import CheckpointDamaged, Restored, finished, restore


def load_params(
    run: Path, model: Model, seeds: int = 1, seed: int | None = None
) -> tuple[Any, Restored]:
    """Restore the parameters alone, without locking the run, which may still be training.

    Checkpoints are tried in the order of their validation metric. Those without a metric follow,
    the newest first. A damaged checkpoint is skipped, with a warning that names it.

    Args:
        run: the folder of the run.
        model: the model, rebuilt from its settings.
        seeds: number of seeds of the run.
        seed: index of the seed; None for the one in summary.json.

    Returns:
        (params, restored): the parameters of one model, and the checkpoint that contains them.

    Raises:
        ValueError: `seed` is out of range, or is None and the run has not ended.
        FileNotFoundError: there is no checkpoint.
        CheckpointDamaged: no checkpoint is intact.
        CheckpointMismatch: the checkpoint is of another model or version; the message names the
          difference.
    """
    which = _seed(run, seeds, seed)
    like = jax.eval_shape(lambda key: init_params(key, model), jax.random.key(0))
    if seeds > 1:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), like
        )
    paths = sorted(finished(run / "checkpoints"), key=_order)
    if not paths:
        raise FileNotFoundError(
            f"{run} has no checkpoint to predict with; continue by python -m experiments.train "
            f"--resume {run}"
        )
    damaged: list[CheckpointDamaged] = []
    for path in paths:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = restore(path, like, prefix=".params")
        except CheckpointDamaged as error:
            damaged.append(error)
            continue
        for message in (
            *(f"skipping a damaged checkpoint: {error}" for error in damaged),
            *(w.message for w in caught),
        ):
            say(f"warning: {message}", style="bold yellow")
        return found.state if seeds == 1 else jax.tree.map(
            lambda leaf: leaf[which], found.state
        ), found
    raise CheckpointDamaged(
        f"all {len(paths)} checkpoints of {run} are damaged. The first one tried: {damaged[0]}"
    )


def model_of(
    run: Path, task: Task, settings: dict[str, Any], unroll: tbptt.UnrollFn = tbptt.unroll
) -> Model:
    """Return the model of a run, with its linear forecast if it has one."""
    linear = Linear.load(run / LINEAR_FILE) if settings.get("linear") else None
    lag = settings.get("longest_lag")
    cell, hidden, layers = (settings[name] for name in ("cell", "hidden", "layers"))
    return make_model(task, cell, hidden, layers, unroll, linear, lag)


def _seed(run: Path, seeds: int, seed: int | None) -> int:
    if seeds == 1:
        if seed is not None:
            raise ValueError(
                f"--seed selects one of several seeds, but {run} has only one; omit --seed"
            )
        return 0
    if seed is None and (run / "summary.json").exists():
        seed = read_object(run / "summary.json")["seed"]
    if seed is None or not 0 <= seed < seeds:
        raise ValueError(
            f"--seed must be the index of one of the {seeds} seeds of {run}, 0 .. {seeds - 1}; got "
            f"{seed}"
        )
    return seed


def _order(path: Path) -> tuple[int, float, int]:
    """Return the sort key of a checkpoint: its metric, then its age.

    Unreadable checkpoints are first, so that `restore` raises the error that describes them.
    """
    step = int(path.name.rpartition("_")[2])
    try:
        metric = read_object(path / "metadata.json")["metric"]
    except (OSError, ValueError, KeyError):
        return 0, 0.0, -step
    return (2, 0.0, -step) if metric is None else (1, float(metric), -step)
