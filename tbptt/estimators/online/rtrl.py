"""Real-time recurrent learning (RTRL), the exact gradient by forward accumulation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from tbptt.estimators._common import accumulate, checked_loss, name_of, weighted_mean
from tbptt.estimators.online.common import Step, check_forward, check_memory, floating_tree, step_at
from tbptt.numerics import floating_leaves
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import split_windows


class RTRLMemory(NamedTuple):
    """Memory of RTRL.

    carry:     the carry that enters the next step
    influence: dcarry/dparams, a tree like the carry with leaves `[P, *leaf.shape]`, where P is the
      number of all parameters in the order of `jax.flatten_util.ravel_pytree`; None for leaves that
      are not floating
    """

    carry: Carry
    influence: Carry


def rtrl(loss_fn: LossFn, *, max_bytes: int | None = None) -> Estimator:
    """Compute the exact gradient by real-time recurrent learning, forward in time.

        J_t = (dc_t/dc_{t-1}) J_{t-1} + dc_t/dparams               the influence, J = 0 at the start
        g = (1 / W) sum_t [ (dl_t/dc_{t-1}) J_{t-1} + dl_t/dparams ],    W = sum_t w_t

        for t in range(T):                                            # as a plain loop
            l, new = loss_fn(params, carry, batch[t : t + 1])         # with forward derivatives
            g += (dl_dcarry @ J + dl_dparams) / W
            J, carry = dnew_dcarry @ J + dnew_dparams, new

    The influence continues from call to call. At constant parameters, the sum over calls of
    (total weight) * grads is the gradient of `full_bptt` for the whole stream, for any split of the
    stream into calls; the grads of the first call are those of `full_bptt`. If the parameters
    change between calls, J is a sum of derivatives at older parameters, as is the carry: its error
    is about the learning rate times the memory length of the recurrence.

    Memory does not depend on T: J has the size of P carries (P B H numbers for a carry `[B, H]`),
    and a step needs three such arrays. The time of a step is that of P derivatives of one step.
    This is practical for a few thousand parameters; see `snap` and `sparse_rtrl` for less.

    Args:
      loss_fn: static; any `LossFn` whose single step has a forward derivative in JAX.
      max_bytes: static; limit for the influences of a step, in bytes; None = the memory of the
        device.

    Returns:
      An `Estimator` for any T >= 1 per call. Its memory is an `RTRLMemory`. Its info is a
      `WindowInfo` with one window per step, fields `[T]`.

    Raises:
      TypeError: at `init`: loss_fn has no forward derivative, params are not floating, or a leaf of
        the carry is complex.
      ValueError: at `init`: the influences do not fit into memory.

    References: Williams and Zipser, *A learning algorithm for continually running fully recurrent
    neural networks*, Neural Computation 1, 1989.
    """
    loss, name = checked_loss(loss_fn), name_of(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> RTRLMemory:
        check_forward(loss, name, params, carry, batch)
        P, floats = sum(np.size(leaf) for leaf in jax.tree.leaves(params)), floating_leaves(carry)
        _check_size(P, floats, max_bytes)
        zeros = [jnp.zeros((P, *leaf.shape), leaf.dtype) for leaf in floats]
        return RTRLMemory(carry, floating_tree(carry, zeros))

    def step(
        params: Params, memory: RTRLMemory, step_batch: Batch
    ) -> tuple[Array, Params, RTRLMemory]:
        at = step_at(loss, memory.carry, step_batch)
        loss_sum, jvp, carry = at.jvp_of_carry(params)
        loss_along, moved = jax.vmap(jvp)(jax.tree.leaves(memory.influence))
        loss_direct, direct = _direct_derivatives(at, params)
        flat, unravel = ravel_pytree(params)
        grads = unravel((loss_along + loss_direct).astype(flat.dtype))
        influence = [a + b.astype(a.dtype) for a, b in zip(moved, direct, strict=True)]
        return loss_sum, grads, RTRLMemory(carry, floating_tree(carry, influence))

    def estimate(
        params: Params, memory: RTRLMemory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        del key
        return weighted_mean(
            params, *accumulate(step, params, memory, split_windows(batch, 1)), batch
        )

    return Estimator(init, estimate)


def _check_size(P: int, floats: list[Array], max_bytes: int | None) -> None:
    numbers = sum(np.size(leaf) for leaf in floats)
    size = sum(np.size(leaf) * jnp.result_type(leaf).itemsize for leaf in floats)
    what = (
        f"rtrl's influences of {P:,} parameters on a carry of {numbers:,} numbers, three times per "
        "step,"
    )
    remedy = (
        "Use snap(loss_fn, 1) (one number per parameter and batch row; exact for an elementwise "
        "recurrence), uoro(loss_fn) (a carry and a copy of the parameters) or truncated_bptt; or a "
        "smaller batch, or a narrower cell"
    )
    check_memory(what, 3 * P * size, remedy, max_bytes)


def _direct_derivatives(at: Step, params: Params) -> tuple[Float[Array, " P"], list[Array]]:
    """Differentiate (loss_sum, new floats) by every parameter, at a constant entering carry.

    Returns:
      Leaves `[P, ...]`, computed in forward or reverse mode, whichever needs fewer passes.
    """
    flat, unravel = ravel_pytree(params)
    outputs, unravel_outputs = ravel_pytree((jnp.zeros((), flat.dtype), at.floats))
    loss_dtype = jax.eval_shape(at.run, params, at.floats)[0][0].dtype
    if flat.size <= outputs.size:
        jvp = at.jvp_of_params(params)
        return jax.vmap(lambda e: jvp(unravel(e)))(jnp.eye(flat.size, dtype=flat.dtype))
    vjp = at.vjp(params)

    def row(e: Array) -> Array:
        d_loss, d_floats = unravel_outputs(e)
        return ravel_pytree(vjp((d_loss.astype(loss_dtype), d_floats))[0])[0]

    rows = jax.vmap(row)(jnp.eye(outputs.size, dtype=outputs.dtype))
    return jax.vmap(unravel_outputs)(rows.T.astype(outputs.dtype))
