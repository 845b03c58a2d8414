"""The solution of a recurrence by iteration on all steps, with its implicit derivative.

The iterations are those of Newton's method, with the full Jacobian, and of quasi-Newton, with its
diagonal.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.types import Cell
from tbptt.unroll.associative import dense_recurrence, diagonal_recurrence
from tbptt.unroll.newton import flat


class NewtonReport(NamedTuple):
    """Outcome of the iteration, over all steps and batch rows of a call.

    converged:  the iteration met its tolerance, and its result was returned
    iterations: passes over the whole sequence
    residual:   max |h_t - f(h_{t-1}, x_t)| of the last iterate; NaN if it is not finite
    fell_back:  the iteration did not converge, and the result of the plain scan was returned, at
                the additional cost of that scan
    """

    converged: Bool[Array, ""]
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    fell_back: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class FullJacobian:
    """Newton's method: `[T, N, n, n]` numbers, n^3 operations per step, quadratic convergence."""

    cell: Cell
    max_iterations: int
    tolerance: float | None

    def limit(self, dtype: Any) -> float:
        """Return the bound on the last correction; the remaining error is about its square."""
        return float(jnp.finfo(dtype).eps) ** (2 / 3) if self.tolerance is None else self.tolerance

    def improve(self, problem: flat.Problem, hs: Array) -> tuple[Array, Array]:
        """Return the corrected hs and the size of the correction, the first-order error of hs."""
        images, jacobians = self._linearized(problem, flat.entering_carries(problem.start, hs))
        corrections = dense_recurrence(jacobians, images - hs, jnp.zeros_like(problem.start))
        return hs + corrections, relative(corrections, hs)

    def tangents(
        self,
        problem: flat.Problem,
        before: Array,
        start: Array,
        sources: Array,
        fell_back: Bool[Array, ""],
    ) -> Array:
        """Solve `dh_t = J_t dh_{t-1} + sources_t`, whose transpose is the adjoint recurrence.

        Without convergence, products of Jacobians may overflow even if the gradient does not; then
        the steps are taken one after another.
        """
        zeros = jnp.zeros_like(start)

        def residual(dhs: Array) -> Array:
            entering = flat.entering_carries(zeros, dhs)
            return dhs - flat.all_tangents(self.cell, problem, before, entering)

        def in_parallel(sources: Array) -> Array:
            return dense_recurrence(self._linearized(problem, before)[1], sources, zeros)

        def sequentially(sources: Array) -> Array:
            return flat.sequential_tangents(self.cell, problem, before, zeros, sources)

        def transposed(solve: Callable[[Array], Array]) -> Callable[[Array], Array]:
            return lambda g: jax.linear_transpose(solve, sources)(g)[0]

        # The transpose is given, because jax cannot transpose a `cond` under vmap.
        return jax.lax.custom_linear_solve(
            residual,
            sources.at[0].add(flat.first_tangent(self.cell, problem, before, start)),
            lambda _, b: jax.lax.cond(fell_back, sequentially, in_parallel, b),
            lambda _, g: jax.lax.cond(
                fell_back, transposed(sequentially), transposed(in_parallel), g
            ),
        )

    def _linearized(self, problem: flat.Problem, before: Array) -> tuple[Array, Array]:
        def one(h: Array, *inputs: Any) -> tuple[Array, Array]:
            image, push = jax.linearize(
                lambda h: flat.step(self.cell, problem.params, h, *inputs)[0], h
            )
            return image, jax.vmap(push, out_axes=-1)(jnp.eye(h.size, dtype=h.dtype))

        return jax.vmap(jax.vmap(one))(before, problem.xs, problem.resets, problem.mask)


