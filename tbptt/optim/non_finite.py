"""Policies on non-finite updates inside a compiled step.

Skip the update, stop and report, or shrink the recurrent weights (Pascanu et al.).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from tbptt.numerics import global_norm, is_floating
from tbptt.optim.clip import count, zeros
from tbptt.types import Params

STAGES = (
    "the gradient of {leaf}",
    "the update of {leaf} (its gradient was finite)",
    "the optimizer's state",
)


class SkipState(NamedTuple):
    """State of `skip_non_finite`.

    inner:            the state of the optimizer
    skipped:          scalar, whether the last update was skipped
    skipped_in_a_row: scalar, the number of consecutive skipped updates up to the last
    skip_count:       scalar, the number of all skipped updates
    """

    inner: Any
    skipped: Bool[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    skip_count: Int[Array, ""]


class StopState(NamedTuple):
    """State of `stop_at_non_finite`; every field except inner is a scalar.

    inner:          the state of the optimizer, after a stop that before the bad update
    seen:           number of updates before the bad one
    bad_update:     index of the bad update, from 0 like `TrainState.step`; -1 = none so far
    first_bad_leaf: index of the leaf of params, in the order of `jax.tree.leaves`; -1 = none so
      far, or the state of the optimizer
    bad_stage:      what was not finite: 0 the gradient, 1 the update, 2 the state of the optimizer;
      -1 = none so far
    """

    inner: Any
    seen: Int[Array, ""]
    bad_update: Int[Array, ""]
    first_bad_leaf: Int[Array, ""]
    bad_stage: Int[Array, ""]


class ShrinkState(NamedTuple):
    """State of `shrink_non_finite`.

    shrunk:       scalar, whether the last gradient was replaced
    shrink_count: scalar, the number of replaced gradients
    """

    shrunk: Bool[Array, ""]
    shrink_count: Int[Array, ""]


def skip_non_finite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Skip every update that is not finite, and count it.

        updates, new = optimizer.update(g, state, params)
        if not (g and updates are finite, and every entry finite in state is finite in new):
            updates, new = 0, state

    Parameters and optimizer state do not change at a skipped update. Unlike
    `optax.apply_if_finite`, this also checks the updates and the optimizer state, never accepts a
    non-finite update, and supports bfloat16 gradients of float32 parameters. (A finite g can be
    harmful too: 1e30 in float32 makes the second moment of Adam infinite, and that parameter never
    changes again.) To detect that every update is skipped, monitor `skipped_in_a_row` or use
    `stop_at_non_finite`.

        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    Put it last in the chain, around everything that has a state or changes parameters (weight decay
    too). It acts on updates only: a NaN in the carry of a stream remains, and every later update is
    skipped. To restart the stream, wrap the estimator in `reset_on_non_finite`. In float16 use
    `optax.adam(lr, eps=1e-4)`: the default eps of 1e-8 is 0 there, and an entry with gradient 0 is
    then 0 / 0 and skipped.

    Args:
      optimizer: static; any optax transformation.

    Returns:
      An optax transformation with a `SkipState`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> SkipState:
        return SkipState(inner.init(params), jnp.zeros((), bool), *zeros(2))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        new, inner_state = inner.update(updates, state.inner, params, **extra)
        bad = jnp.any(_bad(updates, new, state.inner, inner_state))
        new, inner_state = _unless(bad, new, inner_state, state.inner)
        in_a_row = jnp.where(bad, count(state.skipped_in_a_row, bad), 0)
        return new, SkipState(inner_state, bad, in_a_row, count(state.skip_count, bad))

    return optax.GradientTransformationExtraArgs(init, update)


def stop_at_non_finite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Stop at the first update that is not finite, and record where.

    The condition is that of `skip_non_finite`. From then on every update is 0 and the state of the
    optimizer is constant, so that parameters and state are those before the bad update. A compiled
    step raises nothing: call `raise_if_non_finite` after it.

        state, metrics = step(state, batch)
        raise_if_non_finite(state.opt_state, state.params)

    Args:
      optimizer: static; any optax transformation, including weight decay.

    Returns:
      An optax transformation with a `StopState`.
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
        n = len(flags) // 2  # n flags for gradients, n for updates, one for the state
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
    """Raise an error if a `stop_at_non_finite` in the optimizer has stopped.

    Call it outside of jit; it waits for the device.

    Args:
      opt_state: the whole optimizer state, as the train step returns it.
      params: the parameters, for the names of their leaves.

    Raises:
      FloatingPointError: it has stopped; the message names the leaf, for example `.cell.w_h`, and
        the update.
      ValueError: there is no `stop_at_non_finite` in this optimizer.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, StopState))
    stops = [leaf for leaf in leaves if isinstance(leaf, StopState)]
    if not stops:
        raise ValueError(
            "raise_if_non_finite: opt_state has no StopState; the optimizer must be wrapped in "
            "stop_at_non_finite"
        )
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path) or "params" for path, _ in paths]
    for stop in jax.device_get(stops):
        if stop.bad_update >= 0:
            what = STAGES[int(stop.bad_stage)].format(leaf=names[stop.first_bad_leaf])
            raise FloatingPointError(
                f"{what} is not finite at update {stop.bad_update} (counted from 0). Parameters "
                "and optimizer state are those before it. Clip (clip_by_global_norm, ClippedCell), "
                "lower the learning rate, or skip such updates (skip_non_finite)"
            )


