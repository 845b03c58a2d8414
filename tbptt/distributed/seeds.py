"""Train several runs in one program, with different seeds or learning rates."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jaxtyping import Array

from tbptt.types import Batch, PRNGKey

State = TypeVar("State")
Result = TypeVar("Result")


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
    step: Callable[[State, Batch], tuple[State, Any]], *, vectorized: bool | None = None
) -> Callable[[State, Batch], tuple[State, Any]]:
    """Return a train step (or epoch) of S runs on the same batch, in one program.

        for s in range(S): states[s], metrics[s] = step(states[s], batch)

    Runs are independent: a run that has become NaN does not affect the others, but its
    computations continue.

    Args:
      step: `(state, batch) -> (state, metrics)`, from `make_train_step` or `make_train_epoch`.
      vectorized: static, as in `map_seeds`; None: one run after another on a CPU, all runs in
        each operation on other devices.

    Returns:
      `step(states, batch) -> (states, metrics)`, with all leaves `[S, ...]`; it donates states,
      which come from `init_seeds`.
    """

    def run(states: State, batch: Batch) -> tuple[State, Any]:
        return map_seeds(lambda state: step(state, batch), states, vectorized=vectorized)

    return jax.jit(run, donate_argnums=0)


def map_seeds(
    function: Callable[[Any], Result], xs: Any, *, vectorized: bool | None = None
) -> Result:
    """Apply a function to each of S entries, within the program that calls it.

        results = stack([function(xs[s]) for s in range(S)])

    On a CPU, `jax.vmap` adds an axis to the weights, and each small product of a step becomes a
    slower batched one; compiled loops (`tbptt.backends`) are not used at all. It took 1.6 to 5
    times as long as `jax.lax.map` for an update of 5 to 8 runs. On other devices one run uses a
    small part of the hardware, and `jax.vmap` uses the rest. The results are equal to rounding.

    Args:
      function: `x -> result`, pytrees.
      xs: leaves `[S, ...]`, for example S keys or states.
      vectorized: static; True: `jax.vmap`, False: `jax.lax.map`, None: `jax.lax.map` where the
        program is compiled for a CPU, else `jax.vmap`.

    Returns:
      leaves `[S, ...]`.

    Raises:
      TypeError: vectorized is neither a bool nor None.
    """
    if not (vectorized is None or isinstance(vectorized, bool)):
        raise TypeError(f"vectorized must be True, False or None; got {vectorized!r}")
    together = jax.vmap(function)

    def in_turn(xs: Any) -> Result:
        return jax.lax.map(function, xs)

    if vectorized is None:
        return jax.lax.platform_dependent(xs, cpu=in_turn, default=together)
    return together(xs) if vectorized else in_turn(xs)
