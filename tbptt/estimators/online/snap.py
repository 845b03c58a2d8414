"""Sparse RTRL, and its sparse n-step approximation (SnAp-n)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.estimators._common import accumulate, checked_loss, name_of, weighted_mean
from tbptt.estimators.online.coloring import Coloring, Group, make_coloring
from tbptt.estimators.online.common import Step, check_forward, check_memory, step_at
from tbptt.estimators.online.jacobian_sparsity import (
    find_jacobian_sparsity,
    flatten_rows,
    unflatten_rows,
)
from tbptt.numerics import floating_leaves
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import check_positive_int, split_windows, step_shape


class SnapMemory(NamedTuple):
    """Memory of sparse influences.

    carry:      the carry that enters the next step
    influences: one array per `Group`, `[B, U, m, s]`: d carry[units[u, i]] / d params[u, k] at
      [b, u, k, i]
    """

    carry: Carry
    influences: tuple[Array, ...]


class SnapInfo(NamedTuple):
    """Info of one call.

    losses, weights: `[T]`, as in `WindowInfo`, with one window per step
    kept:            scalar, the fraction of the reachable influences that is kept; 1 = exact
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    kept: Float[Array, ""]


def snap(loss_fn: LossFn, n: int) -> Estimator:
    """Estimate the gradient by SnAp-n, RTRL with a sparse n-step approximation of the influence.

        J_t = M * [ (dc_t/dc_{t-1}) J_{t-1} + dc_t/dparams ]
        g = (1 / W) sum_t [ (dl_t/dc_{t-1}) J_{t-1} + dl_t/dparams ]

    with M[i, p] = 1 if parameter p reaches carry entry i within n steps, else 0.

    For a simple recurrent network, n = 1 keeps one number per weight and batch row: the influence
    on the unit that the weight enters. This is exact for cells with an elementwise recurrence
    (`DiagonalLinear`, `MinGRU`, `MinLSTM`). As n grows, the result becomes that of `sparse_rtrl`,
    which is that of `rtrl`. `info.kept` is the fraction of the reachable influences that is kept.

    The loss of step t depends on c_{t-1} through the whole step t, without the mask M, because a
    LossFn does not expose c_t. So the last step of every path to a loss is exact. The published
    rule also masks that step, so it keeps a little less.

    M is found while tracing, by differentiating one step at random points
    (`find_jacobian_sparsity`). In a `Stack`, the parameters of a lower layer reach all layers above
    within ONE step, so SnAp-1 saves in the top layer only. Parameters that reach the same entries
    are grouped, and the derivatives of a step are found by graph coloring. For SnAp-1 of a dense
    cell these are about H + (parameters per unit) derivatives of one step, instead of the P of
    RTRL; for an elementwise recurrence 1 + (parameters per unit).

    Args:
      loss_fn: static; any `LossFn` whose single step JAX can differentiate in both modes, with
        carries `[*batch, ...]` and independent batch rows. (rtrl and uoro also accept dependent
        rows.)
      n: static int >= 1, in steps.

    Returns:
      An `Estimator` for any T >= 1 per call. Its memory is a `SnapMemory`, its info a `SnapInfo`.

    Raises:
      TypeError, ValueError: n is not a static int >= 1; at `init`: as `rtrl`, or batch rows depend
        on each other, or the influences or their sparsity pattern do not fit into memory.

    References: Menick et al., *A practical sparse approximation for real time recurrent learning*,
    ICLR 2021, arXiv:2006.07232. Coloring: Curtis, Powell and Reid, *On the estimation of sparse
    Jacobian matrices*, 1974.
    """
    return _sparse(loss_fn, check_positive_int("n", n))


def sparse_rtrl(loss_fn: LossFn) -> Estimator:
    """Compute the exact gradient by RTRL with all influences that can be other than 0.

        J_t[i, p] = sum_m (dc_t/dc_{t-1})[i, m] J_{t-1}[m, p] + (dc_t/dparams)[i, p]

    for all carry entries i that parameter p ever reaches. It is `snap` with n as large as needed.
    In an elementwise recurrence (`DiagonalLinear`, `MinGRU`, `MinLSTM`) a parameter reaches only
    the unit that it enters: B P numbers, and a step costs about as many derivatives as one unit has
    parameters. `rtrl` stores B P H numbers and needs P derivatives. In a dense recurrence the cost
    is that of `rtrl`.

    Rules that ignore the recurrent paths between units (e-prop, RFLO) are exact RTRL of a step in
    which `jax.lax.stop_gradient` stops the gradient along these paths. To use such a rule, pass
    a loss_fn of that form.

    Args, Returns, Raises: as `snap`; `info.kept` is 1.

    References: Mozer, *A focused backpropagation algorithm for temporal pattern recognition*,
    Complex Systems 3, 1989. Zucchet et al., *Online learning of long-range dependencies*, NeurIPS
    2023, arXiv:2305.15947.
    """
    return _sparse(loss_fn, None)


