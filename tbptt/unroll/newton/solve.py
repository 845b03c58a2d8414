"""The solution of a recurrence by iteration on all steps, with its implicit derivative."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tbptt.unroll.newton import flat
from tbptt.unroll.newton.methods import Method, largest, relative


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
