"""Locate the first step and leaf with a NaN or an infinity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.types import Carry, Cell, Params


class FirstNonFinite(NamedTuple):
    """Position of the first non-finite value; scalars. `where_non_finite` describes it as text.

    found: whether there is one
    step:  the first step with one, -1 = before step 0 (in params or in the carry that enters)
    leaf:  the first leaf with one at that step, in the order params, entering carry, x, carry, y;
           -1 = none
    """

    found: Bool[Array, ""]
    step: Int[Array, ""]
    leaf: Int[Array, ""]


def first_non_finite(
    cell: Cell, params: Params, carry: Carry, xs: Float[Array, "T *batch D"]
) -> FirstNonFinite:
    """Run a cell over a sequence and find the first step and leaf that hold NaN or inf.

    Before step 0 it checks params and the carry; at each step x, then the carry that leaves it,
    then y. This distinguishes bad input from a diverging recurrence. Integer leaves are always
    finite. Works inside jit.

    Args:
      cell: static.
      params, carry: the cell's; the carry enters step 0.
      xs: `[T, *batch, D]`, T = 0 allowed.
    """

    def body(carry: Carry, x: Array) -> tuple[Carry, Array]:
        new, y = cell(params, carry, x)
        return new, _flags((x, new, y))

    before = _flags((params, carry))
    _, during = jax.lax.scan(body, carry, xs)
    n, m = before.shape[0], during.shape[1]
    rows = (
        jnp.zeros((1 + during.shape[0], n + m), bool).at[0, :n].set(before).at[1:, n:].set(during)
    )
    at = jnp.argmax(jnp.any(rows, axis=1))
    found = jnp.any(rows)
    return FirstNonFinite(
        found, jnp.where(found, at - 1, -1), jnp.where(found, jnp.argmax(rows[at]), -1)
    )


def where_non_finite(
    first: FirstNonFinite, cell: Cell, params: Params, carry: Carry, xs: Float[Array, "T *batch D"]
) -> str:
    """Describe the result of `first_non_finite`: "before step 0: params.w_h", "step 12: carry.h".

    Runs on the host: `first` must be concrete; of params, carry and xs (as passed before) only
    shapes are used.
    """
    if not bool(first.found):
        return "all finite"
    left, y = jax.eval_shape(cell, params, carry, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    trees = {"params": params, "carry": carry}, {"x": xs, "carry": left, "y": y}
    names = [name for part in trees for root, tree in part.items() for name in _names(tree, root)]
    when = "before step 0" if int(first.step) < 0 else f"step {int(first.step)}"
    return f"{when}: {names[int(first.leaf)]}"


def first_bad_leaf(tree: Any) -> Int[Array, ""]:
    """Return the index in `jax.tree.leaves` of the first leaf with NaN or inf; or -1."""
    flags = _flags(tree)
    if not flags.shape[0]:
        return jnp.asarray(-1)
    return jnp.where(jnp.any(flags), jnp.argmax(flags), -1)


def leaf_name(tree: Any, index: int | Int[Array, ""]) -> str | None:
    """Return the path of a leaf by the index from `first_bad_leaf`, such as ".cell.w_h".

    None for -1. Runs on the host.
    """
    return None if int(index) < 0 else _names(tree, "")[int(index)]


def _flags(tree: Any) -> Bool[Array, " n"]:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return (
        jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        if leaves
        else jnp.zeros((0,), bool)
    )


def _names(tree: Any, root: str) -> list[str]:
    return [
        root + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