def _sparse(loss_fn: LossFn, n: int | None) -> Estimator:
    loss, name = checked_loss(loss_fn), name_of(loss_fn)
    colorings: dict[Any, Coloring] = {}  # by shapes, on which alone a coloring depends

    def coloring_of(params: Params, carry: Carry, batch: Batch) -> Coloring:
        one = jax.tree.map(lambda a: (np.shape(a)[1:], str(jnp.result_type(a))), batch)
        rest = jax.tree.map(lambda a: (np.shape(a), str(jnp.result_type(a))), (params, carry))
        shapes = (*jax.tree.leaves((one, rest)), jax.tree.structure((params, carry, batch)))
        if shapes not in colorings:
            sparsity = find_jacobian_sparsity(loss, name, params, carry, batch)
            colorings[shapes] = make_coloring(sparsity, n)
        return colorings[shapes]

    def init(params: Params, carry: Carry, batch: Batch) -> SnapMemory:
        check_forward(loss, name, params, carry, batch)
        coloring, B = coloring_of(params, carry, batch), int(np.prod(step_shape(batch)[1:]))
        dtype = jnp.result_type(*floating_leaves(carry))
        what = (
            f"the influences of {name}, {coloring.entries:,} numbers in each of {B:,} batch rows, "
            "three times per step,"
        )
        remedy = (
            "Use snap(loss_fn, n) with a smaller n, uoro(loss_fn) or truncated_bptt; or a smaller "
            "batch"
        )
        check_memory(what, 3 * B * coloring.entries * dtype.itemsize, remedy)
        zeros = (jnp.zeros((B, *group.direct.shape), dtype) for group in coloring.groups)
        return SnapMemory(carry, tuple(zeros))

    def estimate(
        params: Params, memory: SnapMemory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        del key
        coloring, batch_shape = coloring_of(params, memory.carry, batch), step_shape(batch)[1:]

        def step(
            params: Params, memory: SnapMemory, step_batch: Batch
        ) -> tuple[Array, Params, SnapMemory]:
            at = step_at(loss, memory.carry, step_batch)
            return _step(coloring, batch_shape, at, params, memory.influences)

        out = weighted_mean(
            params, *accumulate(step, params, memory, split_windows(batch, 1)), batch
        )
        kept = jnp.asarray(coloring.kept, out.info.losses.dtype)
        return out._replace(info=SnapInfo(out.info.losses, out.info.weights, kept))

    return Estimator(init, estimate)


def _step(
    coloring: Coloring,
    batch_shape: tuple[int, ...],
    at: Step,
    params: Params,
    influences: tuple[Array, ...],
) -> Any:
    """Compute the gradient of one step from the entering influences, and the leaving influences."""
    loss_sum, jvp, carry = at.jvp_of_carry(params)
    jvp_of_params, (flat, unravel) = at.jvp_of_params(params), ravel_pytree(params)
    entering = flatten_rows(at.floats, batch_shape)
    unit_color, param_color = jnp.asarray(coloring.unit_color), jnp.asarray(coloring.param_color)

    def by_units(color: Array) -> Array:
        tangent = jnp.broadcast_to(unit_color == color, entering.shape).astype(entering.dtype)
        return flatten_rows(jvp(unflatten_rows(tangent, at.floats, batch_shape))[1], batch_shape)

    def by_params(color: Array) -> Array:
        tangent = unravel((param_color == color).astype(flat.dtype))
        return flatten_rows(jvp_of_params(tangent)[1], batch_shape)

    # At most so many tangents at once that together they are no larger than the influences.
    most = max(16, entering.shape[0] * coloring.entries // flat.size)
    jacobian = _map_colors(by_units, coloring.unit_colors, coloring.unit_colors, entering)
    direct = _map_colors(by_params, coloring.param_colors, most, entering)
    zeros = jax.tree.map(jnp.zeros_like, at.floats)
    d_params, d_floats = at.vjp(params)((jnp.ones_like(loss_sum), zeros))
    d_rows, grads = flatten_rows(d_floats, batch_shape), ravel_pytree(d_params)[0]
    new = []
    for group, influence in zip(coloring.groups, influences, strict=True):
        added = jnp.einsum("bui,buki->uk", d_rows[:, group.units], influence)
        grads = grads.at[group.params].add(added.astype(flat.dtype))
        new.append(_advance(coloring, group, jacobian, direct, influence))
    return loss_sum, unravel(grads), SnapMemory(carry, tuple(new))


def _advance(
    coloring: Coloring, group: Group, jacobian: Array, direct: Array, influence: Array
) -> Array:
    """Advance the influences of one group by a step, with derivatives read off by color."""
    unit_color, param_color = coloring.unit_color[group.units], coloring.param_color[group.params]
    block = jnp.moveaxis(jacobian, 0, -1)[:, group.units[:, :, None], unit_color[:, None, :]]
    block = jnp.where(group.jacobian, block, 0)
    entry = jnp.moveaxis(direct, 0, -1)[:, group.units[:, None, :], param_color[:, :, None]]
    entry = entry if group.direct.all() else jnp.where(group.direct, entry, 0)
    return jnp.einsum("buij,bukj->buki", block, influence) + entry


def _map_colors(
    derivative: Callable[[Array], Array], colors: int, most: int, like: Float[Array, "B n"]
) -> Float[Array, "C B n"]:
    """Compute one derivative for each color, at most `most` at once."""
    if not colors:
        return jnp.zeros((1, *like.shape), like.dtype)
    if colors <= most:
        return jax.vmap(derivative)(jnp.arange(colors))
    return jax.lax.map(derivative, jnp.arange(colors), batch_size=most)
