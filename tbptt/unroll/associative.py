"""Linear recurrences in parallel over time, and the unroll function of affine cells."""

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
    """Run an affine cell over a sequence in parallel over time, by `jax.lax.associative_scan`.

        carry_t = a_t * carry_{t-1} + b_t,    y_t = outputs(params, carry_t, x_t)

        a, b = cell.affine(params, xs)
        for t in range(T):                               # T-1 .. 0 if reverse
            if not mask[t]: ys[t] = 0; continue          # no such step: the carry is held
            if resets[t]: carry = cell.initial_carry()   # no gradient crosses a reset
            carry = a[t] * carry + b[t]
            ys[t] = cell.outputs(params, carry, xs[t])

    (each `if` elementwise over *batch). The scan takes about 2 log2(T) passes over the sequence.
    The gradient is one scan of the same kind, from the last step to the first. Values and gradients
    equal those of `unroll` to rounding, unless a product of the a's overflows.

    Args:
      cell: `DiagonalLinear`, `MinGRU`, `MinLSTM`, or any other `AffineCell`; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: None, `CarriesOnly()`, which rematerialises a, b and the outputs, or `Segments()`,
        which rematerialises all but the carries between segments; static.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: the rank, sizes or dtypes of an argument, or of the result of `affine`, do not fit
        the cell; or `remat` is a `MemoryBudget`.
      TypeError: the cell has no `affine`, or `xs`, `resets` or `mask` has the wrong dtype.

    Example:
      >>> import jax, jax.numpy as jnp, tbptt
      >>> cell = tbptt.MinGRU(2, 8)
      >>> params = cell.init(jax.random.key(0))
      >>> carry = cell.initial_carry((4,))
      >>> carry, ys = tbptt.parallel_unroll(cell, params, carry, jnp.ones((100, 4, 2)))
      >>> ys.shape
      (100, 4, 8)

    References: Blelloch 1990; Martin and Cundy, ICLR 2018, arXiv:1709.04057; Feng et al. 2024,
    arXiv:2410.01201.
    """
    if not isinstance(cell, AffineCell):
        raise TypeError(
            "parallel_unroll needs a cell that is linear in its carry, with `affine` and `outputs` "
            f"(tbptt.cells.base.AffineCell); got {type(cell).__name__}. Use unroll, or "
            "newton_unroll for a nonlinear cell; run a Stack layer by layer, with the ys of one "
            "layer as the xs of the next"
        )
    refuse_budget("parallel_unroll", remat)
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    run = functools.partial(_run, cell)
    run = functools.partial(jax.checkpoint(run) if isinstance(remat, CarriesOnly) else run, params)
    carry, ys = in_segments(run, remat, steps.xs.shape[0])(
        carry, reverse_time(steps) if reverse else steps
    )
    return carry, reverse_time(ys) if reverse else ys


def _run(cell: AffineCell, params: Params, carry: Carry, steps: Steps) -> tuple[Carry, Any]:
    a, b = cell.affine(params, steps.xs)
    _check_affine(cell, carry, steps.xs.shape[0], a, b)
    carries = b
    if steps.xs.shape[0]:
        initial = cell.initial_carry(steps.xs.shape[1:-1])
        scan_leaf = functools.partial(_scan_leaf, steps.resets, steps.mask)
        carries = jax.tree.map(scan_leaf, a, b, carry, initial)
        carry = jax.tree.map(lambda leaf: leaf[-1], carries)
    ys, mask = cell.outputs(params, carries, steps.xs), steps.mask
    if mask is not None:
        ys = jax.tree.map(lambda y: jnp.where(expand(mask, y), y, 0), ys)
    return carry, ys


def _scan_leaf(
    resets: Array | None, mask: Array | None, a: Array, b: Array, start: Array, initial: Array
) -> Array:
    """Solve the recurrence of one leaf of the carry, `[T, *batch, ...]`."""
    if resets is not None:
        resets = resets if mask is None else resets & mask  # a masked step resets nothing
        b = jnp.where(expand(resets, b), a * initial + b, b)
    if mask is not None:
        a, b = jnp.where(expand(mask, a), a, 1), jnp.where(expand(mask, b), b, 0)
    return diagonal_recurrence(a, b, start, resets)


def _check_affine(cell: AffineCell, carry: Carry, T: int, a: Carry, b: Carry) -> None:
    """Check the carries that `cell.affine` returned."""
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((T, *jnp.shape(leaf)), jnp.result_type(leaf)), carry
    )
    name = type(cell).__name__
    remedy = f"{name}.affine(params, xs) must return two carries with leaves [T, *batch, ...]"
    for leaf, got in (("a", a), ("b", b)):
        check_carry(f"{leaf} of {name}.affine", got, wanted, remedy)


