"""What estimators share: checks of a loss function, sums over windows, derivatives of a segment."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.numerics import (
    cast_like,
    floating_leaves,
    replace_floating_leaves,
    sum_dtype,
    zeros_for_sums,
)
from tbptt.types import Batch, Carry, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import length, mean, means, total_weight


class WindowInfo(NamedTuple):
    """Losses and weights of the n windows of one `estimate` call.

    losses:  `[n]`, the weighted mean loss of the new steps of each window (0 if their weight is 0)
    weights: `[n]`, the total weight of the new steps of each window
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]


# (params, memory, window) -> (loss_sum, gradient of that sum, memory)
WindowFn = Callable[[Params, Memory, Batch], tuple[Float[Array, ""], Params, Memory]]


class Sums(NamedTuple):
    """Sums over n windows, before the division by the weight.

    loss_sums, weights: `[n]`, the weighted loss sum and the total weight of each window
    grads:              the sum of the gradients of all windows, like params but in float32 at least
    """

    loss_sums: Float[Array, " n"]
    weights: Float[Array, " n"]
    grads: Params


def accumulate(
    window_fn: WindowFn, params: Params, memory: Memory, windows: Batch
) -> tuple[Memory, Sums]:
    """Sum the gradients of the windows `[n, k1, *batch, ...]`, one window after another.

    for j, window in enumerate(windows):
        loss_sums[j], window_grads, memory = window_fn(params, memory, window)
        grads += window_grads
    """

    def body(state: tuple[Memory, Params], window: Batch) -> tuple[tuple[Memory, Params], Any]:
        memory, grads = state
        loss_sum, window_grads, memory = window_fn(params, memory, window)
        grads = jax.tree.map(jnp.add, grads, window_grads)
        return (memory, grads), (_in_sum_dtype(loss_sum), total_weight(window))

    if length(windows) == 1:  # one step of online training needs no loop
        window = jax.tree.map(lambda a: a[0], windows)
        loss_sum, grads, memory = window_fn(params, memory, window)
        return memory, Sums(_in_sum_dtype(loss_sum)[None], total_weight(window)[None], grads)
    (memory, grads), (losses, weights) = jax.lax.scan(
        body, (memory, zeros_for_sums(params)), windows
    )
    return memory, Sums(losses, weights, grads)


def _in_sum_dtype(loss_sum: Array) -> Array:
    return loss_sum.astype(sum_dtype(loss_sum.dtype))


def weighted_mean(params: Params, memory: Memory, sums: Sums, batch: Batch) -> Gradient:
    """Return the gradient of the mean loss over a batch, in the dtypes of params."""
    loss, grads = means(jnp.sum(sums.loss_sums), sums.grads, jnp.sum(sums.weights), batch)
    info = WindowInfo(mean(sums.loss_sums, sums.weights), sums.weights)
    return Gradient(loss, cast_like(grads, params), memory, info)


def name_of(loss_fn: LossFn) -> str:
    """Return the name of a loss function, for error messages."""
    return getattr(loss_fn, "__qualname__", None) or type(loss_fn).__name__


def checked_loss(loss_fn: LossFn) -> LossFn:
    """Wrap a loss function so that each call checks what it returns.

    Raises:
      TypeError: it does not return a pair (loss_sum, carry), or loss_sum is not a floating scalar.
      ValueError: the carry differs from the argument in structure, shape or dtype.
    """
    name = name_of(loss_fn)

    def loss(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        # nnx refuses variables that were made outside of a scan or cond; this makes them anew.
        params = jax.tree.map(lambda leaf: leaf, params)
        out = loss_fn(params, carry, batch)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                f"{name} must return a pair (loss_sum, carry); got {type(out).__name__}: {out!r}"
            )
        loss_sum, new = out
        if not jax.tree_util.all_leaves([loss_sum]):
            raise TypeError(
                f"{name} must return (loss_sum, carry), in this order; got a first value of type "
                f"{type(loss_sum).__name__}, with the structure {jax.tree.structure(loss_sum)}"
            )
        if np.shape(loss_sum) != () or not jnp.issubdtype(jnp.result_type(loss_sum), jnp.floating):
            raise TypeError(
                f"{name} must return a floating scalar first, the weighted SUM over steps and "
                f"batch; got shape {np.shape(loss_sum)}, dtype {jnp.result_type(loss_sum)}"
            )
        _check_same_carry(name, carry, new)
        return jnp.asarray(loss_sum), new

    return loss


