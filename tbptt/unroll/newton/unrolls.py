"""`unroll` by Newton's method: the public functions, from carries and batches to flat lanes and back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.types import Carry, Cell, Params
from tbptt.unroll.newton import flat
from tbptt.unroll.newton.methods import DiagonalJacobian, FullJacobian, Method
from tbptt.unroll.newton.solve import NewtonReport, solve
from tbptt.unroll.remat import Remat
from tbptt.unroll.scan import reverse_time
from tbptt.unroll.validate import validated_steps


def newton_unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
    max_iterations: int = 32,
    tolerance: float | None = None,
) -> tuple[Carry, Any]:
    """Run any cell over a sequence by Newton's method on all steps at once (DEER).

    It is the unroll function of `newton_unroll_with_report`, which explains the method, its arguments and its errors, without the
    report. Where the iteration does not converge, the result is that of the plain scan.
    """
    carry, ys, _ = newton_unroll_with_report(
        cell,
        params,
        carry,
        xs,
        resets=resets,
        mask=mask,
        reverse=reverse,
        remat=remat,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    return carry, ys


def quasi_newton_unroll(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
    max_iterations: int = 128,
    tolerance: float | None = None,
    damping: float = 0.0,
) -> tuple[Carry, Any]:
    """Run any cell over a sequence by quasi-Newton iterations with diagonal Jacobians (quasi-DEER).

    It is the unroll function of `quasi_newton_unroll_with_report`, which explains the method, its arguments and its errors, without the
    report. Where the iteration does not converge, the result is that of the plain scan.
    """
    carry, ys, _ = quasi_newton_unroll_with_report(
        cell,
        params,
        carry,
        xs,
        resets=resets,
        mask=mask,
        reverse=reverse,
        remat=remat,
        max_iterations=max_iterations,
        tolerance=tolerance,
        damping=damping,
    )
    return carry, ys


def newton_unroll_with_report(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
    max_iterations: int = 32,
    tolerance: float | None = None,
) -> tuple[Carry, Any, NewtonReport]:
    """Runs any cell over a sequence by Newton's method on all steps at once (DEER), or by the plain scan if that fails.

        h_t = f_t(h_{t-1}),    J_t = df_t/dh at h_{t-1}

        hs = [carry] * T
        for iterations in range(1, max_iterations + 1):
            correction = 0
            for t in range(T): correction = corrections[t] = J[t] @ correction + f_t(hs[t - 1]) - hs[t]    # in parallel
            hs = hs + corrections
            if max(|corrections| / (1 + |hs|)) <= tolerance: break

    with f_t the whole step of `unroll`, resets and mask included. The correction is the error of the hs before it, to
    first order, with its growth along the sequence counted; so `converged` means equal to the plain scan to rounding as the
    dynamics amplify it, and within `tolerance` at worst. Contractive dynamics converge in a few iterations whatever T is;
    chaotic ones do not, and fall back. The gradient is that of the recurrence at the solution, exact in both cases: one
    matrix scan more from the last step to the first (the plain adjoint after a fallback), and all steps' vector-Jacobian
    products for params and xs at once. The iterations are not differentiated. Under `jax.vmap` both branches of
    the fallback run: give a batch as *batch instead.

    Memory: `[T, *batch, n, n]` for carries of n numbers; a pass costs n^3 a step. It is meant for small n and long T.

    Args:
      cell: static; any cell whose carry's leaves are floating and whose lanes do not mix.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is legal and returns the carry.
      resets, mask: `[T, *batch]` booleans, as in `unroll`.
      max_iterations: static.
      tolerance: static; None = eps^(2/3) of the carry's dtype: 4e-11 in float64, 2.4e-5 in float32.

    Returns:
      (carry, ys, report): as `unroll`, and a NewtonReport.

    Raises:
      ValueError: max_iterations < 1, tolerance <= 0, or sizes or dtypes do not fit the cell; the message names which.
      TypeError: xs, resets, mask or a leaf of the carry are of the wrong dtype.

    References: Lim, Zhu, Selfridge and Kasim, *Parallelizing non-linear sequential models over the sequence length*, ICLR
    2024, arXiv:2309.12252.
    """
    _check_options(max_iterations, tolerance)
    return _unroll(FullJacobian(cell, max_iterations, tolerance), params, carry, xs, resets, mask, reverse, remat)


def quasi_newton_unroll_with_report(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[ArrayLike, "T *batch D"],
    *,
    resets: Bool[ArrayLike, "T *batch"] | None = None,
    mask: Bool[ArrayLike, "T *batch"] | None = None,
    reverse: bool = False,
    remat: Remat | None = None,
    max_iterations: int = 128,
    tolerance: float | None = None,
    damping: float = 0.0,
) -> tuple[Carry, Any, NewtonReport]:
    """Runs any cell over a sequence as `newton_unroll` does, with the Jacobians' diagonals only (quasi-DEER).

        correction_t = (1 - damping) * diag(J_t) * correction_{t-1} + f_t(h_{t-1}) - h_t

        hs = [carry] * T
        for iterations in range(1, max_iterations + 1):
            defects = [f_t(hs[t - 1]) - hs[t] for t in range(T)]
            if max(|defects| / (1 + |hs|)) <= tolerance: break
            correction = 0
            for t in range(T): correction = corrections[t] = (1 - damping) * diag(J[t]) * correction + defects[t]
            hs = hs + corrections

    Whatever the damping, k iterations make the first k steps exact; between, damping trades Newton's reach (0) for the
    safety of Jacobi's iteration (1), where diagonals above 1 would let corrections grow without bound.

    `converged` means that each step holds to `tolerance`: hs are the plain scan's as if each step were rounded that much,
    and lie as close to it as the dynamics let steps so rounded lie. Unlike newton_unroll it does not measure how
    much the dynamics amplify this. The gradient takes whole Jacobians and is exact: the plain adjoint in
    order, as lean and as sequential as that of `unroll`.

    Memory: `[T, *batch, n]` for carries of n numbers; a pass takes n products of the Jacobians with a vector, in turn.

    Args:
      cell, params, carry, xs, resets, mask: as in `newton_unroll`.
      max_iterations: static.
      tolerance: static; None = 16 eps of the carry's dtype: 3.6e-15 in float64, 1.9e-6 in float32.
      damping: static, from 0 to 1.

    Returns:
      (carry, ys, report): as `unroll`, and a NewtonReport.

    Raises:
      ValueError: as newton_unroll, or damping outside [0, 1].
      TypeError: xs, resets, mask or a leaf of the carry are of the wrong dtype.

    References: Gonzalez, Warrington, Smith and Linderman, *Towards scalable and stable parallelization of nonlinear RNNs*,
    NeurIPS 2024, arXiv:2407.19115 (which damps by a trust region instead, ELK).
    """
    _check_options(max_iterations, tolerance)
    if not 0 <= damping <= 1:
        raise ValueError(f"damping must be from 0 (quasi-Newton) to 1 (Jacobi's iteration); got {damping}")
    return _unroll(
        DiagonalJacobian(cell, max_iterations, tolerance, damping), params, carry, xs, resets, mask, reverse, remat
    )


def _unroll(
    method: Method,
    params: Params,
    carry: Carry,
    xs: Any,
    resets: Any,
    mask: Any,
    reverse: bool,
    remat: Remat | None,
) -> tuple[Carry, Any, NewtonReport]:
    if remat is not None:
        raise ValueError(
            f"the Newton unrolls keep the trajectory and nothing else for the backward pass: remat must be None; got {remat}"
        )
    cell = method.cell
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = f"carry{jax.tree_util.keystr(path)}"
            raise TypeError(f"{where} must be floating to be solved for; got {jnp.result_type(leaf)}: use unroll")
    T, batch_shape = steps.xs.shape[0], steps.xs.shape[1:-1]
    N = math.prod(batch_shape)
    flat_steps = jax.tree.map(lambda a: a.reshape(T, N, *a.shape[1 + len(batch_shape) :]), steps)
    flat_steps = reverse_time(flat_steps) if reverse else flat_steps
    start = jax.vmap(flat.ravel)(jax.tree.map(lambda leaf: jnp.reshape(leaf, (N, *leaf.shape[len(batch_shape) :])), carry))
    problem = flat.Problem(params, start, *flat_steps)
    if T:
        hs, report = solve(method, problem)
    else:
        hs, report = jnp.zeros((0, *start.shape), start.dtype), _nothing_to_do(start)
    _, ys = flat.all_steps(cell, problem, flat.previous(start, hs))
    last = jax.vmap(lambda h: flat.unravel(cell, h))(hs[-1] if T else start)
    last = jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), last)
    ys = reverse_time(ys) if reverse else ys
    return last, jax.tree.map(lambda y: y.reshape(T, *batch_shape, *y.shape[2:]), ys), report


def _nothing_to_do(start: Array) -> NewtonReport:
    return NewtonReport(jnp.array(True), jnp.int32(0), jnp.zeros((), start.dtype), jnp.array(False))


def _check_options(max_iterations: int, tolerance: float | None) -> None:
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1; got {max_iterations}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, or None for one that fits the dtype; got {tolerance}")
