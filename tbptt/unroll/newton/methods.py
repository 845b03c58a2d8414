"""What two kinds of Newton iteration do in one pass over all steps, and how each finds derivatives at the solution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tbptt.types import Cell
from tbptt.unroll.associative import dense_recurrence, diagonal_recurrence
from tbptt.unroll.newton import flat


def largest(errors: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns max |error|; NaN if one is not finite (XLA's own maximum on CPU lets a NaN go by)."""
    return jnp.where(jnp.all(jnp.isfinite(errors)), jnp.max(jnp.abs(errors), initial=0), jnp.nan)


def relative(errors: Float[Array, "T N n"], hs: Float[Array, "T N n"]) -> Float[Array, ""]:
    """Returns max |error| / (1 + |h|); NaN if one is not finite."""
    return largest(errors / (1 + jnp.abs(hs)))


@dataclasses.dataclass(frozen=True)
class FullJacobian:
    """Newton's method itself: `[T, N, n, n]` numbers and n^3 operations a step, and quadratic convergence."""

    cell: Cell
    max_iterations: int
    tolerance: float | None

    def limit(self, dtype: Any) -> float:
        """The size of the last correction: squared by the correction itself, this is below rounding."""
        return float(jnp.finfo(dtype).eps) ** (2 / 3) if self.tolerance is None else self.tolerance

    def improve(self, problem: flat.Problem, hs: Array) -> tuple[Array, Array]:
        """Returns (corrected hs, the size of the correction, which is hs's error to first order)."""
        images, jacobians = self._linearized(problem, flat.previous(problem.start, hs))
        corrections = dense_recurrence(jacobians, images - hs, jnp.zeros_like(problem.start))
        return hs + corrections, relative(corrections, hs)

    def tangents(
        self, problem: flat.Problem, before: Array, start: Array, sources: Array, fell_back: Bool[Array, ""]
    ) -> Array:
        """Solves `dh_t = J_t dh_{t-1} + sources_t`; transposed by JAX, the adjoint `l_{t-1} = J_t^T l_t + ...`."""

        def in_parallel(start: Array, sources: Array) -> Array:
            return dense_recurrence(self._linearized(problem, before)[1], sources, start)

        def in_order(start: Array, sources: Array) -> Array:
            return flat.tangents_in_order(self.cell, problem, before, start, sources)

        # Where the iteration did not converge, products of Jacobians may overflow even if the gradient does not.
        return jax.lax.cond(fell_back, in_order, in_parallel, start, sources)

    def _linearized(self, problem: flat.Problem, before: Array) -> tuple[Array, Array]:
        def one(h: Array, *inputs: Any) -> tuple[Array, Array]:
            image, push = jax.linearize(lambda h: flat.step(self.cell, problem.params, h, *inputs)[0], h)
            return image, jax.vmap(push, out_axes=-1)(jnp.eye(h.size, dtype=h.dtype))

        return jax.vmap(jax.vmap(one))(before, problem.xs, problem.resets, problem.mask)


@dataclasses.dataclass(frozen=True)
class DiagonalJacobian:
    """Newton's method with the Jacobians' diagonals only: `[T, N, n]` numbers, n operations a step; linear convergence."""

    cell: Cell
    max_iterations: int
    tolerance: float | None
    damping: float

    def limit(self, dtype: Any) -> float:
        """The largest defect of a step. A small correction would prove nothing here: it comes from a wrong Jacobian."""
        return 16 * float(jnp.finfo(dtype).eps) if self.tolerance is None else self.tolerance

    def improve(self, problem: flat.Problem, hs: Array) -> tuple[Array, Array]:
        """Returns (corrected hs, the largest defect of hs before); hs stay as they are once they are good enough."""
        images, diagonals = self._linearized(problem, flat.previous(problem.start, hs))
        defects = images - hs
        error = relative(defects, hs)
        corrections = diagonal_recurrence((1 - self.damping) * diagonals, defects, jnp.zeros_like(problem.start))
        return jnp.where(error <= self.limit(hs.dtype), hs, hs + corrections), error

    def tangents(
        self, problem: flat.Problem, before: Array, start: Array, sources: Array, fell_back: Bool[Array, ""]
    ) -> Array:
        """Solves `dh_t = J_t dh_{t-1} + sources_t` with the whole J_t, in order: exact, and without n^2 numbers a step."""
        del fell_back
        return flat.tangents_in_order(self.cell, problem, before, start, sources)

    def _linearized(self, problem: flat.Problem, before: Array) -> tuple[Array, Array]:
        images, push = jax.linearize(lambda before: flat.all_steps(self.cell, problem, before)[0], before)
        n = before.shape[-1]

        def row(k: Array) -> Array:  # one after another: together they would need the n^2 numbers that are to be saved
            return push(jnp.zeros_like(before).at[..., k].set(1))[..., k]

        return images, jnp.moveaxis(jax.lax.map(row, jnp.arange(n)), 0, -1)


Method = FullJacobian | DiagonalJacobian
