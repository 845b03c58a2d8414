"""Which numbers of a carry a parameter enters in one step, and which enter which: found by differentiating at random."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from tbptt.estimators.online.common import floats_of, one_step, opened
from tbptt.estimators.online.memory_check import check_fits
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import step_shape

# Random points, lanes counted, at which a derivative must have been 0 to be taken for 0 always: a relu is off at half.
POINTS = 40


class Pattern(NamedTuple):
    """Where the derivatives of one step can be other than 0; n numbers in a lane's carry, P parameters (NumPy arrays).

    direct:   `[P, n]` parameter p enters new number i within the step itself
    jacobian: `[n, n]` old number m enters new number i, at [i, m]
    """

    direct: Bool[np.ndarray, "P n"]
    jacobian: Bool[np.ndarray, "n n"]


def find_pattern(loss_fn: LossFn, name: str, params: Params, carry: Carry, batch: Batch) -> Pattern:
    """Finds the pattern from shapes alone, while a program is being traced: the values given are not looked at.

    One step is differentiated at random points; an entry that was 0 at all of them is taken to be 0. A program that reads
    a table by integers (an embedding) shows few rows of it: there the other rows are given the reach of all that leaf. What
    a step does only at integers that were not tried (0, 1, 2, more with few lanes) stays unseen: use rtrl there.

    Raises:
      ValueError: a leaf of the carry is not `[*batch, ...]`, lanes exchange numbers, no derivative was finite, or the
        pattern does not fit into memory.
      TypeError: loss_fn closes over traced arrays, so that it cannot be run while tracing.
    """
    lanes = step_shape(batch)[1:]
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.shape(leaf)[: len(lanes)] != lanes:
            raise ValueError(
                f"carry{jax.tree_util.keystr(path)} must be [*batch, ...] with *batch = {lanes}, the lanes in which the "
                f"batch's steps are counted; got shape {np.shape(leaf)}. Give batch.weights [T, *batch] if its inputs have "
                "more axes than one behind *batch"
            )
    piece = one_step(batch)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)), (params, carry, piece))
    reads_tables = any(not jnp.issubdtype(a.dtype, jnp.inexact) for a in jax.tree.leaves(piece.inputs))
    draws = max(8 if reads_tables else 4, -(-POINTS // max(1, int(np.prod(lanes)))))
    P, n = sum(np.size(leaf) for leaf in jax.tree.leaves(params)), rows_size(floats_of(carry), lanes)
    what = f"the pattern of {name}, {P:,} parameters by {n:,} numbers of a lane's carry at {draws} points,"
    check_fits(what, draws * n * (P + n), "Use uoro(loss_fn) or truncated_bptt, or a narrower cell")
    points = _random_points(draws, *shapes)

    def at_point(point: Any) -> tuple[Array, Array, Array, Array]:
        return _nonzero(loss_fn, lanes, *jax.tree.map(_as_leaf, shapes, point))

    try:  # compiled ahead and run on numbers, whatever is being traced around it
        program = jax.jit(lambda points: jax.lax.map(at_point, points)).lower(points).compile()
        found = [np.asarray(a) for a in program(points)]
    except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError) as error:
        raise TypeError(
            f"{name} cannot be run on numbers while a program is traced: does it close over a traced array? Hand such "
            "arrays over in params, carry or batch"
        ) from error
    direct, jacobian, mixed, usable = found
    if not usable.any():
        raise ValueError(f"{name} had no finite derivative at {len(usable)} random points, so its pattern is not known")
    if mixed[usable].any():
        raise ValueError(
            f"in {name} the lanes of a batch exchange numbers through the carry, but snap and sparse_rtrl keep influences "
            "lane by lane. Use rtrl, which does not, or a loss_fn whose lanes are independent"
        )
    direct, jacobian = np.any(direct[usable], axis=0).T, np.any(jacobian[usable], axis=0)
    return Pattern(_with_unread_rows(params, direct) if reads_tables else direct, jacobian)


def rows(floats: list[Array], lanes: tuple[int, ...]) -> Float[Array, "B n"]:
    """Flattens the floating leaves of a carry to one row a lane."""
    B = int(np.prod(lanes))
    return jnp.concatenate([leaf.reshape(B, -1) for leaf in floats], axis=1)


def rows_size(floats: list[Array], lanes: tuple[int, ...]) -> int:
    """Returns n, the numbers in one lane's row."""
    return sum(np.size(leaf) for leaf in floats) // max(1, int(np.prod(lanes)))


