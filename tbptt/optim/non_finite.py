"""What to do when numbers go wrong inside a compiled step: skip the update, or stop and say where."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from tbptt.numerics import is_floating
from tbptt.optim.clip import count, zeros
from tbptt.types import Params

STAGES = ("the gradient of {leaf}", "the update of {leaf} (its gradient was finite)", "the optimizer's state")


class SkipState(NamedTuple):
    """inner: the optimizer's state; skipped: whether the last update was; how many were in a row, and in all."""

    inner: Any
    skipped: Bool[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    skip_count: Int[Array, ""]


class StopState(NamedTuple):
    """Where it stopped; every field but inner a scalar, -1 while nothing happened.

    inner:          the optimizer's state, as it was before the bad update
    seen:           updates so far, the bad one and those after it not counted
    bad_update:     the update that went wrong, counted from 0 like `TrainState.step`
    first_bad_leaf: which leaf of params, counted as jax.tree.leaves counts (-1 for the optimizer's own state)
    bad_stage:      what was not finite: 0 its gradient, 1 its update, 2 the optimizer's state
    """

    inner: Any
    seen: Int[Array, ""]
    bad_update: Int[Array, ""]
    first_bad_leaf: Int[Array, ""]
    bad_stage: Int[Array, ""]


def skip_non_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skips every update that is not finite: parameters and optimizer state stay as they were, and it is counted.

        updates, new = optimizer.update(g, state, params)
        if g and updates are finite, and nothing finite in state became non-finite in new: go on;    else: updates = 0

    optax.apply_if_finite looks at g alone, gives in after `max_consecutive_errors` (it then accepts the NaN, without a
    word), and fails on bfloat16 gradients of float32 parameters. A finite g can do harm too: 1e30 in float32 makes
    Adam's second moment infinite, and that parameter never moves again. Here it never gives in: look at
    `skipped_in_a_row`, or use `stop_at_non_finite`.

        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    Put it last in the chain, around all that has a state or moves parameters (weight decay too). It acts on updates: a
    NaN that has got into the carry of a stream stays there, and every update after it is skipped; wrap the estimator in
    `reset_on_non_finite`. In float16 give Adam an eps that is not 0 there, `optax.adam(lr, eps=1e-4)`: with the default 1e-8 an entry
    whose gradient is 0 makes 0 / 0, which is no gradient's fault and is skipped all the same.

    Args:
      optimizer: static; any optax transformation.

    Returns:
      The transformation, with a `SkipState`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> SkipState:
        return SkipState(inner.init(params), jnp.zeros((), bool), *zeros(2))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        new, inner_state = inner.update(updates, state.inner, params, **extra)
        bad = jnp.any(_bad(updates, new, state.inner, inner_state))
        new, inner_state = _unless(bad, new, inner_state, state.inner)
        row = jnp.where(bad, count(state.skipped_in_a_row, bad), 0)
        return new, SkipState(inner_state, bad, row, count(state.skip_count, bad))

    return optax.GradientTransformationExtraArgs(init, update)


def stop_at_non_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Stops at the first update that is not finite (as `skip_non_finite` sees it) and remembers where.

    From then on every update is 0 and the optimizer's state stands still, so that parameters and state are those
    before the bad update. Nothing is raised inside a compiled step: ask after it.

        state, metrics = step(state, batch)
        raise_if_non_finite(state.opt_state, state.params)

    Args:
      optimizer: static; any optax transformation, weight decay and all.

    Returns:
      The transformation, with a `StopState`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> StopState:
        seen, *where = zeros(4)
        return StopState(inner.init(params), seen, *[value - 1 for value in where])

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, StopState]:
        new, inner_state = inner.update(updates, state.inner, params, **extra)
        flags = _bad(updates, new, state.inner, inner_state)
        stopped = state.bad_update >= 0
        bad = ~stopped & jnp.any(flags)
        new, inner_state = _unless(bad | stopped, new, inner_state, state.inner)
        n = len(flags) // 2  # leaves: n flags for gradients, n for updates, one for the state
        first = jnp.argmax(flags).astype(jnp.int32)
        leaf = jnp.where(first < 2 * n, first % max(n, 1), -1)
        return new, StopState(
            inner=inner_state,
            seen=count(state.seen, ~(bad | stopped)),
            bad_update=jnp.where(bad, state.seen, state.bad_update),
            first_bad_leaf=jnp.where(bad, leaf, state.first_bad_leaf),
            bad_stage=jnp.where(bad, first // max(n, 1), state.bad_stage),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def raise_if_non_finite(opt_state: Any, params: Params) -> None:
    """Raises if a `stop_at_non_finite` in the optimizer has stopped. For the host: it waits for the device.

    Args:
      opt_state: the whole optimizer state, as the train step returns it.
      params: the parameters, for the names of their leaves.

    Raises:
      FloatingPointError: it has; the message names the leaf, for example `.cell.w_h`, and the update.
      ValueError: there is no `stop_at_non_finite` in this optimizer.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, StopState))
    stops = [leaf for leaf in leaves if isinstance(leaf, StopState)]
    if not stops:
        raise ValueError("raise_if_non_finite: the optimizer must be wrapped in stop_at_non_finite, but has no StopState")
    names = [jax.tree_util.keystr(path) or "params" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for stop in jax.device_get(stops):
        if stop.bad_update >= 0:
            what = STAGES[int(stop.bad_stage)].format(leaf=names[stop.first_bad_leaf])
            raise FloatingPointError(
                f"{what} is not finite at update {stop.bad_update} (counted from 0). Parameters and optimizer state are "
                "those before it; clip (clip_by_global_norm, ClippedCell), lower the learning rate, or skip "
                "(skip_non_finite)"
            )


def _bad(updates: Any, new: Any, state: Any, new_state: Any) -> Bool[Array, " flags"]:
    """Flags for each leaf's gradient, each leaf's update, and once for numbers of the state that were finite before."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    lost = [jnp.any(jnp.isfinite(old) & ~jnp.isfinite(now)) for old, now in pairs if is_floating(now)]
    leaves = [jnp.any(~jnp.isfinite(leaf)) for tree in (updates, new) for leaf in jax.tree.leaves(tree)]
    return jnp.stack([*leaves, jnp.any(jnp.array(lost, bool))])


def _unless(bad: Bool[Array, ""], new: Any, new_state: Any, old_state: Any) -> tuple[Any, Any]:
    """(new, new_state), or zeros and the state as it was; nothing non-finite gets through by a product with 0."""
    new = jax.tree.map(lambda leaf: jnp.where(bad, jnp.zeros_like(leaf), leaf), new)
    return new, jax.tree.map(lambda old, now: jnp.where(bad, old, now), old_state, new_state)
