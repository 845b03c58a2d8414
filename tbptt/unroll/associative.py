"""Linear recurrences in parallel over time, and the unroll of cells that are linear in their carry."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.cells.base import AffineCell
from tbptt.numerics import expand
from tbptt.types import Carry, Params
from tbptt.unroll.remat import CarriesOnly, Remat, in_segments, refuse_budget
from tbptt.unroll.scan import Steps, reverse_time
from tbptt.unroll.validate import check_carry, validated_steps


def parallel_unroll(
    cell: AffineCell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
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
      remat: static; `CarriesOnly()` rematerialises a, b and the outputs, `Segments()` all but the carries between
        segments; `MemoryBudget` is not supported.

    Returns:
      (carry, ys): the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: rank, sizes or dtypes of xs, carry, resets or mask, or of what `affine` returned, do not fit the cell.
      TypeError: the cell offers no `affine`; xs, resets or mask are of the wrong dtype.

    References: Blelloch 1990; Martin and Cundy, ICLR 2018, arXiv:1709.04057; Feng et al. 2024, arXiv:2410.01201.
    """
    if not isinstance(cell, AffineCell):
        raise TypeError(
            f"parallel_unroll needs a cell with `affine` and `outputs` (tbptt.cells.base.AffineCell), which is linear in "
            f"its carry; got {type(cell).__name__}. Use unroll, or newton_unroll for a nonlinear cell; run a Stack layer by "
            "layer, the ys of one layer being the xs of the next"
        )
    refuse_budget("parallel_unroll", remat)
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    run = functools.partial(_run, cell)
    run = functools.partial(jax.checkpoint(run) if isinstance(remat, CarriesOnly) else run, params)
    carry, ys = in_segments(run, remat, steps.xs.shape[0])(carry, reverse_time(steps) if reverse else steps)
    return carry, reverse_time(ys) if reverse else ys


def _run(cell: AffineCell, params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
    a, b = cell.affine(params, steps.xs)
    _check_affine(cell, carry, steps.xs.shape[0], a, b)
    carries = b
    if steps.xs.shape[0]:
        initial = cell.initial_carry(steps.xs.shape[1:-1])
        carries = jax.tree.map(lambda *leaves: _scan_leaf(*leaves, steps.resets, steps.mask), a, b, carry, initial)
        carry = jax.tree.map(lambda leaf: leaf[-1], carries)
    ys = cell.outputs(params, carries, steps.xs)
    return carry, ys if steps.mask is None else jax.tree.map(lambda y: jnp.where(expand(steps.mask, y), y, 0), ys)


def _scan_leaf(a: Array, b: Array, start: Array, initial: Array, resets: Array | None, mask: Array | None) -> Array:
    """Runs one leaf of the carry, `[T, *batch, ...]`."""
    if resets is not None:
        resets = resets if mask is None else resets & mask  # where no step is, nothing is reset
        b = jnp.where(expand(resets, b), a * initial + b, b)
    if mask is not None:
        a, b = jnp.where(expand(mask, a), a, 1), jnp.where(expand(mask, b), b, 0)
    return diagonal_recurrence(a, b, start, resets)


def _check_affine(cell: AffineCell, carry: Carry, T: int, a: Carry, b: Carry) -> None:
    """Checks what the cell returned, where it is received."""
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((T, *jnp.shape(leaf)), jnp.result_type(leaf)), carry)
    remedy = f"{type(cell).__name__}.affine(params, xs) must return two carries with leaves [T, *batch, ...]"
    for name, got in (("a", a), ("b", b)):
        check_carry(f"{name} of {type(cell).__name__}.affine", got, wanted, remedy)


Apply = Callable[[Array, Array], Array]