def from_rows(flat: Float[Array, "B n"], floats: list[Array]) -> list[Array]:
    """Makes leaves like `floats` again."""
    edges = np.cumsum([leaf.size // flat.shape[0] for leaf in floats])[:-1].tolist()
    parts = jnp.split(flat, edges, axis=1)
    return [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, floats, strict=True)]


def _nonzero(loss_fn: LossFn, lanes: tuple[int, ...], params: Params, carry: Carry, piece: Batch) -> Any:
    """Pulls every number of the carry back, one after another, in all lanes at once with unequal weights."""
    at = opened(loss_fn, carry, piece)
    pull = at.back(params)
    zero = jnp.zeros((), jax.eval_shape(at.run, params, at.floats)[0][0].dtype)
    B, n = rows(at.floats, lanes).shape
    weights = jnp.cos(1.0 + jnp.arange(B))[:, None]  # nowhere 0, and no two lanes cancel

    def back(cotangent: Array) -> tuple[Array, Array]:
        d_params, d_floats = pull((zero, from_rows(cotangent, at.floats)))
        return ravel_pytree(d_params)[0], rows(d_floats, lanes)

    def unit(i: Array) -> tuple[Array, Array, Array]:
        d_params, d_carry = back(jnp.where(jnp.arange(n) == i, weights, 0))
        fine = jnp.all(jnp.isfinite(d_params)) & jnp.all(jnp.isfinite(d_carry))
        return d_params != 0, jnp.any(d_carry != 0, axis=0), fine

    direct, jacobian, fine = jax.lax.map(unit, jnp.arange(n))
    first = jnp.arange(B)[:, None] == 0
    only_first = jnp.broadcast_to(first, (B, n)) * jnp.cos(1.0 + jnp.arange(n))
    mixed = jnp.any(jnp.where(first, 0, back(only_first)[1]) != 0)
    return direct, jacobian, mixed, jnp.all(fine)


def _random_points(draws: int, params: Params, carry: Carry, piece: Batch) -> tuple[Params, Carry, Batch]:
    """Draws points from shapes, NumPy leaves `[draws, ...]`. Every other one has positive numbers only: there no relu is
    off, and logarithms exist. Integers count up in the carry. In the batch they may be symbols of a table of unknown
    length, beyond which nothing is finite: half of them are 0, the others count up by pairs of points.
    """
    random = np.random.default_rng(0)

    def draw(leaf: Any, integers: np.ndarray, sized: bool) -> np.ndarray:
        shape = (draws, *leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            width = max(1, *leaf.shape) if sized and leaf.shape else 1
            value = random.normal(size=shape)
            value[::2] = np.abs(value[::2]) / width  # so that nothing saturates, whatever the fan-in
            value[1::2] /= np.sqrt(width)
            return value.astype(leaf.dtype)
        if leaf.dtype == jnp.bool_:
            return random.random(shape) < 0.5
        dtype = np.uint32 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype
        return np.broadcast_to(integers.reshape(draws, *[1] * len(leaf.shape)), shape).astype(dtype)

    counts, half = np.arange(draws), draws // 2
    symbols = np.where(counts < half, 0, 1 + (counts - half) // 2)
    new = jax.tree.map(lambda a: draw(a, symbols, False), piece)
    if piece.weights is not None:
        new = new._replace(weights=np.ones_like(new.weights))
    if piece.resets is not None:
        new = new._replace(resets=np.zeros_like(new.resets))
    if piece.mask is not None:
        new = new._replace(mask=np.ones_like(new.mask))
    return jax.tree.map(lambda a: draw(a, counts, True), params), jax.tree.map(lambda a: draw(a, counts, False), carry), new


def _as_leaf(shape: jax.ShapeDtypeStruct, value: Array) -> Array:
    """Makes keys of the numbers that were drawn in their place."""
    if not jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return value
    return jax.vmap(jax.random.key)(value.reshape(-1)).reshape(value.shape)


def _with_unread_rows(params: Params, direct: Bool[np.ndarray, "P n"]) -> Bool[np.ndarray, "P n"]:
    edges = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(params)])[:-1]
    parts = np.split(direct, edges)
    return np.concatenate([np.where(p.any(1, keepdims=True), p, p.any(0, keepdims=True)) for p in parts])
