"""Real-time recurrent learning: the exact gradient, carried forward in time instead of backward."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import accumulate, checked_loss, weighted_mean
from tbptt.estimators.online.common import Step, check_forward, floats_of, like_floats, name_of, opened
from tbptt.estimators.online.memory_check import check_fits
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import cut


class RTRLMemory(NamedTuple):
    """What RTRL remembers.

    carry:     the carry that enters the next step
    influence: dcarry/dparams, like the carry, leaves `[P, *leaf.shape]`, P the number of all parameters in the order of
               `jax.flatten_util.ravel_pytree`; None in place of a leaf that is not floating
    """

    carry: Carry
    influence: Carry


def rtrl(loss_fn: LossFn, *, max_bytes: int | None = None) -> Estimator:
    """Carries the derivative of the carry by every parameter forward in time: exact, and nothing is ever unrolled.

        J_t = (dc_t/dc_{t-1}) J_{t-1} + dc_t/dparams                                  the influence, J = 0 at the start
        g = (1 / W) sum_t [ (dl_t/dc_{t-1}) J_{t-1} + dl_t/dparams ],    W = sum_t w_t

        for t in range(T):                                            # as a plain loop
            l, new = loss_fn(params, carry, batch[t : t + 1])         # and its derivatives, forwards
            g += (dl_dcarry @ J + dl_dparams) / W
            J, carry = dnew_dcarry @ J + dnew_dparams, new

    The influence goes on from call to call: at constant parameters the sum over calls of their total weight times their
    grads is the gradient that `full_bptt` finds for the whole stream at once, in whatever pieces it was fed (and the
    first call's grads are full_bptt's own). If the parameters change between calls, J is a sum of derivatives taken at
    older parameters, as the carry itself comes from them: stale by about the learning rate times the recurrence's memory.

    Memory does not depend on T. It holds P carries (B lanes: P B H numbers; a step has three such arrays), and a step costs
    P derivatives of one step: for a few thousand parameters. See `snap` and `sparse_rtrl` for less.

    Args:
      loss_fn: any `LossFn` whose single step JAX can differentiate forwards.
      max_bytes: static; what the influences of a step may take; None = all memory of the device.

    Returns:
      An `Estimator` for any T >= 1 a call; its memory is an `RTRLMemory`, its info a `WindowInfo` with each step a window.

    Raises:
      TypeError, at `init`: loss_fn has no forward derivative; params are not floating; a leaf of the carry is complex.
      ValueError, at `init`: the influences do not fit into memory.

    References: Williams and Zipser, *A learning algorithm for continually running fully recurrent neural networks*, Neural
    Computation 1, 1989.
    """
    loss, name = checked_loss(loss_fn), name_of(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> RTRLMemory:
        check_forward(loss, name, params, carry, batch)
        P = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
        _check_size(P, floats_of(carry), max_bytes)
        zeros = [jnp.zeros((P, *np.shape(leaf)), jnp.result_type(leaf)) for leaf in floats_of(carry)]
        return RTRLMemory(carry, like_floats(carry, zeros))

    def step(params: Params, memory: RTRLMemory, piece: Batch) -> tuple[Array, Params, RTRLMemory]:
        at = opened(loss, memory.carry, piece)
        loss_sum, push, carry = at.along_carry(params)
        loss_along, moved = jax.vmap(push)(jax.tree.leaves(memory.influence))
        loss_direct, direct = _direct(at, params)
        flat, unravel = ravel_pytree(params)
        grads = unravel((loss_along + loss_direct).astype(flat.dtype))
        influence = [a + b.astype(a.dtype) for a, b in zip(moved, direct, strict=True)]
        return loss_sum, grads, RTRLMemory(carry, like_floats(carry, influence))

    def estimate(params: Params, memory: RTRLMemory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        del key
        return weighted_mean(*accumulate(step, params, memory, cut(batch, 1)))

    return Estimator(init, estimate)


def _check_size(P: int, floats: list[Array], max_bytes: int | None) -> None:
    numbers = sum(np.size(leaf) for leaf in floats)
    size = sum(np.size(leaf) * jnp.result_type(leaf).itemsize for leaf in floats)
    what = f"rtrl's influences of {P:,} parameters on a carry of {numbers:,} numbers, three times a step,"
    remedy = (
        "Use snap(loss_fn, 1) (a number a parameter and lane; exact where the carry is elementwise in itself), "
        "uoro(loss_fn) (a carry and a copy of the parameters) or truncated_bptt; or fewer lanes, or a narrower cell"
    )
    check_fits(what, 3 * P * size, remedy, max_bytes)


def _direct(at: Step, params: Params) -> tuple[Float[Array, " P"], list[Array]]:
    """Differentiates (loss_sum, new floats) by every parameter: leaves `[P, ...]`, whichever way needs fewer passes."""
    flat, unravel = ravel_pytree(params)
    outputs, unravel_outputs = ravel_pytree((jnp.zeros((), flat.dtype), at.floats))
    loss_dtype = jax.eval_shape(at.run, params, at.floats)[0][0].dtype
    if flat.size <= outputs.size:
        push = at.along_params(params)
        return jax.vmap(lambda e: push(unravel(e)))(jnp.eye(flat.size, dtype=flat.dtype))
    pull = at.back(params)

    def row(e: Array) -> Array:
        loss_bar, floats_bar = unravel_outputs(e)
        return ravel_pytree(pull((loss_bar.astype(loss_dtype), floats_bar))[0])[0]

    rows = jax.vmap(row)(jnp.eye(outputs.size, dtype=outputs.dtype))
    return jax.vmap(unravel_outputs)(rows.T.astype(outputs.dtype))
