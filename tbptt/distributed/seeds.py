"""Train several runs in one program, with different seeds or learning rates."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jaxtyping import Array

from tbptt.types import Batch, PRNGKey

State = TypeVar("State")


def init_seeds(make_state: Callable[[PRNGKey], State], keys: Array) -> State:
    """Create the states of S runs; every leaf has a leading axis `[S]`.

        states = stack([make_state(key) for key in keys])

    Args:
      make_state: `key -> state`, which draws the parameters from the key:

            def make_state(key):
                init_key, train_key = jax.random.split(key)
                params = init_params(init_key, cell, readout)
                carry = cell.initial_carry((batch_size,))
                return init_state(estimator, optimizer, params, carry, batch, train_key)

      keys: `[S]`, for example `jax.random.split(jax.random.key(seed), S)`; consumed.

    For different learning rates, use `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`,
    whose state holds the rate: `optax.tree_utils.tree_set(states, learning_rate=rates)` sets the
    rate of run i to `rates[i]`.
    """
    return jax.jit(jax.vmap(make_state))(keys)


def over_seeds(
    step: Callable[[State, Batch], tuple[State, Any]],
) -> Callable[[State, Batch], tuple[State, Any]]:
    """Return a train step (or epoch) of S runs on the same batch, in one program.

        for s in range(S): states[s], metrics[s] = step(states[s], batch)

    Runs are independent: a run that has become NaN does not affect the others, but its
    computations continue.

    Args:
      step: `(state, batch) -> (state, metrics)`, from `make_train_step` or `make_train_epoch`.

    Returns:
      `step(states, batch) -> (states, metrics)`, with all leaves `[S, ...]`; it donates states,
      which come from `init_seeds`.
    """
    return jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
