"""The public unroll functions by Newton's method."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from tbptt.types import Carry, Cell, Params
from tbptt.unroll.newton import flat
from tbptt.unroll.newton.solve import DiagonalJacobian, FullJacobian, Method, NewtonReport, solve
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

    `newton_unroll_with_report` describes the method; this function returns its result without the
    report. If the iteration does not converge, the result is that of the plain scan. Values and
    gradients equal those of `unroll` to rounding.

    Args:
      cell: any cell whose carry has floating leaves and whose batch rows are independent; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets: `[T, *batch]` booleans; None for no resets.
      mask: `[T, *batch]` booleans; None if every step exists.
      reverse: run from the last step to the first; static. `ys[t]` still belongs to `xs[t]`.
      remat: None; the trajectory is the only residual.
      max_iterations: the largest number of passes over the sequence; static.
      tolerance: the bound on the last relative correction; None for eps^(2/3) of the carry's dtype;
        static.

    Returns:
      `(carry, ys)`: the carry that leaves the last step and the outputs `[T, *batch, H]`.

    Raises:
      ValueError: `max_iterations` is below 1, `tolerance` is not positive, `remat` is not None, or
        the rank, sizes or dtypes of an argument do not fit the cell.
      TypeError: `xs`, `resets`, `mask` or a leaf of the carry has the wrong dtype.
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

    `quasi_newton_unroll_with_report` describes the method, the arguments and the errors; this
    function returns its result without the report. If the iteration does not converge, the result
    is that of the plain scan.
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
    """Run any cell over a sequence by Newton's method on all steps at once (DEER); report it.

        h_t = f_t(h_{t-1}),    J_t = df_t/dh at h_{t-1}

        hs = [carry] * T
        for iterations in range(1, max_iterations + 1):
            correction = 0
            for t in range(T):                                                       # in parallel
                correction = corrections[t] = J[t] @ correction + f_t(hs[t - 1]) - hs[t]
            hs = hs + corrections
            if max(|corrections| / (1 + |hs|)) <= tolerance: break

    where f_t is the whole step of `unroll`, resets and mask included. If the iteration does not
    converge, the result is that of the plain scan.

    To first order the correction is the error of the preceding hs, including its growth along the
    sequence. `converged` therefore means equality with the plain scan up to rounding as amplified
    by the dynamics, and up to `tolerance` in the worst case. Contractive dynamics converge in a few
    iterations for any T; chaotic dynamics do not converge.

    The gradient is that of the recurrence at the solution and is exact in both cases: one more
    matrix scan from the last step to the first (the plain adjoint without convergence), and the
    vector-Jacobian products of all steps at once for params and xs. The iterations are not
    differentiated. Under `jax.vmap` both the iteration and the plain scan run: use batch axes
    instead.

    Memory: `[T, *batch, n, n]` for carries of n numbers; one iteration takes n^3 operations per
    step. The method suits small n and long T.

    Args:
      cell: any cell whose carry has floating leaves and whose batch rows are independent; static.
      params: its parameters.
      carry: the carry that enters the first step, every leaf `[*batch, ...]`.
      xs: `[T, *batch, D]`; T = 0 is allowed and returns the carry.
      resets, mask, reverse: as in `unroll`.
      remat: None; the trajectory is the only residual.
      max_iterations: the largest number of passes over the sequence; static.
      tolerance: the bound on the last relative correction; None for eps^(2/3) of the carry's dtype,
        4e-11 in float64 and 2.4e-5 in float32; static.

    Returns:
      `(carry, ys, report)`: the results of `unroll`, and a `NewtonReport`.

    Raises:
      ValueError: `max_iterations` is below 1, `tolerance` is not positive, `remat` is not None, or
        the rank, sizes or dtypes of an argument do not fit the cell.
      TypeError: `xs`, `resets`, `mask` or a leaf of the carry has the wrong dtype.

    References: Lim, Zhu, Selfridge and Kasim, *Parallelizing non-linear sequential models over the
    sequence length*, ICLR 2024, arXiv:2309.12252.
    """
    _check_options(max_iterations, tolerance)
    return _unroll(
        FullJacobian(cell, max_iterations, tolerance),
        params,
        carry,
        xs,
        resets,
        mask,
        reverse,
        remat,
    )


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
    """Run any cell over a sequence by quasi-Newton iterations (quasi-DEER); report on them.

        correction_t = (1 - damping) * diag(J_t) * correction_{t-1} + f_t(h_{t-1}) - h_t

        hs = [carry] * T
        for iterations in range(1, max_iterations + 1):
            defects = [f_t(hs[t - 1]) - hs[t] for t in range(T)]
            if max(|defects| / (1 + |hs|)) <= tolerance: break
            correction = 0
            for t in range(T):                                                       # in parallel
                correction = corrections[t] = (1 - damping) * diag(J[t]) * correction + defects[t]
            hs = hs + corrections

    where f_t is the whole step of `unroll`. If the iteration does not converge, the result is that
    of the plain scan. After k iterations the first k steps are exact for every damping. Damping 0
    is quasi-Newton, damping 1 is Jacobi's iteration; values between prevent corrections from
    growing without bound where diagonals exceed 1.

    `converged` means that every step satisfies the recurrence up to `tolerance`, as if the plain
    scan rounded each step by that much. Unlike `newton_unroll_with_report`, it does not measure how
    much the dynamics amplify this error. The gradient uses whole Jacobians and is exact: it is the
    sequential adjoint, with the memory and the time of that of `unroll`.

    Memory: `[T, *batch, n]` for carries of n numbers; one iteration takes n Jacobian-vector
    products, in turn.

    Args:
      cell, params, carry, xs, resets, mask, reverse, remat: as in `newton_unroll`.
      max_iterations: the largest number of passes over the sequence; static.
      tolerance: the bound on the largest relative defect; None for 16 eps of the carry's dtype,
        3.6e-15 in float64 and 1.9e-6 in float32; static.
      damping: from 0 to 1; static.

    Returns:
      `(carry, ys, report)`: the results of `unroll`, and a `NewtonReport`.

    Raises:
      ValueError: as `newton_unroll`, or `damping` is outside [0, 1].
      TypeError: `xs`, `resets`, `mask` or a leaf of the carry has the wrong dtype.

    References: Gonzalez, Warrington, Smith and Linderman, *Towards scalable and stable
    parallelization of nonlinear RNNs*, NeurIPS 2024, arXiv:2407.19115 (with a trust region, ELK,
    instead of damping).
    """
    _check_options(max_iterations, tolerance)
    if not 0 <= damping <= 1:
        raise ValueError(
            f"damping must be from 0 (quasi-Newton) to 1 (Jacobi's iteration); got {damping}"
        )
    return _unroll(
        DiagonalJacobian(cell, max_iterations, tolerance, damping),
        params,
        carry,
        xs,
        resets,
        mask,
        reverse,
        remat,
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
            "remat must be None for the Newton unrolls, whose only residual is the trajectory; "
            f"got {remat}. Use unroll to rematerialise"
        )
    cell = method.cell
    steps = validated_steps(cell, params, carry, xs, resets, mask)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = f"carry{jax.tree_util.keystr(path)}"
            raise TypeError(
                f"{where} must be floating-point; got {jnp.result_type(leaf)}: use unroll"
            )
    T, batch_shape = steps.xs.shape[0], steps.xs.shape[1:-1]
    N = math.prod(batch_shape)
    flat_steps = jax.tree.map(lambda a: a.reshape(T, N, *a.shape[1 + len(batch_shape) :]), steps)
    flat_steps = reverse_time(flat_steps) if reverse else flat_steps
    start = jax.vmap(flat.ravel)(
        jax.tree.map(lambda leaf: jnp.reshape(leaf, (N, *leaf.shape[len(batch_shape) :])), carry)
    )
    problem = flat.Problem(params, start, *flat_steps)
    if T:
        hs, report = solve(method, problem)
    else:
        hs, report = jnp.zeros((0, *start.shape), start.dtype), _empty_report(start)
    _, ys = flat.all_steps(cell, problem, flat.entering_carries(start, hs))
    last = jax.vmap(lambda h: flat.unravel(cell, h))(hs[-1] if T else start)
    last = jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), last)
    ys = reverse_time(ys) if reverse else ys
    return last, jax.tree.map(lambda y: y.reshape(T, *batch_shape, *y.shape[2:]), ys), report


def _empty_report(start: Array) -> NewtonReport:
    return NewtonReport(jnp.array(True), jnp.int32(0), jnp.zeros((), start.dtype), jnp.array(False))


def _check_options(max_iterations: int, tolerance: float | None) -> None:
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1; got {max_iterations}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(
            f"tolerance must be above 0, or None for the default of the dtype; got {tolerance}"
        )