def leaves_named(*names: str) -> Callable[[Params], Any]:
    """Return a mask function that selects leaves by the last name of their path.

    For example `leaves_named("w_h")` selects `.cell.w_h` and `["layer"]["w_h"]`.

    Returns:
      A function `params -> tree of booleans`, as the masks of optax.
    """

    def mask(params: Params) -> Any:
        def selected(path: Any, _: Any) -> bool:
            if not path:
                return False
            return str(getattr(path[-1], "name", getattr(path[-1], "key", None))) in names

        return jax.tree_util.tree_map_with_path(selected, params)

    return mask


recurrent_weights = leaves_named("w_h", "w_n", "a")  # those of the cells of this library


def shrink_non_finite(
    fraction: float = 0.02,
    max_norm: float = 1e10,
    mask: Callable[[Params], Any] = recurrent_weights,
) -> optax.GradientTransformation:
    """Replace a non-finite or huge gradient by one that shrinks the recurrent weights.

        g                                          if |g| is finite and at most max_norm
        fraction * w  for the selected leaves,
        0             for all others               otherwise

    Under gradient descent the selected weights w then shrink by the factor 1 - lr * fraction, and
    the other parameters do not change, so the recurrence becomes more contracting. An adaptive
    optimizer rescales the step. Put this transformation first:

        optimizer = optax.chain(shrink_non_finite(), clip_by_global_norm(1.0), optax.sgd(0.1))

    Parameters that are NaN or inf themselves remain so. If the carry of a stream is NaN, all later
    gradients are NaN and the weights would shrink to 0; wrap the estimator in
    `reset_on_non_finite`.

    Args (all static):
      fraction: positive, see above.
      max_norm: positive; larger global norms are replaced; inf replaces non-finite gradients only.
      mask: `params -> tree of booleans` like params, see `leaves_named`; by default the recurrent
        weights of the cells of this library, the leaves named w_h, w_n or a.

    Returns:
      An optax transformation with a `ShrinkState`; its update needs params.

    Raises:
      ValueError: fraction or max_norm is not positive; at init: mask selects no leaf; at update:
        params is None.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural
    networks*, ICML 2013 (the published code of the paper).
    """
    if not (fraction > 0 and max_norm > 0):
        raise ValueError(
            "shrink_non_finite: fraction and max_norm must be positive; got "
            f"fraction={fraction}, max_norm={max_norm}"
        )

    def init(params: Params) -> ShrinkState:
        if not any(jax.tree.leaves(mask(params))):
            paths = jax.tree_util.tree_leaves_with_path(params)
            names = [jax.tree_util.keystr(path) for path, _ in paths]
            raise ValueError(
                f"shrink_non_finite's mask selects none of the leaves {names}; pass "
                "mask=leaves_named('...') with the name of the recurrent weights"
            )
        return ShrinkState(jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ShrinkState]:
        if params is None:
            raise ValueError(
                "shrink_non_finite needs the parameters; got params=None. Call "
                "update(grads, state, params)"
            )
        norm = global_norm(updates)
        is_bad = ~jnp.isfinite(norm) | (norm > max_norm)

        def replace(selected: bool, g: Array, w: Array) -> Array:
            shrinking = (fraction * w).astype(g.dtype) if selected else jnp.zeros_like(g)
            return jnp.where(is_bad, shrinking, g)

        new = jax.tree.map(replace, mask(params), updates, params)
        return new, ShrinkState(is_bad, count(state.shrink_count, is_bad))

    return optax.GradientTransformation(init, update)


def _bad(updates: Any, new: Any, state: Any, new_state: Any) -> Bool[Array, " flags"]:
    """Return flags for the gradient of each leaf, the update of each leaf, and the state.

    The state is bad if an entry that was finite is not finite now.
    """
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True)
    lost = [
        jnp.any(jnp.isfinite(old) & ~jnp.isfinite(now)) for old, now in pairs if is_floating(now)
    ]
    leaves = [
        jnp.any(~jnp.isfinite(leaf)) for tree in (updates, new) for leaf in jax.tree.leaves(tree)
    ]
    return jnp.stack([*leaves, jnp.any(jnp.array(lost, bool))])


def _unless(bad: Bool[Array, ""], new: Any, new_state: Any, old_state: Any) -> tuple[Any, Any]:
    """Return (new, new_state), or if bad (zeros, old_state).

    It selects; a product with 0 would pass NaN.
    """
    new = jax.tree.map(lambda leaf: jnp.where(bad, jnp.zeros_like(leaf), leaf), new)
    return new, jax.tree.map(lambda old, now: jnp.where(bad, old, now), old_state, new_state)
