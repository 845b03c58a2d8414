"""Runners that pass over one recording in lanes, an update a chunk: what a race of windows is made of."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

import tbptt
from experiments.support.common.equal_time import Runner
from experiments.support.common.forecasting import Model, make_optimizer, temp_bytes


def make_runners(
    name: str,
    model: Model,
    batch: tbptt.Batch,
    estimator: tbptt.Estimator,
    chunk: int,
    seeds: Sequence[int],
    clip: float,
    keep: Callable[[Any, tbptt.TrainState], Any] | None = None,
) -> tuple[list[Runner], int]:
    """Compiles a pass over the recording once, for all seeds; a turn is a pass, from the initial carry.

    Args:
      batch: `[T, lanes, ...]`; chunk: steps an update, must divide T; T is full BPTT.
      seeds: each one's own parameters; they take turns, for one lane is too little work to gain from a `vmap`.
      keep: as a `Runner` has it.

    Returns:
      a runner a seed, and the temporary bytes of one update.
    """
    optimizer, carry = make_optimizer(clip), model.cell.initial_carry(batch.inputs.shape[1:2])
    states = []
    for seed in seeds:
        params = tbptt.init_params(jax.random.key(seed), model.cell, model.readout)
        states.append(tbptt.init_state(estimator, optimizer, params, carry, batch))
    jitted: Any = tbptt.make_train_epoch(estimator, optimizer, chunk)
    epoch = jitted.lower(states[0], batch).compile()

    def turn(state: Any, rate: jax.Array, index: Any) -> tuple[Any, jax.Array]:
        del index
        state.opt_state[1].hyperparams["learning_rate"] = rate
        state, metrics = epoch(tbptt.rewind(estimator, state, carry, batch), batch)
        return state, metrics.loss.mean()

    example = jax.tree.map(lambda leaf: leaf[:chunk], batch)
    size = temp_bytes(tbptt.make_train_step, estimator, model, example)
    updates = batch.inputs.shape[0] // chunk
    runners = [
        Runner(f"{name}, seed {seed}", state, turn, updates, keep) for seed, state in zip(seeds, states, strict=True)
    ]
    return runners, size
