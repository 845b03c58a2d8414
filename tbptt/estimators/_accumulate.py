"""What all estimators share: a checked loss function, and sums over windows that are divided once by the total weight."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.types import Batch, Carry, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import length, mean, means, total_weight


class WindowInfo(NamedTuple):
    """What happened in each of the n windows of one `estimate` call, `[n]` each.

    losses:  the weighted mean loss of the window's new steps (0 where their weight is 0)
    weights: the total weight of the window's new steps
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]


# (params, memory, window) -> (loss_sum, grads of that sum, memory): one window's work.
WindowFn = Callable[[Params, Memory, Batch], tuple[Float[Array, ""], Params, Memory]]


class Sums(NamedTuple):
    """Sums over n windows, not yet divided by the weight: losses and weights `[n]`, and grads like params."""

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    grads: Params


def accumulate(window_fn: WindowFn, params: Params, memory: Memory, windows: Batch) -> tuple[Memory, Sums]:
    """Sums a window's gradient over windows `[n, k1, *batch, ...]`.

    for window in windows:
        loss_sum, grads_sum, memory += window_fn(params, memory, window)
    """

    def body(state: tuple[Memory, Params], window: Batch) -> tuple[tuple[Memory, Params], Any]:
        memory, grads = state
        loss_sum, window_grads, memory = window_fn(params, memory, window)
        return (memory, jax.tree.map(jnp.add, grads, window_grads)), (loss_sum, total_weight(window))

    if length(windows) == 1:  # one step of online training needs no loop
        window = jax.tree.map(lambda a: a[0], windows)
        loss_sum, grads, memory = window_fn(params, memory, window)
        return memory, Sums(loss_sum[None], total_weight(window)[None], grads)
    zeros = jax.tree.map(jnp.zeros_like, params)
    (memory, grads), (losses, weights) = jax.lax.scan(body, (memory, zeros), windows)
    return memory, Sums(losses, weights, grads)


def weighted_mean(memory: Memory, sums: Sums) -> Gradient:
    """Divides once by the total weight."""
    loss, grads = means(jnp.sum(sums.losses), sums.grads, jnp.sum(sums.weights))
    return Gradient(loss, grads, memory, WindowInfo(mean(sums.losses, sums.weights), sums.weights))


def checked_loss(loss_fn: LossFn) -> LossFn:
    """Wraps a user's loss function: what it returns is checked where it is received, and errors name it.

    Raises:
      TypeError: it does not return a pair (loss_sum, carry), or loss_sum is not a floating scalar.
      ValueError: the carry that it returns differs in structure, shape or dtype from the one it was given.
    """
    name = getattr(loss_fn, "__qualname__", None) or type(loss_fn).__name__

    def loss(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        out = loss_fn(params, carry, batch)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"{name} must return a pair (loss_sum, carry); got {type(out).__name__}: {out!r}")
        loss_sum, new = out
        if np.shape(loss_sum) != () or not jnp.issubdtype(jnp.result_type(loss_sum), jnp.floating):
            raise TypeError(
                f"{name} must return a floating scalar first, the weighted SUM over steps and batch; got shape "
                f"{np.shape(loss_sum)}, dtype {jnp.result_type(loss_sum)}"
            )
        if jax.tree.structure(new) != jax.tree.structure(carry):
            raise ValueError(
                f"{name} must return the carry in the structure it was given, {jax.tree.structure(carry)}; got "
                f"{jax.tree.structure(new)}"
            )
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(new), strict=True):
            if np.shape(a) != np.shape(b) or jnp.result_type(a) != jnp.result_type(b):
                raise ValueError(
                    f"{name} must return carry{jax.tree_util.keystr(path)} as it was given, "
                    f"{jnp.result_type(a)}{list(np.shape(a))}; got {jnp.result_type(b)}{list(np.shape(b))}. Batch, "
                    "carry and params must agree in sizes and dtype"
                )
        return jnp.asarray(loss_sum), new

    return loss


def require_key(key: PRNGKey | None, name: str, what: str) -> PRNGKey:
    """Returns the key; an error names the estimator that draws, and what, if there is none."""
    if key is None:
        raise ValueError(
            f"{name} draws {what}, so estimate needs a key; got None. Pass estimate(..., key=jax.random.key(seed)), "
            "or in training init_state(..., key=jax.random.key(seed))"
        )
    return key
