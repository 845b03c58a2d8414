"""Sparse n-step approximation of RTRL (SnAp-n), and sparse RTRL, which drops nothing: an influence only where it can be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import accumulate, checked_loss, weighted_mean
from tbptt.estimators.online.coloring import Group, Layout, make_layout
from tbptt.estimators.online.common import Step, check_forward, floats_of, name_of, opened
from tbptt.estimators.online.jacobian_sparsity import find_pattern, from_rows, rows
from tbptt.estimators.online.memory_check import check_fits
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import check_window, cut, step_shape


class SnapMemory(NamedTuple):
    """What sparse influences remember.

    carry:      the carry that enters the next step
    influences: one array a `layout.Group`, `[B, U, m, s]`: d carry[units[u, i]] / d params[u, k] at [b, u, k, i]
    """

    carry: Carry
    influences: tuple[Array, ...]


class SnapInfo(NamedTuple):
    """losses, weights: as in WindowInfo, one window a step; kept: the share of reachable influences kept, 1 = exact."""

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    kept: Float[Array, ""]


def snap(loss_fn: LossFn, n: int) -> Estimator:
    """Carries forward only the influences of parameters on what they reach within n steps: SnAp-n.

        J_t = M * [ (dc_t/dc_{t-1}) J_{t-1} + dc_t/dparams ],    M[i, p] = 1 where p reaches number i within n steps
        g = (1 / W) sum_t [ (dl_t/dc_{t-1}) J_{t-1} + dl_t/dparams ]

    n = 1 keeps, for a simple network, one number for each weight and lane: its influence on the unit that it enters. For a
    cell whose carry is elementwise in itself (`DiagonalLinear`, `MinGRU`, `MinLSTM`) that is already exact; as n grows it
    becomes `sparse_rtrl`, which is `rtrl`. `info.kept` says how much of what is reachable was kept; 1 means exact.

    The loss of step t sees c_{t-1} through the whole step t, undropped, since a LossFn hides its c_t. So of every path that
    leads to a loss the last step is exact: a little more than the published rule, which masks before the loss.

    M is found while tracing, by differentiating one step at random points (see `reach.find_pattern`); of a `Stack` a lower
    layer's parameters reach all of the layers above within ONE step, so there SnAp-1 saves in the top layer alone.
    Parameters of equal reach lie together, and a step's derivatives are found by colouring: for SnAp-1 of a dense cell
    about H + (parameters of a unit) derivatives of one step, instead of RTRL's P; for a diagonal one, 1 + (those).

    Args:
      loss_fn: any `LossFn` whose single step JAX can differentiate forwards and backwards, and whose lanes are independent:
        carries `[*batch, ...]`, no number from one lane to another (rtrl and uoro do not mind).
      n: static int >= 1.

    Returns:
      An `Estimator` for any T >= 1 a call; its memory is a `SnapMemory`, its info a `SnapInfo`.

    Raises:
      TypeError, ValueError: n is no static int >= 1; at `init`: as `rtrl`, or the lanes are not independent, or what is
        kept (or the pattern of what is reachable) does not fit into memory.

    References: Menick et al., *A practical sparse approximation for real time recurrent learning*, ICLR 2021,
    arXiv:2006.07232. Colouring: Curtis, Powell and Reid, *On the estimation of sparse Jacobian matrices*, 1974.
    """
    return _sparse(loss_fn, check_window("n", n))


def sparse_rtrl(loss_fn: LossFn) -> Estimator:
    """Carries forward every influence that can be other than 0, and no other: exact, as cheap as the recurrence allows.

        J_t[i, p] = sum_m (dc_t/dc_{t-1})[i, m] J_{t-1}[m, p] + (dc_t/dparams)[i, p],    for i that p ever reaches

    It is `snap` with n as large as needed. For a recurrence whose carry is elementwise in itself (`DiagonalLinear`,
    `MinGRU`, `MinLSTM`) a parameter only ever reaches the unit that it enters: B P numbers, and a step costs about as many
    derivatives as one unit has parameters, where `rtrl` keeps B P H and takes P. With a dense one it is as dear as rtrl.

    A rule that treats the recurrence between units as given (e-prop, RFLO) is exact RTRL of a step in which those paths
    are cut by `jax.lax.stop_gradient`, its values unchanged: give this function such a loss_fn.

    Args, Returns, Raises: as `snap`; `info.kept` is 1.

    References: Mozer, *A focused backpropagation algorithm for temporal pattern recognition*, Complex Systems 3, 1989.
    Zucchet et al., *Online learning of long-range dependencies*, NeurIPS 2023, arXiv:2305.15947.
    """
    return _sparse(loss_fn, None)


def _sparse(loss_fn: LossFn, n: int | None) -> Estimator:
    loss, name = checked_loss(loss_fn), name_of(loss_fn)
    known: dict[Any, Layout] = {}  # by shapes: the same ones always give the same layout

    def layout_of(params: Params, carry: Carry, batch: Batch) -> Layout:
        one = jax.tree.map(lambda a: (np.shape(a)[1:], str(jnp.result_type(a))), batch)
        rest = jax.tree.map(lambda a: (np.shape(a), str(jnp.result_type(a))), (params, carry))
        shapes = (*jax.tree.leaves((one, rest)), jax.tree.structure((params, carry, batch)))
        if shapes not in known:
            known[shapes] = make_layout(find_pattern(loss, name, params, carry, batch), n)
        return known[shapes]

    def init(params: Params, carry: Carry, batch: Batch) -> SnapMemory:
        check_forward(loss, name, params, carry, batch)
        layout, B = layout_of(params, carry, batch), int(np.prod(step_shape(batch)[1:]))
        dtype = jnp.result_type(*floats_of(carry))
        what = f"the influences of {name}, {layout.entries:,} numbers in each of {B:,} lanes, three times a step,"
        remedy = "Use snap(loss_fn, n) with a smaller n, uoro(loss_fn) or truncated_bptt; or fewer lanes"
        check_fits(what, 3 * B * layout.entries * dtype.itemsize, remedy)
        return SnapMemory(carry, tuple(jnp.zeros((B, *group.direct.shape), dtype) for group in layout.groups))

    def estimate(params: Params, memory: SnapMemory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        del key
        layout, lanes = layout_of(params, memory.carry, batch), step_shape(batch)[1:]

        def step(params: Params, memory: SnapMemory, piece: Batch) -> tuple[Array, Params, SnapMemory]:
            return _step(layout, lanes, opened(loss, memory.carry, piece), params, memory.influences)

        out = weighted_mean(*accumulate(step, params, memory, cut(batch, 1)))
        kept = jnp.asarray(layout.kept, out.info.losses.dtype)
        return out._replace(info=SnapInfo(out.info.losses, out.info.weights, kept))

    return Estimator(init, estimate)


def _step(layout: Layout, lanes: tuple[int, ...], at: Step, params: Params, influences: tuple[Array, ...]) -> Any:
    """Takes one step: the loss's gradient from the influences that enter it, then the influences that leave."""
    loss_sum, push, carry = at.along_carry(params)
    push_params, (flat, unravel) = at.along_params(params), ravel_pytree(params)
    entering = rows(at.floats, lanes)
    unit_colour, param_colour = jnp.asarray(layout.unit_colour), jnp.asarray(layout.param_colour)

    def by_units(colour: Array) -> Array:
        tangent = jnp.broadcast_to(unit_colour == colour, entering.shape).astype(entering.dtype)
        return rows(push(from_rows(tangent, at.floats))[1], lanes)

    def by_params(colour: Array) -> Array:
        return rows(push_params(unravel((param_colour == colour).astype(flat.dtype)))[1], lanes)

    most = max(16, entering.shape[0] * layout.entries // flat.size)  # tangents together no larger than the influences
    jacobian = _each(by_units, layout.unit_colours, layout.unit_colours, entering)
    direct = _each(by_params, layout.param_colours, most, entering)
    d_params, d_floats = at.back(params)((jnp.ones_like(loss_sum), jax.tree.map(jnp.zeros_like, at.floats)))
    d_rows, grads = rows(d_floats, lanes), ravel_pytree(d_params)[0]
    new = []
    for group, influence in zip(layout.groups, influences, strict=True):
        grads = grads.at[group.params].add(jnp.einsum("bui,buki->uk", d_rows[:, group.units], influence).astype(flat.dtype))
        new.append(_moved(layout, group, jacobian, direct, influence))
    return loss_sum, unravel(grads), SnapMemory(carry, tuple(new))


def _moved(layout: Layout, group: Group, jacobian: Array, direct: Array, influence: Array) -> Array:
    """Picks the derivatives of one group out of the coloured ones, and takes its influences a step on."""
    of_unit, of_param = layout.unit_colour[group.units], layout.param_colour[group.params]
    block = jnp.moveaxis(jacobian, 0, -1)[:, group.units[:, :, None], of_unit[:, None, :]]
    block = jnp.where(group.jacobian, block, 0)
    entry = jnp.moveaxis(direct, 0, -1)[:, group.units[:, None, :], of_param[:, :, None]]
    entry = entry if group.direct.all() else jnp.where(group.direct, entry, 0)
    return jnp.einsum("buij,bukj->buki", block, influence) + entry


def _each(
    derivative: Callable[[Array], Array], colours: int, most: int, like: Float[Array, "B n"]
) -> Float[Array, "C B n"]:
    """Takes one derivative for each colour, at most so many at once."""
    if not colours:
        return jnp.zeros((1, *like.shape), like.dtype)
    if colours <= most:
        return jax.vmap(derivative)(jnp.arange(colours))
    return jax.lax.map(derivative, jnp.arange(colours), batch_size=most)
