"""Linear recurrences in parallel over time: prefix products of affine maps, with the adjoint as another such scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
