"""One iteration, and the derivative at the solution, of Newton's method and of quasi-Newton."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tbptt.types import Cell
from tbptt.unroll.associative import dense_recurrence, diagonal_recurrence
from tbptt.unroll.newton import flat


def largest(errors: Float[Array, "..."]) -> Float[Array, ""]:
    """Return max |error|, or NaN if one is not finite; XLA's maximum on CPU can miss a NaN."""
    return jnp.where(jnp.all(jnp.isfinite(errors)), jnp.max(jnp.abs(errors), initial=0), jnp.nan)


def relative(errors: Float[Array, "T N n"], hs: Float[Array, "T N n"]) -> Float[Array, ""]:
    """Return max |error| / (1 + |h|), or NaN if one is not finite."""
    return largest(errors / (1 + jnp.abs(hs)))


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
