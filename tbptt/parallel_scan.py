"""Cells that are linear in their carry, in parallel over time: an associative scan instead of a loop."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.affine_scan import diagonal_recurrence
from tbptt.checks import check_carry, check_sequence
from tbptt.types import AffineCell, Carry, Params


def parallel_unroll(
    cell: AffineCell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
) -> tuple[Carry, Any]:
    """Runs a cell that offers `affine` over a sequence by `jax.lax.associative_scan`: `unroll` in about 2 log2(T) passes.

        carry_t = a_t * carry_{t-1} + b_t,    y_t = outputs(params, carry_t, x_t)

        a, b = cell.affine(params, xs)
        for t in range(T):                                   # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue              # the step does not exist: the carry is held
            if resets[t]: carry = cell.initial_carry()       # no gradient crosses it
            carry = a[t] * carry + b[t]
            ys[t] = cell.outputs(params, carry, xs[t])

    (each `if` elementwise over *batch). Its gradient is one scan of the same kind, from the last step to the first. Equal
    to `unroll` to rounding, for the sums are taken in another order, as long as the products of the a's do not overflow.

    Args:
      cell: static; `DiagonalLinear`, `MinGRU`, `MinLSTM`, or any other `AffineCell`.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is legal and returns the carry.
      resets, mask: `[T, *batch]` booleans; None = no resets, every step exists.
      reverse: static; run from the last step to the first. ys[t] still belongs to xs[t].

    Returns:
      (carry, ys): the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: rank, sizes or dtypes of xs, carry, resets or mask, or of what `affine` returned, do not fit the cell.
      TypeError: the cell offers no `affine`; xs, resets or mask are of the wrong dtype.

    References: Blelloch 1990; Martin and Cundy, ICLR 2018, arXiv:1709.04057; Feng et al. 2024, arXiv:2410.01201.
    """
    if not isinstance(cell, AffineCell):
        raise TypeError(
            f"{type(cell).__name__} does not say that it is linear in its carry (no `affine` and `outputs`, see "
            "tbptt.types.AffineCell): use unroll, or newton_unroll for a nonlinear cell; run a Stack layer by layer, the "
            "ys of one being the xs of the next"
        )
    xs = jnp.asarray(xs)
    batch_shape = check_sequence(cell, params, carry, xs, resets, mask)
    resets, mask = (None if flags is None else jnp.asarray(flags) for flags in (resets, mask))
    if mask is not None:
        xs = jnp.where(mask[..., None], xs, 0)  # NaN padding would reach the weights' gradient as 0 * NaN
    a, b = cell.affine(params, xs)
    _check_affine(cell, carry, xs.shape[0], a, b)
    carries = carry
    if xs.shape[0]:
        a, b, flags = _in_order(reverse, (a, b, (resets, mask)))
        initial = cell.initial_carry(batch_shape)
        scans = jax.tree.map(lambda *leaves: _scan_leaf(*leaves, *flags), a, b, carry, initial)
        carry = jax.tree.map(lambda leaf: leaf[-1], scans)
        carries = _in_order(reverse, scans)
    else:
        carries = b
    ys = cell.outputs(params, carries, xs)
    return carry, ys if mask is None else jax.tree.map(lambda y: jnp.where(_like(mask, y), y, 0), ys)


def _scan_leaf(a: Array, b: Array, start: Array, initial: Array, resets: Array | None, mask: Array | None) -> Array:
    """Runs one leaf of the carry, `[T, *batch, ...]`."""
    if resets is not None:
        resets = resets if mask is None else resets & mask  # where no step is, nothing is reset
        b = jnp.where(_like(resets, b), a * initial + b, b)
    if mask is not None:
        a, b = jnp.where(_like(mask, a), a, 1), jnp.where(_like(mask, b), b, 0)
    return diagonal_recurrence(a, b, start, resets)


def _in_order(reverse: bool, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.flip(leaf, 0), tree) if reverse else tree


def _like(flags: Array, leaf: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))


def _check_affine(cell: AffineCell, carry: Carry, T: int, a: Carry, b: Carry) -> None:
    """Checks what the cell returned, where it is received."""
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((T, *jnp.shape(leaf)), jnp.result_type(leaf)), carry)
    remedy = f"{type(cell).__name__}.affine(params, xs) must return two carries with leaves [T, *batch, ...]"
    for name, got in (("a", a), ("b", b)):
        check_carry(f"{name} of {type(cell).__name__}.affine", got, wanted, remedy)
