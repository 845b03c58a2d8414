"""Jacobians of one step, the singular values of their products over many steps, and the bound that must hold."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import Array, ArrayLike, Float, Int

from tbptt.diagnostics import graded
from tbptt.diagnostics.carries import one_sequence, push, safe_norm, widened
from tbptt.types import Carry, Cell, Params


def step_jacobians(cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]) -> Float[Array, "T N N"]:
    """Computes the Jacobian of every step, exactly, the carry flattened to one vector of N numbers.

        jacobians[t][i, j] = d carry_t[i] / d carry_{t-1}[j]

    so that the product over steps reads jacobians[n-1] @ ... @ jacobians[0]; for Elman J = diag(slope) w_h^T. Costs N
    jvps a step and T N^2 numbers: for small H.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all (h and c of an LSTM: N = 2H).
      xs: `[T, D]`.

    Returns:
      jacobians `[T, N, N]`, rows and columns in the order of the carry's leaves; float32 for half precision, to which
        params, carry and xs are widened first, here and in every other diagnostic that takes `[T, D]`.

    Raises:
      TypeError: a leaf of the carry is not floating; the cell has a backward pass of its own, and so no Jacobian (but of a
        ClippedCell it is the Jacobian of the cell inside: forward they are the same).
      ValueError: xs is not `[T, D]` with T >= 1, or the carry has batch axes.
    """
    start, step, xs = one_sequence(cell, params, carry, xs)

    def body(vector: Array, x: Array) -> tuple[Array, Array]:
        return step(vector, x), jax.jacfwd(step)(vector, x)

    return jax.lax.scan(body, start, xs)[1]


def jacobian_product_svd(cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"]) -> Float[Array, "T N"]:
    """Computes the log singular values of the Jacobian over 1 .. T steps, exactly, in any range.

        log_s[n - 1] = log svd(d carry_{n-1} / d carry_{-1}),    the largest first

    The product is kept as q diag(exp(d)) v with d in logs and one QR a step: neither 2^2000 nor 2^-2000 leaves float32,
    and the small ones keep their accuracy beside the large. Their sum is the sum of log|det J|. For small H: a step
    costs N jvps and a QR, and a Jacobi SVD of N x N.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all.
      xs: `[T, D]`.

    Returns:
      log_s `[T, N]`, natural logs. A singular J gives -inf where the zero is exact, else the log of a rounding error.

    Raises:
      TypeError, ValueError: as step_jacobians.
    """
    start, step, xs = one_sequence(cell, params, carry, xs)

    def body(state: tuple[Array, graded.Graded], x: Array) -> tuple[tuple[Array, graded.Graded], graded.Graded]:
        vector, product = state
        left, j_u = push(step, vector, x, product.u)
        product = graded.multiply(j_u, product)
        return (left, product), product

    _, products = jax.lax.scan(body, (start, graded.identity(start.size, start.dtype)), xs)
    return jax.vmap(graded.log_singular_values)(products)


def log_sigma_max(
    cell: Cell, params: Params, carry: Carry, xs: Float[ArrayLike, "T D"], *, iterations: int = 100
) -> Float[Array, ""]:
    """Computes the log of the largest singular value of the Jacobian over T steps, matrix-free.

        log_sigma_max = log || d carry_{T-1} / d carry_{-1} ||_2

    by LOBPCG on v -> P^T P v, which sees the product P through jvps and vjps of single steps only: T carries of memory,
    no N x N matrix. LOBPCG because it is in JAX and jits (scipy's svds would leave the device at each product); each
    factor is divided by how far it stretched a vector that three power iterations had aligned, so P stays in range.

    Args:
      cell: static.
      params: the cell's.
      carry: enters step 0, leaves without batch axes, N numbers in all; N < 6, too few for LOBPCG, is solved exactly.
      xs: `[T, D]`.
      iterations: static; at most so many. Each costs T jvps and T vjps.

    Returns:
      a scalar, natural log; -inf if the product is 0. For the smallest one take jacobian_product_svd.

    Raises:
      TypeError, ValueError: as step_jacobians.

    References: Knyazev 2001, *Toward the optimal preconditioned eigensolver: LOBPCG*, SIAM J. Sci. Comput. 23.
    """
    start, step, xs = one_sequence(cell, params, carry, xs)
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
            length = safe_norm(pushed, (0,))
            length = jnp.where(length == 0, 1, length)
            return pushed / length, length

        return jax.lax.scan(body, direction, (entering, xs), reverse=reverse)

    direction = jax.random.normal(jax.random.key(0), start.shape, start.dtype)
    for _ in range(3):
        direction = stretched(vjp, stretched(jvp, direction, False)[0], True)[0]
    end, lengths = stretched(jvp, direction, False)
    vanished = jnp.all(end == 0)  # a random vector did: the product is 0, on which LOBPCG would divide by 0

    def gram(v: Array) -> Array:
        steps = (entering, xs, lengths)
        right, _ = jax.lax.scan(lambda v, now: (jvp(now[0], now[1], v) / now[2], None), v, steps)
        back, _ = jax.lax.scan(lambda v, now: (vjp(now[0], now[1], v) / now[2], None), right, steps, reverse=True)
        return back

    direction = jnp.where(vanished, 1, direction)
    theta, _, _ = lobpcg_standard(jax.vmap(gram, in_axes=1, out_axes=1), direction[:, None], iterations)
    return jnp.where(vanished, -jnp.inf, jnp.log(theta[0]) / 2 + jnp.sum(jnp.log(lengths)))


def spectral_radius(w: Float[ArrayLike, "H H"]) -> Float[Array, ""]:
    """Computes the largest absolute eigenvalue, which says how w^n grows for large n."""
    return jnp.max(jnp.abs(jnp.linalg.eigvals(widened(w))))


def sigma_max(w: Float[ArrayLike, "M N"]) -> Float[Array, ""]:
    """Computes the largest singular value, which says how much one step can stretch at most."""
    return jnp.linalg.norm(widened(w), ord=2)


def log_bound(w: Float[ArrayLike, "H H"], steps: int | Int[ArrayLike, "*n"], *, slope: float = 1.0) -> Float[Array, "*n"]:
    """Computes the bound that the Jacobian of an Elman cell over any n steps never exceeds, whatever the inputs.

        log || J_n ... J_1 ||_2  <=  n log(slope sigma_max(w)),    J_t = diag(activation'(.)) w^T

    So slope sigma_max(w) < 1 is enough to vanish, and > 1 is needed to explode.

    Args:
      w: `[H, H]`, the cell's w_h.
      steps: n, one or many.
      slope: gamma, the activation's largest absolute slope: 1 for tanh, relu and identity, 1/4 for sigmoid.

    Returns:
      the natural log of the bound, for each n.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """
    steps, rate = jnp.asarray(steps), jnp.log(slope * sigma_max(w))
    return jnp.where(steps == 0, 0, steps * rate)
