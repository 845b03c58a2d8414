"""Cutting time into windows and running them, counting of weights, and the errors when time does not divide."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.types import Batch

Tree = TypeVar("Tree")


def length(batch: Any) -> int:
    """Returns T, the common leading size of every leaf; a ValueError names the leaves that disagree."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError("a batch needs at least one array with a leading time axis; got a pytree without leaves")
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(f"batch{jax.tree_util.keystr(path)} needs a leading time axis [T, ...]; got a scalar")
    sizes = {f"batch{jax.tree_util.keystr(path)}": np.shape(leaf)[0] for path, leaf in leaves}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has T={size}" for name, size in sizes.items())
        raise ValueError(f"the leaves of a batch must share their leading time axis; got {listed}")
    return next(iter(sizes.values()))


def check_window(name: str, value: object) -> int:
    """Returns `value` if it is a static int >= 1; else raises a TypeError or ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} must be a Python int (windows are static, so that shapes are); got {value!r} of type "
            f"{type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"{name} must be at least 1 step; got {name}={value}")
    return int(value)


def count(T: int, k1: int, *, name: str = "k1") -> int:
    """Returns the number of windows of k1 steps in T steps; T must be a multiple of k1, a tail is never dropped."""
    if T < k1 or T % k1:
        padded = -(-max(T, 1) // k1) * k1
        raise ValueError(
            f"T must be a positive multiple of {name}; got T={T}, {name}={k1}. Pad the batch to T={padded} with "
            f"weights=0 on the added steps (or mask=False, which also holds the carry), or choose another {name}"
        )
    return T // k1


def cut(tree: Tree, k1: int, *, name: str = "k1") -> Tree:
    """Reshapes every leaf `[T, ...]` to `[T // k1, k1, ...]`: window j holds steps j*k1 .. (j+1)*k1 - 1."""
    n = count(length(tree), k1, name=name)
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (n, k1, *np.shape(leaf)[1:])), tree)


def split(tree: Tree, *points: int) -> list[Tree]:
    """Cuts every leaf along time before each of the given steps: `split(b, 3)` is `[b[:3], b[3:]]`."""
    edges = [0, *points, length(tree)]
    return [jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], tree) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def scan_blocks(
    run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, n: int, reverse: bool = False
) -> tuple[Any, Any]:
    """Runs n blocks of equal length one after another; what comes out has a leading axis `[n]`. One block needs no loop."""
    blocks = jax.tree.map(lambda a: a.reshape(n, a.shape[0] // n, *a.shape[1:]), steps)
    if n > 1:
        return jax.lax.scan(run, carry, blocks, reverse=reverse)
    carry, out = run(carry, jax.tree.map(lambda a: a[0], blocks))
    return carry, jax.tree.map(lambda a: a[None], out)


def in_pieces(run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, steps: Any, piece: int) -> tuple[Any, Any]:
    """Runs pieces of equal length as one scan, and what is left over as a shorter piece of its own."""
    n, rest = divmod(length(steps), piece)
    even = jax.tree.map(lambda a: a[: n * piece], steps)
    tail = jax.tree.map(lambda a: a[n * piece :], steps)
    if n == 0:
        return run(carry, tail)
    carry, ys = scan_blocks(run, carry, even, n)
    ys = jax.tree.map(lambda a: a.reshape(n * piece, *a.shape[2:]), ys)
    if not rest:
        return carry, ys
    carry, tail_ys = run(carry, tail)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, tail_ys)


def step_shape(batch: Batch) -> tuple[int, ...]:
    """Returns `[T, *batch]`, the shape in which steps are counted.

    It is that of weights, mask or resets where one is given; else that of inputs without their last axis (floats) or
    whole (integers are symbols). Raises ValueError when the given ones disagree.
    """
    shapes = {name: np.shape(getattr(batch, name)) for name in ("weights", "mask", "resets")}
    given = {name: shape for name, shape in shapes.items() if getattr(batch, name) is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in given.items())
        raise ValueError(f"weights, mask and resets must all have the shape [T, *batch]; got {listed}")
    if given:
        return next(iter(given.values()))
    symbols = not jnp.issubdtype(jnp.result_type(batch.inputs), jnp.floating)
    inputs = np.shape(batch.inputs)
    if not symbols and len(inputs) < 2:
        raise ValueError(
            f"batch.inputs must be [T, *batch, D]; got shape {inputs}. Add a feature axis (inputs[..., None]), or give "
            "batch.weights [T, *batch], from which the steps are then counted"
        )
    return inputs if symbols else inputs[:-1]


def total_weight(batch: Batch) -> Float[Array, ""]:
    """Returns the sum of the weights of the steps that exist: what a loss sum is divided by, once."""
    shape = step_shape(batch)
    dtype = jnp.result_type(float) if batch.weights is None else jnp.result_type(batch.weights)
    weights = jnp.ones(shape, dtype) if batch.weights is None else jnp.asarray(batch.weights)
    if batch.mask is not None:
        weights = jnp.where(batch.mask, weights, 0)
    return jnp.sum(weights)


def mean(total: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Divides a sum by its weight. Where the weight is 0 there is nothing to average: the mean is 0, not NaN."""
    return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight)).astype(total.dtype)


def means(loss_sum: Float[Array, ""], grads: Any, weight: Float[Array, ""]) -> tuple[Float[Array, ""], Any]:
    """Turns the sums of a loss and of its gradient into means: the one division of an estimate."""
    scale = mean(jnp.ones_like(weight), weight)
    return mean(loss_sum, weight), jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
