"""Many runs in one program, side by side: seeds, learning rates, or both."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jaxtyping import Array

from tbptt.types import Batch, PRNGKey

State = TypeVar("State")


def init_seeds(make_state: Callable[[PRNGKey], State], keys: Array) -> State:
    """Makes the states of S runs, every leaf with a leading axis `[S]`.

        states = stack([make_state(key) for key in keys])

    Args:
      make_state: `key -> state`, drawing parameters from the key:

            def make_state(key):
                draw, go_on = jax.random.split(key)
                params = init_params(draw, cell, readout)
                return init_state(estimator, optimizer, params, cell.initial_carry((lanes,)), batch, go_on)

      keys: `[S]`, for example `jax.random.split(jax.random.key(seed), S)`; consumed.

    Learning rates side by side: let the optimizer be `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`, its
    state then holds the rate, and `optax.tree_utils.tree_set(states, learning_rate=rates)` gives run i `rates[i]`.
    """
    return jax.jit(jax.vmap(make_state))(keys)


def over_seeds(step: Callable[[State, Batch], tuple[State, Any]]) -> Callable[[State, Batch], tuple[State, Any]]:
    """Makes a train step (or epoch) of S runs on the same batch, in one program.

        for s in range(S): states[s], metrics[s] = step(states[s], batch)

    A run never sees another: one that has become NaN leaves the others as they would be without it. Its cost is not saved.

    Args:
      step: `(state, batch) -> (state, metrics)`, of `make_train_step` or `make_train_epoch`.

    Returns:
      `step(states, batch) -> (states, metrics)`, all leaves `[S, ...]`; states of `init_seeds`, donated.
    """
    return jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
