"""Compile training runs over one recording for `equal_time.run_in_turns`."""

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
    """Compile a pass over the recording, which is one turn, once for all seeds.

    Args:
      batch: `[T, B, ...]`.
      chunk: number of steps per update, a divisor of T; T is full BPTT.
      seeds: one set of initial parameters each; seeds run in turns, as a `vmap` over them is not
        faster on a CPU.
      keep: see `Runner`.

    Returns:
      One runner per seed, and the temporary bytes of one update.
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
        Runner(f"{name}, seed {seed}", state, turn, updates, keep)
        for seed, state in zip(seeds, states, strict=True)
    ]
    return runners, size