Apply = Callable[[Array, Array], Array]


def diagonal_recurrence(
    a: Float[Array, "T *shape"],
    b: Float[Array, "T *shape"],
    start: Float[Array, "*shape"],
    resets: Bool[Array, "T *reset_shape"] | None = None,
) -> Float[Array, "T *shape"]:
    """Solve an elementwise linear recurrence in about 2 log2(T) parallel passes over T elements.

        h_t = a_t * h_{t-1} + b_t,    and h_t = b_t where resets[t]

        h = start
        for t in range(T): h = hs[t] = b[t] if resets[t] else a[t] * h + b[t]

    It can be differentiated any number of times, in forward and reverse mode; the adjoint is the
    same scan from the last step. The scan computes products of a over many steps, which must not
    overflow; they never do for |a| <= 1.

    Args:
      a, b: `[T, *shape]`, T >= 1.
      start: h before step 0, `[*shape]`.
      resets: `[T, ...]` booleans over the leading axes of a; h_{t-1} has no effect on such a step,
        even if it is inf or NaN.

    Returns:
      All h, `[T, *shape]`.

    References: Blelloch, *Prefix sums and their applications*, 1990; Martin and Cundy,
    *Parallelizing linear recurrent neural nets over sequence length*, ICLR 2018, arXiv:1709.04057.
    """
    if resets is None:
        return _solve(a, b, start, jnp.multiply, jnp.multiply, None)
    resets = resets.reshape(resets.shape + (1,) * (b.ndim - resets.ndim))
    return _solve(a, b, start, jnp.multiply, jnp.multiply, resets)


def dense_recurrence(
    a: Float[Array, "T *shape n n"], b: Float[Array, "T *shape n"], start: Float[Array, "*shape n"]
) -> Float[Array, "T *shape n"]:
    """Solve a linear recurrence with one full matrix per step, in parallel over T.

        h_t = a_t h_{t-1} + b_t

        h = start
        for t in range(T): h = hs[t] = a[t] @ h + b[t]

    The scan computes products of matrices over many steps, in n^3 operations per step and in full
    precision on accelerators. The adjoint is the same scan from the last step.

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


def _solve(
    a: Array, b: Array, start: Array, compose: Apply, apply: Apply, resets: Array | None
) -> Array:
    """Solve the linear system (1 - a S) h = b, where S shifts by one step.

    `jax.lax.custom_linear_solve` derives each derivative as one more scan, so that no intermediate
    of the associative scan is a residual.
    """
    first = apply(a[0], start)
    b = b.at[0].add(first if resets is None else jnp.where(resets[0], 0, first))

    def residual(h: Array) -> Array:
        from_before = apply(a[1:], h[:-1])
        entering = from_before if resets is None else jnp.where(resets[1:], 0, from_before)
        return h.at[1:].add(-entering)

    def forwards(_: object, b: Array) -> Array:
        return _scan(a, b, compose, apply, resets)

    def backwards(_: object, g: Array) -> Array:
        # l_t = g_t + a_{t+1}^T l_{t+1}: step t uses the map of step t + 1; the last step uses none.
        transposed = jnp.swapaxes(a, -1, -2) if a.ndim > b.ndim else a
        late, late_resets = (
            None if x is None else jnp.flip(jnp.roll(x, -1, 0), 0) for x in (transposed, resets)
        )
        return jnp.flip(_scan(late, jnp.flip(g, 0), compose, apply, late_resets), 0)

    return jax.lax.custom_linear_solve(residual, b, forwards, backwards)


def _scan(a: Array | None, b: Array, compose: Apply, apply: Apply, resets: Array | None) -> Array:
    """Compose the maps h -> a h + b of all prefixes; return their values at h = 0."""

    def combine(early: tuple, late: tuple) -> tuple:
        (a_1, b_1, reset_1), (a_2, b_2, reset_2) = early, late
        a, b = compose(a_2, a_1), apply(a_2, b_1)
        if reset_2 is None:
            return a, b + b_2, None
        # Not a product with 0, because 0 * inf is NaN: a reset makes a diverged batch row finite
        # again.
        return jnp.where(reset_2, a_2, a), jnp.where(reset_2, 0, b) + b_2, reset_1 | reset_2

    return jax.lax.associative_scan(combine, (a, b, resets))[1]
