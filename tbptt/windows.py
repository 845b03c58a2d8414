"""Functions that split time into windows, scan over segments, and sum the weights of steps."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.numerics import sum_dtype, zero_where_masked
from tbptt.types import Batch

Tree = TypeVar("Tree")
LEAST_FRACTION = 1e-3  # of the absolute weights that the weights must sum to


def length(batch: Any) -> int:
    """Return T, the common leading size of all leaves.

    Raises:
      ValueError: there is no leaf, a leaf is a scalar, or leaves disagree; the message names them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(
            "a batch needs at least one array with a leading time axis; got a pytree without leaves"
        )
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} needs a leading time axis [T, ...]; "
                "got a scalar"
            )
    sizes = {f"batch{jax.tree_util.keystr(path)}": np.shape(leaf)[0] for path, leaf in leaves}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has T={size}" for name, size in sizes.items())
        raise ValueError(f"the leaves of a batch must share their leading time axis; got {listed}")
    return next(iter(sizes.values()))


def check_positive_int(name: str, value: object, unit: str = "step") -> int:
    """Return `value` if it is a static int >= 1; raise a TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be a Python int (it determines static shapes); got {value!r} of "
            f"type {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"{name} must be at least 1 {unit}; got {name}={value}")
    return int(value)


def count_windows(T: int, k1: int, *, name: str = "k1") -> int:
    """Return the number of windows of k1 steps in T steps.

    T must be a multiple of k1: a tail is never dropped. The error message calls k1 `name`.
    """
    if T < k1 or T % k1:
        padded = -(-max(T, 1) // k1) * k1
        raise ValueError(
            f"T must be a positive multiple of {name}; got T={T}, {name}={k1}. Pad the batch to "
            f"T={padded} with weights=0 on the added steps (or mask=False, which also keeps the "
            f"carry unchanged), or choose another {name}. A batch is [T, *batch, ...]: time first"
        )
    return T // k1


def split_windows(tree: Tree, k1: int, *, name: str = "k1") -> Tree:
    """Reshape every leaf `[T, ...]` to `[T // k1, k1, ...]`.

    Window j holds the steps j*k1 .. (j+1)*k1 - 1. T must be a multiple of k1, see `count_windows`.
    """
    n = count_windows(length(tree), k1, name=name)
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (n, k1, *np.shape(leaf)[1:])), tree)


def split(tree: Tree, *points: int) -> list[Tree]:
    """Split every leaf along time before each of the given steps.

    For example `split(b, 3)` is `[b[:3], b[3:]]`.
    """
    edges = [0, *points, length(tree)]
    return [
        jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], tree)
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def scan_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    steps: Any,
    n: int,
) -> tuple[Any, Any]:
    """Scan `run(carry, block) -> (carry, out)` over n blocks of equal length.

    Returns:
      The last carry and the stacked outputs, with a leading axis `[n]`. One block needs no loop.
    """
    blocks = jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), steps)
    if n > 1:
        return jax.lax.scan(run, carry, blocks)
    carry, out = run(carry, jax.tree.map(lambda a: a[0], blocks))
    return carry, jax.tree.map(lambda a: a[None], out)


def scan_segments(
    run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, length: int
) -> tuple[Any, Any]:
    """Scan `run(carry, segment) -> (carry, out)` over segments of `length` steps.

        outs = []                                                             # as a plain loop
        for start in range(0, T, length):
            carry, out = run(carry, steps[start : start + length])
            outs.append(out)
        return carry, concatenate(outs)

    T need not be a multiple of `length`: the last segment is the remainder. The leading axis of an
    output need not be time.
    """
    T = np.shape(jax.tree.leaves(steps)[0])[0]
    n, remainder = divmod(T, length)
    even = jax.tree.map(lambda a: a[: n * length], steps)
    tail = jax.tree.map(lambda a: a[n * length :], steps)
    if n == 0:
        return run(carry, tail)
    carry, outs = scan_blocks(run, carry, even, n)
    outs = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outs)
    if not remainder:
        return carry, outs
    carry, tail_out = run(carry, tail)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, tail_out)


def step_shape(batch: Batch) -> tuple[int, ...]:
    """Return `[T, *batch]`, the shape of the per-step arrays of a batch.

    It is the shape of weights, mask or resets if one of them is given. Otherwise it is the shape of
    inputs without the last axis (floats), or the whole shape (integer symbols).

    Raises:
      ValueError: weights, mask and resets disagree, or floating inputs have no feature axis.
    """
    shapes = {name: np.shape(getattr(batch, name)) for name in ("weights", "mask", "resets")}
    given = {name: shape for name, shape in shapes.items() if getattr(batch, name) is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in given.items())
        raise ValueError(
            f"weights, mask and resets must all have the shape [T, *batch]; got {listed}"
        )
    if given:
        return next(iter(given.values()))
    symbols = not jnp.issubdtype(jnp.result_type(batch.inputs), jnp.floating)
    inputs = np.shape(batch.inputs)
    if not symbols and len(inputs) < 2:
        raise ValueError(
            f"batch.inputs must be [T, *batch, D]; got shape {inputs}. Add a feature axis "
            "(inputs[..., None]), or give batch.weights, whose shape is then taken for [T, *batch]"
        )
    return inputs if symbols else inputs[:-1]


def without_masked_values(batch: Any) -> Any:
    """Return a `Batch` with 0 in inputs and targets at masked steps; any other pytree as it is.

    For steps that are stored: NaN padding would set off `jax_debug_nans` though it has no effect.
    """
    if not isinstance(batch, Batch) or batch.mask is None:
        return batch
    inputs, targets = zero_where_masked((batch.inputs, batch.targets), batch.mask)
    return batch._replace(inputs=inputs, targets=targets)


def total_weight(batch: Batch) -> Float[Array, ""]:
    """Return the sum of the weights of the steps that exist, the divisor of a loss sum.

    The sum is computed in float32 at least: float16 would overflow at 65,504, and a division in the
    dtype of integer weights would round the scale of the gradient to 0.
    """
    weights = _effective_weights(batch)
    return jnp.sum(weights, dtype=sum_dtype(weights.dtype))


def divisor(weight: Float[Array, ""], batch: Batch) -> Float[Array, ""]:
    """Return the total weight of a whole call as a divisor: NaN if signed weights cancel.

    A mean over weights whose sum is below `LEAST_FRACTION` of the sum of their absolute values
    is huge or has the wrong sign. Divide by steps instead, see `estimators.normalised`. Only
    the total of a call is checked: one window may have a weight of 0 or less.
    """
    if batch.weights is None:
        return weight
    absolute = jnp.sum(jnp.abs(_effective_weights(batch).astype(weight.dtype)))
    return jnp.where(weight >= LEAST_FRACTION * absolute, weight, jnp.nan)


def _effective_weights(batch: Batch) -> Array:
    """Return the weights `[T, *batch]`, 0 at masked steps."""
    shape = step_shape(batch)
    weights = jnp.ones(shape) if batch.weights is None else jnp.asarray(batch.weights)
    return weights if batch.mask is None else jnp.where(batch.mask, weights, 0)


def mean(total: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Divide a sum by its weight. The mean is 0, not NaN, where the weight is 0."""
    return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight)).astype(total.dtype)


def means(
    loss_sum: Float[Array, ""], grads: Any, weight: Float[Array, ""], batch: Batch
) -> tuple[Float[Array, ""], Any]:
    """Divide the sums of a loss and of its gradient over a batch by its total weight."""
    weight = divisor(weight, batch)
    scale = mean(jnp.ones_like(weight), weight)

    def scaled(g: Array) -> Array:
        wide = sum_dtype(g.dtype)
        return (g.astype(wide) * scale.astype(wide)).astype(g.dtype)

    return mean(loss_sum, weight), jax.tree.map(scaled, grads)