def _check_same_carry(name: str, carry: Carry, new: Carry) -> None:
    if jax.tree.structure(new) != jax.tree.structure(carry):
        raise ValueError(
            f"{name} must return a carry of the same structure as its argument, "
            f"{jax.tree.structure(carry)}; got {jax.tree.structure(new)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    for (path, a), b in zip(leaves, jax.tree.leaves(new), strict=True):
        if np.shape(a) != np.shape(b) or jnp.result_type(a) != jnp.result_type(b):
            raise ValueError(
                f"{name} must return carry{jax.tree_util.keystr(path)} with the shape and dtype of "
                f"its argument, {jnp.result_type(a)}{list(np.shape(a))}; got "
                f"{jnp.result_type(b)}{list(np.shape(b))}. Batch, carry and params must agree in "
                "sizes and dtype"
            )


def require_key(key: PRNGKey | None, name: str, what: str) -> PRNGKey:
    """Return the key; raise a ValueError that names the estimator and its random draws if None."""
    if key is None:
        raise ValueError(
            f"{name} draws {what}, so estimate needs a key; got None. Pass "
            "estimate(..., key=jax.random.key(seed)), or in training "
            "init_state(..., key=jax.random.key(seed))"
        )
    return key


# The floating leaves of a carry, or cotangents of them. Other leaves (counters) have no cotangent.
Floating: TypeAlias = list[Array]


def run_segment(
    loss_fn: LossFn, params: Params, floating: Floating, carry: Carry, segment: Batch
) -> tuple[Float[Array, ""], Floating]:
    """Run a segment from `carry` with its floating leaves replaced by `floating`.

    Returns:
      `(loss_sum, floating leaves of the leaving carry)`.
    """
    loss_sum, leaving = loss_fn(params, replace_floating_leaves(carry, floating), segment)
    return loss_sum, floating_leaves(leaving)


def segment_vjp(
    loss_fn: LossFn, params: Params, carry: Carry, segment: Batch
) -> Callable[[Floating], tuple[Params, Floating]]:
    """Linearize a segment at its entering carry, for any number of cotangents.

    d_params, d_entering = vjp(d_leaving)      # of  loss_sum + <d_leaving, leaving carry>
    """
    (loss_sum, _), vjp = jax.vjp(
        lambda p, c: run_segment(loss_fn, p, c, carry, segment), params, floating_leaves(carry)
    )
    one = jnp.ones_like(loss_sum)
    return lambda d_leaving: vjp((one, d_leaving))


def grad_of_losses(
    loss_fn: LossFn, params: Params, carries: Carry, segments: Batch
) -> tuple[Params, Floating]:
    """Differentiate the summed loss of S independent segments `[S, ...]`.

    Returns:
      The gradient by params, and by the floating leaves `[S, ...]` of the entering carries.
    """

    def total(params: Params, floating: Floating) -> Array:
        run = jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[0])
        return jnp.sum(run(floating, carries, segments))

    return jax.grad(total, argnums=(0, 1))(params, floating_leaves(carries))


def vjp_of_carries(
    loss_fn: LossFn, params: Params, carries: Carry, segments: Batch, d_leaving: Floating
) -> tuple[Params, Floating]:
    """Pull cotangents `[S, ...]` of the leaving carries back through S segments.

    The losses of the segments do not take part: 0 times an infinite derivative would be NaN.

    Returns:
      As `grad_of_losses`.
    """

    def leaving(params: Params, floating: Floating) -> Floating:
        run = jax.vmap(lambda f, c, b: run_segment(loss_fn, params, f, c, b)[1])
        return run(floating, carries, segments)

    return jax.vjp(leaving, params, floating_leaves(carries))[1](d_leaving)