def diagonal_recurrence(
    a: Float[Array, "T *shape"],
    b: Float[Array, "T *shape"],
    start: Float[Array, "*shape"],
    cuts: Bool[Array, "T *cut_shape"] | None = None,
) -> Float[Array, "T *shape"]:
    """Solves an elementwise linear recurrence in about 2 log2(T) parallel passes over T elements.

        h_t = a_t * h_{t-1} + b_t,    and h_t = b_t where cuts[t]

        h = start
        for t in range(T): h = hs[t] = b[t] if cuts[t] else a[t] * h + b[t]

    Differentiable any number of times, forwards and backwards; the adjoint is the same scan run from the last step. The
    products of the a's over long stretches are formed: they must not overflow, as they never do for |a| <= 1.

    Args:
      a, b: `[T, *shape]`, T >= 1.
      start: h before step 0.
      cuts: `[T, ...]` booleans over the leading axes of a; nothing of h_{t-1}, inf and NaN included, enters such a step.

    Returns:
      All h, `[T, *shape]`.

    References: Blelloch, *Prefix sums and their applications*, 1990; Martin and Cundy, *Parallelizing linear recurrent
    neural nets over sequence length*, ICLR 2018, arXiv:1709.04057.
    """
    if cuts is None:
        return _solve(a, b, start, jnp.multiply, jnp.multiply, None)
    cuts = cuts.reshape(cuts.shape + (1,) * (b.ndim - cuts.ndim))
    return _solve(a, b, start, jnp.multiply, jnp.multiply, cuts)


def dense_recurrence(
    a: Float[Array, "T *shape n n"], b: Float[Array, "T *shape n"], start: Float[Array, "*shape n"]
) -> Float[Array, "T *shape n"]:
    """Solves a linear recurrence with a full matrix a step, in parallel over T; its adjoint is the same scan, reversed.

        h_t = a_t h_{t-1} + b_t

        h = start
        for t in range(T): h = hs[t] = a[t] @ h + b[t]

    Products of matrices over long stretches are formed, at the cost of n^3 a step and in full precision on accelerators.

    Args:
      a: `[T, *shape, n, n]`, T >= 1.
      b: `[T, *shape, n]`.
      start: h before step 0, `[*shape, n]`.

    Returns:
      All h, `[T, *shape, n]`.
    """
    return _solve(a, b, start, _matmul, _matvec, None)


def _matmul(after: Array, before: Array) -> Array:
    return jnp.einsum("...ij,...jk->...ik", after, before, precision="highest")


def _matvec(a: Array, h: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", a, h, precision="highest")


def _solve(a: Array, b: Array, start: Array, compose: Apply, apply: Apply, cuts: Array | None) -> Array:
    """Solves (1 - a S) h = b, with S the shift by one step, as the linear system that it is.

    So the derivatives are those of a linear solve: one more scan each, and none of the tree's intermediates is kept.
    """
    first = apply(a[0], start)
    b = b.at[0].add(first if cuts is None else jnp.where(cuts[0], 0, first))

    def residual(h: Array) -> Array:
        from_before = apply(a[1:], h[:-1])
        return h.at[1:].add(-from_before if cuts is None else -jnp.where(cuts[1:], 0, from_before))

    def forwards(_: object, b: Array) -> Array:
        return _scan(a, b, compose, apply, cuts)

    def backwards(_: object, g: Array) -> Array:
        # l_t = g_t + a_{t+1}^T l_{t+1}: step t takes the map of the step after it, and the last one takes none.
        transposed = jnp.swapaxes(a, -1, -2) if a.ndim > b.ndim else a
        late, late_cuts = (None if x is None else jnp.flip(jnp.roll(x, -1, 0), 0) for x in (transposed, cuts))
        return jnp.flip(_scan(late, jnp.flip(g, 0), compose, apply, late_cuts), 0)

    return jax.lax.custom_linear_solve(residual, b, forwards, backwards)


def _scan(a: Array | None, b: Array, compose: Apply, apply: Apply, cuts: Array | None) -> Array:
    """Composes the maps h -> a h + b of all prefixes; what they give for h = 0."""

    def combine(early: tuple, late: tuple) -> tuple:
        (a_1, b_1, cut_1), (a_2, b_2, cut_2) = early, late
        a, b = compose(a_2, a_1), apply(a_2, b_1)
        if cut_2 is None:
            return a, b + b_2, None
        # A product with 0 would not do: 0 * inf is NaN, and a reset is to make a lane that has diverged usable again.
        return jnp.where(cut_2, a_2, a), jnp.where(cut_2, 0, b) + b_2, cut_1 | cut_2

    return jax.lax.associative_scan(combine, (a, b, cuts))[1]
