"""Compute step Jacobians, singular values and norms of their products, and an upper bound."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import Array, ArrayLike, Float, Int

from tbptt.diagnostics._product_svd import GradedProduct, identity, log_singular_values, multiply
from tbptt.diagnostics._recurrence import (
    at_least_float32,
    flat_recurrence,
    scaled_norm,
    step_and_jvp,
)
from tbptt.types import Carry, Cell, Params


def step_jacobians(
    cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]
) -> Float[Array, "T N N"]:
    """Compute the Jacobian of every step, with the carry flattened to one vector of N numbers.

        jacobians[t][i, j] = d carry_t[i] / d carry_{t-1}[j]

    so that the product over steps is jacobians[n-1] @ ... @ jacobians[0]; for Elman,
    J = diag(slope) w_h^T. Costs N jvps per step and T N^2 numbers: for small H.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all (h and c of an LSTM:
        N = 2H).
      xs: `[T, D]`.

    Returns:
      jacobians `[T, N, N]`, rows and columns in the order of the carry's leaves. Half-precision
      params, carry and xs are converted to float32 first, as in every diagnostic that takes
      `[T, D]`.

    Raises:
      TypeError: a leaf of the carry is not floating; the cell has a custom backward pass, and so
        no Jacobian (for a ClippedCell it is the Jacobian of the cell inside, the same map
        forward).
      ValueError: xs is not `[T, D]` with T >= 1, or the carry has batch axes.
    """
    start, step, xs = flat_recurrence(cell, params, carry, xs)

    def body(vector: Array, x: Array) -> tuple[Array, Array]:
        return step(vector, x), jax.jacfwd(step)(vector, x)

    return jax.lax.scan(body, start, xs)[1]


def jacobian_product_svd(
    cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]
) -> Float[Array, "T N"]:
    """Compute the log singular values of the Jacobian over 1 .. T steps, in any range.

        log_s[n - 1] = log svd(d carry_{n-1} / d carry_{-1}),    the largest first

    The product is stored as q diag(exp(d)) v with d in logs, updated by one QR per step. Neither
    2^2000 nor 2^-2000 leaves float32's range, and small values keep their accuracy next to large
    ones. Their sum is the sum of log|det J|. For small H: a step costs N jvps, a QR, and a Jacobi
    SVD of N x N.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`.

    Returns:
      log_s `[T, N]`, natural logs. A singular J gives -inf where the zero is exact, else the log
      of a rounding error.

    Raises:
      TypeError, ValueError: as step_jacobians.
    """
    start, step, xs = flat_recurrence(cell, params, carry, xs)

    def body(
        state: tuple[Array, GradedProduct], x: Array
    ) -> tuple[tuple[Array, GradedProduct], GradedProduct]:
        vector, product = state
        left, j_u = step_and_jvp(step, vector, x, product.u)
        product = multiply(j_u, product)
        return (left, product), product

    _, products = jax.lax.scan(body, (start, identity(start.size, start.dtype)), xs)
    return jax.vmap(log_singular_values)(products)


def carry_influence(cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]) -> Any:
    """Compute the norm of d(carry after 1 .. T steps) / d(field of the initial carry).

        influence.f[n - 1] = || d carry_{n-1} / d f_{-1} ||_2,    n = 1 .. T

    the exact spectral norm (largest singular value) of the columns that belong to field f of the
    initial carry; the rows are all fields of the later carry. The product of Jacobians is
    rescaled by powers of two at every step, so a norm is inf or 0 only where the norm itself
    leaves the dtype's range. For small H: a step costs N jvps and an SVD. See
    jacobian_product_svd for logs in any range and for all fields together.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`.

    Returns:
      a pytree like the carry, leaves `[T]`.

    Raises:
      TypeError, ValueError: as step_jacobians.
    """
    start, step, xs = flat_recurrence(cell, params, carry, xs)
    leaves, structure = jax.tree.flatten(carry)
    edges = np.cumsum([np.size(leaf) for leaf in leaves])[:-1].tolist()

    def body(
        state: tuple[Array, Array, Array], x: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
        vector, product, exponent = state
        vector, product = step_and_jvp(step, vector, x, product)
        _, more = jnp.frexp(jnp.max(jnp.abs(product)))
        product, exponent = jnp.ldexp(product, -more), exponent + more
        norms = [jnp.linalg.norm(columns, ord=2) for columns in jnp.split(product, edges, axis=1)]
        return (vector, product, exponent), tuple(jnp.ldexp(norm, exponent) for norm in norms)

    state = (start, jnp.eye(start.size, dtype=start.dtype), jnp.zeros((), jnp.int32))
    return jax.tree.unflatten(structure, jax.lax.scan(body, state, xs)[1])


def log_sigma_max(
    cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"], *, iterations: int = 100
) -> Float[Array, ""]:
    """Compute the log of the largest singular value of the Jacobian over T steps, matrix-free.

        log_sigma_max = log || d carry_{T-1} / d carry_{-1} ||_2

    LOBPCG on v -> P^T P v, where the product P is applied through jvps and vjps of single steps.
    It needs memory for T carries and no N x N matrix. LOBPCG is available in JAX and works inside
    jit. To keep P in range, each factor is divided by the stretch of a vector that three power
    iterations have aligned.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all; N < 6, too few for
        LOBPCG, is solved exactly.
      xs: `[T, D]`.
      iterations: static; maximum number of iterations. Each costs T jvps and T vjps.

    Returns:
      a scalar, natural log; -inf if the product is 0. For the smallest one use
      jacobian_product_svd.

    Raises:
      TypeError, ValueError: as step_jacobians.

    References: Knyazev 2001, *Toward the optimal preconditioned eigensolver: LOBPCG*, SIAM J.
    Sci. Comput. 23.
    """
    start, step, xs = flat_recurrence(cell, params, carry, xs)
    if start.size < 6:
        return jacobian_product_svd(cell, params, carry, xs)[-1, 0]
    _, entering = jax.lax.scan(lambda v, x: (step(v, x), v), start, xs)

    def jvp(vector: Array, x: Array, tangent: Array) -> Array:
        return jax.jvp(lambda v: step(v, x), (vector,), (tangent,))[1]

    def vjp(vector: Array, x: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda v: step(v, x), vector)[1](cotangent)[0]

    def stretched(product: Any, direction: Array, reverse: bool) -> tuple[Array, Array]:
        def body(v: Array, now: Any) -> tuple[Array, Array]:
            pushed = product(*now, v)
            length = scaled_norm(pushed, (0,))
            length = jnp.where(length == 0, 1, length)
            return pushed / length, length

        return jax.lax.scan(body, direction, (entering, xs), reverse=reverse)

    direction = jax.random.normal(jax.random.key(0), start.shape, start.dtype)
    for _ in range(3):
        direction = stretched(vjp, stretched(jvp, direction, False)[0], True)[0]
    end, lengths = stretched(jvp, direction, False)
    # A random vector vanishes only if the product is 0, for which LOBPCG would divide by 0.
    vanished = jnp.all(end == 0)

    def gram(v: Array) -> Array:
        steps = (entering, xs, lengths)
        right, _ = jax.lax.scan(lambda v, now: (jvp(now[0], now[1], v) / now[2], None), v, steps)
        back, _ = jax.lax.scan(
            lambda v, now: (vjp(now[0], now[1], v) / now[2], None), right, steps, reverse=True
        )
        return back

    direction = jnp.where(vanished, 1, direction)
    theta, _, _ = lobpcg_standard(
        jax.vmap(gram, in_axes=1, out_axes=1), direction[:, None], iterations
    )
    return jnp.where(vanished, -jnp.inf, jnp.log(theta[0]) / 2 + jnp.sum(jnp.log(lengths)))


def spectral_radius(w: Float[ArrayLike, "H H"]) -> Float[Array, ""]:
    """Compute the largest absolute eigenvalue, the growth rate of w^n for large n."""
    return jnp.max(jnp.abs(jnp.linalg.eigvals(at_least_float32(w))))


def sigma_max(w: Float[ArrayLike, "M N"]) -> Float[Array, ""]:
    """Compute the largest singular value, the maximum stretch of one step."""
    return jnp.linalg.norm(at_least_float32(w), ord=2)


def log_bound(
    w: Float[ArrayLike, "H H"], steps: int | Int[ArrayLike, "*n"], *, slope: float = 1.0
) -> Float[Array, "*n"]:
    """Compute an upper bound on the Jacobian of an Elman cell over n steps, for any inputs.

        log || J_n ... J_1 ||_2  <=  n log(slope sigma_max(w)),    J_t = diag(activation'(.)) w^T

    So slope sigma_max(w) < 1 is sufficient for vanishing gradients, and > 1 is necessary for
    exploding ones.

    Args:
      w: `[H, H]`, the cell's w_h.
      steps: n, one or many.
      slope: gamma, the activation's largest absolute slope: 1 for tanh, relu and identity, 1/4
        for sigmoid.

    Returns:
      the natural log of the bound, for each n.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural
    networks*, ICML 2013.
    """
    steps, rate = jnp.asarray(steps), jnp.log(slope * sigma_max(w))
    return jnp.where(steps == 0, 0, steps * rate)
