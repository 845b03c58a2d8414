"""The sparsity of the Jacobians of one step, detected by differentiation at random points."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from tbptt.estimators.online.common import check_memory, one_step, step_at
from tbptt.numerics import floating_leaves
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import step_shape

# Number of random points (times batch rows) at which a derivative must be 0 to be taken for a
# structural zero. A relu is inactive at half of them.
POINTS = 40


class JacobianSparsity(NamedTuple):
    """The entries of the Jacobians of one step that can be other than 0 (NumPy arrays).

    n is the number of carry entries per batch row, P the number of parameters.

    direct:   `[P, n]` whether parameter p enters carry entry i within the step itself
    jacobian: `[n, n]` whether old carry entry m enters new carry entry i, at [i, m]
    """

    direct: Bool[np.ndarray, "P n"]
    jacobian: Bool[np.ndarray, "n n"]


def find_jacobian_sparsity(
    loss_fn: LossFn, name: str, params: Params, carry: Carry, batch: Batch
) -> JacobianSparsity:
    """Detect the sparsity of the Jacobians of one step, from shapes only.

    The function may be called while another program is traced; the values of its arguments are not
    used. It differentiates one step at random points. An entry that is 0 at all of them is taken to
    be 0.

    A program that indexes a table by integers (an embedding) reads few of its rows at these points.
    The other rows are then assumed to reach all that the leaf reaches. A branch that a step takes
    only at other integers than those tried (0, 1, 2, more with small batches) is not detected; use
    rtrl for such a step.

    Raises:
      ValueError: a leaf of the carry is not `[*batch, ...]`, batch rows depend on each other, no
        derivative is finite, or the pattern does not fit into memory.
      TypeError: loss_fn closes over traced arrays, so that it cannot be run while tracing.
    """
    batch_shape = step_shape(batch)[1:]
    _check_carry(carry, batch_shape)
    step = one_step(batch)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)), (params, carry, step)
    )
    inputs = jax.tree.leaves(step.inputs)
    reads_tables = any(not jnp.issubdtype(a.dtype, jnp.inexact) for a in inputs)
    draws = max(8 if reads_tables else 4, -(-POINTS // max(1, int(np.prod(batch_shape)))))
    P = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    n = row_size(floating_leaves(carry), batch_shape)
    what = (
        f"the pattern of {name}, {P:,} parameters by {n:,} carry entries per batch row at {draws} "
        "points,"
    )
    remedy = "Use uoro(loss_fn) or truncated_bptt, or a narrower cell"
    check_memory(what, draws * n * (P + n), remedy)
    points = _random_points(draws, *shapes)

    def at_point(point: Any) -> tuple[Array, Array, Array, Array]:
        return _nonzero(loss_fn, batch_shape, *jax.tree.map(_as_leaf, shapes, point))

    try:  # compiled ahead of time, and run on concrete values inside of any trace
        program = jax.jit(lambda points: jax.lax.map(at_point, points)).lower(points).compile()
        found = [np.asarray(a) for a in program(points)]
    except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError) as error:
        raise TypeError(
            f"{name} cannot be run on concrete values while a program is traced: does it close "
            "over a traced array? Pass such arrays in params, carry or batch"
        ) from error
    direct, jacobian, mixed, usable = found
    if not usable.any():
        raise ValueError(
            f"{name} had no finite derivative at {len(usable)} random points, so its sparsity is "
            "unknown. Use rtrl(loss_fn)"
        )
    if mixed[usable].any():
        raise ValueError(
            f"in {name} the rows of a batch depend on each other through the carry, but snap and "
            "sparse_rtrl need independent rows. Use rtrl, or a loss_fn with independent rows"
        )
    direct, jacobian = np.any(direct[usable], axis=0).T, np.any(jacobian[usable], axis=0)
    direct = _with_unread_rows(params, direct) if reads_tables else direct
    return JacobianSparsity(direct, jacobian)


def _check_carry(carry: Carry, batch_shape: tuple[int, ...]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if is_float and np.shape(leaf)[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"carry{jax.tree_util.keystr(path)} must be [*batch, ...] with *batch = "
                f"{batch_shape}, the batch axes of the batch; got shape {np.shape(leaf)}. Give "
                "batch.weights [T, *batch] if its inputs have more than one axis after *batch"
            )


def flatten_rows(floats: list[Array], batch_shape: tuple[int, ...]) -> Float[Array, "B n"]:
    """Concatenate the floating leaves of a carry to one vector per batch row."""
    B = math.prod(batch_shape)
    flat = [leaf.reshape(B, row_size([leaf], batch_shape)) for leaf in floats]
    return jnp.concatenate(flat, axis=1)


def unflatten_rows(
    flat: Float[Array, "B n"], floats: list[Array], batch_shape: tuple[int, ...]
) -> list[Array]:
    """Invert `flatten_rows`: return leaves with the shapes and dtypes of `floats`."""
    edges = np.cumsum([row_size([leaf], batch_shape) for leaf in floats])[:-1].tolist()
    leaves = zip(jnp.split(flat, edges, axis=1), floats, strict=True)
    return [new.reshape(leaf.shape).astype(leaf.dtype) for new, leaf in leaves]


def row_size(floats: list[Array], batch_shape: tuple[int, ...]) -> int:
    """Return n, the number of carry entries per batch row."""
    return sum(math.prod(np.shape(leaf)[len(batch_shape) :]) for leaf in floats)


def _nonzero(
    loss_fn: LossFn, batch_shape: tuple[int, ...], params: Params, carry: Carry, step: Batch
) -> Any:
    """Pull back one carry entry after another, in all batch rows at once, with unequal weights.

    Returns:
      (direct `[n, P]`, jacobian `[n, n]`, whether rows depend on each other, whether all finite).
    """
    at = step_at(loss_fn, carry, step)
    vjp = at.vjp(params)
    zero = jnp.zeros((), jax.eval_shape(at.run, params, at.floats)[0][0].dtype)
    B, n = flatten_rows(at.floats, batch_shape).shape
    weights = jnp.cos(1.0 + jnp.arange(B))[:, None]  # nowhere 0, and no two rows cancel

    def back(cotangent: Array) -> tuple[Array, Array]:
        d_params, d_floats = vjp((zero, unflatten_rows(cotangent, at.floats, batch_shape)))
        return ravel_pytree(d_params)[0], flatten_rows(d_floats, batch_shape)

    def unit(i: Array) -> tuple[Array, Array, Array]:
        d_params, d_carry = back(jnp.where(jnp.arange(n) == i, weights, 0))
        finite = jnp.all(jnp.isfinite(d_params)) & jnp.all(jnp.isfinite(d_carry))
        return d_params != 0, jnp.any(d_carry != 0, axis=0), finite

    direct, jacobian, finite = jax.lax.map(unit, jnp.arange(n))
    first = jnp.arange(B)[:, None] == 0
    only_first = jnp.broadcast_to(first, (B, n)) * jnp.cos(1.0 + jnp.arange(n))
    mixed = jnp.any(jnp.where(first, 0, back(only_first)[1]) != 0)
    return direct, jacobian, mixed, jnp.all(finite)


def _random_points(
    draws: int, params: Params, carry: Carry, step: Batch
) -> tuple[Params, Carry, Batch]:
    """Draw random points from shapes, as NumPy leaves `[draws, ...]`.

    Every other point has positive numbers only: there relus are active and logarithms exist.
    Integers in the carry are 0, 1, 2, ... Integers in the batch may index a table of unknown
    length, past the end of which nothing is finite: half of them are 0, the others increase by one
    every second point.
    """
    random = np.random.default_rng(0)

    def draw(leaf: Any, integers: np.ndarray, scale_by_width: bool) -> np.ndarray:
        shape = (draws, *leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            width = max(1, *leaf.shape) if scale_by_width and leaf.shape else 1
            value = random.normal(size=shape)
            value[::2] = np.abs(value[::2]) / width  # nothing saturates, for any fan-in
            value[1::2] /= np.sqrt(width)
            return value.astype(leaf.dtype)
        if leaf.dtype == jnp.bool_:
            return random.random(shape) < 0.5
        dtype = np.uint32 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype
        return np.broadcast_to(integers.reshape(draws, *[1] * len(leaf.shape)), shape).astype(dtype)

    counts, half = np.arange(draws), draws // 2
    symbols = np.where(counts < half, 0, 1 + (counts - half) // 2)
    new = jax.tree.map(lambda a: draw(a, symbols, False), step)
    if step.weights is not None:
        new = new._replace(weights=np.ones_like(new.weights))
    if step.resets is not None:
        new = new._replace(resets=np.zeros_like(new.resets))
    if step.mask is not None:
        new = new._replace(mask=np.ones_like(new.mask))
    params = jax.tree.map(lambda a: draw(a, counts, True), params)
    return params, jax.tree.map(lambda a: draw(a, counts, False), carry), new


def _as_leaf(shape: jax.ShapeDtypeStruct, value: Array) -> Array:
    """Convert drawn integers to keys for leaves that hold keys."""
    if not jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return value
    return jax.vmap(jax.random.key)(value.reshape(-1)).reshape(value.shape)


def _with_unread_rows(params: Params, direct: Bool[np.ndarray, "P n"]) -> Bool[np.ndarray, "P n"]:
    """Assume that entries of a leaf that reach nothing reach all that the leaf reaches."""
    edges = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(params)])[:-1]
    leaves = np.split(direct, edges)
    return np.concatenate(
        [np.where(p.any(1, keepdims=True), p, p.any(0, keepdims=True)) for p in leaves]
    )
