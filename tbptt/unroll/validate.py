"""Checks of the arguments of every unroll function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from tbptt.numerics import zero_where_masked
from tbptt.types import Carry, Cell, Params
from tbptt.unroll.scan import Steps


def validated_steps(
    cell: Cell, params: Params, carry: Carry, xs: Any, resets: Any, mask: Any
) -> Steps:
    """Check the arguments of an unroll function; return arrays, with 0 in `xs` at masked steps."""
    if not jax.tree_util.all_leaves([xs]) and not isinstance(xs, list):
        raise TypeError(
            f"xs must be one array [T, *batch, D]; got {type(xs).__name__}. Join the inputs along "
            "their last axis, or write a loss function that reads them and calls unroll"
        )
    xs = jnp.asarray(xs)
    check_sequence(cell, params, carry, xs, resets, mask)
    resets, mask = (None if flags is None else jnp.asarray(flags) for flags in (resets, mask))
    return Steps(zero_where_masked(xs, mask), resets, mask)


def check_sequence(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    resets: ArrayLike | None,
    mask: ArrayLike | None,
) -> tuple[int, ...]:
    """Check that a sequence, its flags and the carry that enters it fit the cell.

    Args: those of `unroll`, with `xs [T, *batch, D]` as an array.

    Returns:
      The batch shape.

    Raises:
      ValueError: the rank, sizes or dtypes of an argument do not fit the cell; the message names
        the argument.
      TypeError: `xs`, `resets` or `mask` has the wrong dtype.
    """
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(
            f"xs must be floating-point; got dtype {xs.dtype}. Convert raw samples to floats; "
            "embed integer symbols first (sequence_loss(..., embedding=...))"
        )
    if xs.ndim < 2 or xs.shape[-1] != cell.input_dim:
        raise ValueError(
            f"xs must be [T, *batch, D] with D = {type(cell).__name__}.input_dim = "
            f"{cell.input_dim}; got shape {xs.shape}"
        )
    batch_shape = xs.shape[1:-1]
    for name, flags in (("resets", resets), ("mask", mask)):
        if flags is None:
            continue
        if jnp.result_type(flags) != jnp.bool_:
            raise TypeError(
                f"{name} must be booleans [T, *batch]; got dtype {jnp.result_type(flags)}: "
                f"use {name} > 0"
            )
        if np.shape(flags) != xs.shape[:-1]:
            raise ValueError(
                f"{name} must have the leading shape of xs, [T, *batch] = {xs.shape[:-1]}; "
                f"got {np.shape(flags)}"
            )
    wanted = jax.eval_shape(lambda: cell.initial_carry(batch_shape))
    remedy = (
        f"xs {xs.shape} is [T, *batch, D], time first, and has batch shape {batch_shape}: start "
        f"from cell.initial_carry({batch_shape})"
    )
    check_carry("carry", carry, wanted, remedy)
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    left, _ = jax.eval_shape(cell, params, carry, x)
    remedy = (
        f"xs is {xs.dtype}: params, carry and xs must have one dtype, and a cell must return a "
        "carry with the structure, shapes and dtypes of its argument"
    )
    check_carry(
        f"the carry that {type(cell).__name__} returned",
        left,
        jax.eval_shape(lambda: carry),
        remedy,
    )
    return batch_shape


def check_carry(what: str, got: Any, wanted: Any, remedy: str) -> None:
    """Compare the structure, shapes and dtypes of two carries, leaf by leaf.

    Raises:
      ValueError: they differ; the message contains `what`, the first leaf that differs, and
        `remedy`.
    """
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        raise ValueError(
            f"{what} must have the structure {jax.tree.structure(wanted)}; got "
            f"{jax.tree.structure(got)}. {remedy}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True)
    for (path, leaf), want in pairs:
        if np.shape(leaf) != want.shape or jnp.result_type(leaf) != want.dtype:
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} must be {want.dtype}{list(want.shape)}; got "
                f"{jnp.result_type(leaf)}{list(np.shape(leaf))}. {remedy}"
            )


def check_floating(carry: Carry) -> None:
    """Raise a TypeError that names the first leaf of a carry that is not floating-point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is {dtype}: derivatives with respect to a "
                "carry need floating leaves. Pass counters and symbols as inputs instead"
            )