@dataclasses.dataclass(frozen=True)
class DiagonalJacobian:
    """Quasi-Newton: diagonals of the Jacobians, `[T, N, n]` numbers, linear convergence."""

    cell: Cell
    max_iterations: int
    tolerance: float | None
    damping: float

    def limit(self, dtype: Any) -> float:
        """Return the bound on the largest defect of a step.

        The correction is no error estimate here, because the Jacobian is approximate.
        """
        return 16 * float(jnp.finfo(dtype).eps) if self.tolerance is None else self.tolerance

    def improve(self, problem: flat.Problem, hs: Array) -> tuple[Array, Array]:
        """Return the corrected hs and the largest defect of hs; no correction within the bound."""
        images, diagonals = self._linearized(problem, flat.entering_carries(problem.start, hs))
        defects = images - hs
        error = relative(defects, hs)
        corrections = diagonal_recurrence(
            (1 - self.damping) * diagonals, defects, jnp.zeros_like(problem.start)
        )
        return jnp.where(error <= self.limit(hs.dtype), hs, hs + corrections), error

    def tangents(
        self,
        problem: flat.Problem,
        before: Array,
        start: Array,
        sources: Array,
        fell_back: Bool[Array, ""],
    ) -> Array:
        """Solve `dh_t = J_t dh_{t-1} + sources_t` by a scan of Jacobian-vector products."""
        del fell_back
        return flat.sequential_tangents(self.cell, problem, before, start, sources)

    def _linearized(self, problem: flat.Problem, before: Array) -> tuple[Array, Array]:
        images, push = jax.linearize(
            lambda before: flat.all_steps(self.cell, problem, before)[0], before
        )
        n = before.shape[-1]

        # In turn, because all rows at once need n^2 numbers.
        def row(
            k: Array,
        ) -> Array:
            return push(jnp.zeros_like(before).at[..., k].set(1))[..., k]

        return images, jnp.moveaxis(jax.lax.map(row, jnp.arange(n)), 0, -1)


Method = FullJacobian | DiagonalJacobian


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def solve(method: Method, problem: flat.Problem) -> tuple[Float[Array, "T N n"], NewtonReport]:
    """Solve `h_t = f_t(h_{t-1})` for all t, T >= 1.

        hs = [start] * T
        for iterations in range(1, max_iterations + 1):
            hs, error = improve(hs)
            if error <= limit or not finite: break
        converged = error <= limit and relative residual of hs <= limit
        hs = [f_t(hs[t - 1]) for t in range(T)] if converged else the plain scan

    The derivative is that of the recurrence at the solution, `dh_t = J_t dh_{t-1} + df_t`, where
    df_t is the derivative of step t with respect to the parameters and inputs, computed for all
    steps at once.
    """
    limit = method.limit(problem.start.dtype)

    def not_finished(state: tuple[Array, Array, Array]) -> Array:
        _, iterations, error = state
        return (iterations < method.max_iterations) & (error > limit)  # False for NaN

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        hs, iterations, _ = state
        hs, error = method.improve(problem, hs)
        return hs, iterations + 1, error

    guess = jnp.broadcast_to(problem.start, (len(problem.xs), *problem.start.shape))
    infinite = jnp.full((), jnp.inf, guess.dtype)
    hs, iterations, error = jax.lax.while_loop(not_finished, body, (guess, jnp.int32(0), infinite))
    images, _ = flat.all_steps(method.cell, problem, flat.entering_carries(problem.start, hs))
    converged = (error <= limit) & (relative(images - hs, hs) <= limit)
    residual = largest(images - hs)
    hs = jax.lax.cond(converged, lambda: images, lambda: flat.sequential(method.cell, problem))
    return hs, NewtonReport(converged, iterations, residual, ~converged)


@solve.defjvp
def _solve_jvp(
    method: Method, primals: tuple[flat.Problem], tangents: tuple[flat.Problem]
) -> tuple:
    (problem,), (moved,) = primals, tangents
    hs, report = solve(method, problem)
    before = flat.entering_carries(problem.start, hs)

    def steps(params: object, xs: Array) -> Array:
        return flat.all_steps(method.cell, problem._replace(params=params, xs=xs), before)[0]

    _, sources = jax.jvp(steps, (problem.params, problem.xs), (moved.params, moved.xs))
    dhs = method.tangents(problem, before, moved.start, sources, report.fell_back)
    return (hs, report), (dhs, jax.custom_derivatives.zero_from_primal(report))


def largest(errors: Float[Array, "..."]) -> Float[Array, ""]:
    """Return max |error|, or NaN if one is not finite; XLA's maximum on CPU can miss a NaN."""
    return jnp.where(jnp.all(jnp.isfinite(errors)), jnp.max(jnp.abs(errors), initial=0), jnp.nan)


def relative(errors: Float[Array, "T N n"], hs: Float[Array, "T N n"]) -> Float[Array, ""]:
    """Return max |error| / (1 + |h|), or NaN if one is not finite."""
    return largest(errors / (1 + jnp.abs(hs)))
