"""Unbiased online recurrent optimization (UORO), RTRL with a random rank-one influence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._common import (
    accumulate,
    checked_loss,
    name_of,
    require_key,
    weighted_mean,
)
from tbptt.estimators.online.common import check_forward, floating_tree, step_at
from tbptt.numerics import floating_leaves, measure
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import split_windows

# Avoids 0 / 0 in the two scalings, without bias: any positive scalings that do not depend on the
# sign of nu are unbiased.
EPSILON = 1e-7


class UOROMemory(NamedTuple):
    """Memory of UORO, with E[s (x) theta] = dcarry/dparams.

    carry: the carry that enters the next step
    s:     a tree like the carry, with None for leaves that are not floating
    theta: a tree like params
    """

    carry: Carry
    s: Carry
    theta: Params


class UOROInfo(NamedTuple):
    """Info of one call.

    losses, weights:    `[T]`, as in `WindowInfo`, with one window per step
    s_norm, theta_norm: scalars, the norms of the two vectors after the last step; the scalings keep
      them about equal
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    s_norm: Float[Array, ""]
    theta_norm: Float[Array, ""]


def uoro(loss_fn: LossFn) -> Estimator:
    """Estimate the gradient of RTRL without bias, with a random rank-one influence s (x) theta.

        g = (1 / W) sum_t [ (dl_t/dc_{t-1} . s_{t-1}) theta_{t-1} + dl_t/dparams ]
        s_t     = rho0 (dc_t/dc_{t-1}) s_{t-1} + rho1 nu        nu: a random sign per carry entry
        theta_t = theta_{t-1} / rho0 + nu^T (dc_t/dparams) / rho1
        rho0 = sqrt(|theta_{t-1}| / |(dc_t/dc_{t-1}) s_{t-1}|),
        rho1 = sqrt(|nu^T dc_t/dparams| / |nu|)

    (s = theta = 0 at the start; a small epsilon is added to each norm.) Since E[nu nu^T] = 1 and
    the cross terms are odd in nu, E[s (x) theta] = dcarry/dparams for any scalings even in nu. So
    E[g] is the gradient of RTRL: at constant parameters that of full BPTT; see `rtrl` for streams
    and changing parameters. A step costs one tangent and two cotangents of one step. The memory is
    a carry and a copy of the parameters.

    A batch of B rows shares ONE pair for the whole carry. The estimate is unbiased, but the loss of
    each row is multiplied by the signs of all rows. The noise of these products adds to the noise
    of the row itself, so the variance of the mean gradient does not fall as 1 / B: it remains about
    that of one row. Use small batches, and a smaller learning rate than with exact gradients.

    Args:
      loss_fn: static; any `LossFn` whose single step JAX can differentiate in both modes.

    Returns:
      An `Estimator` for any T >= 1 per call, whose `estimate` needs a key. Its memory is a
      `UOROMemory`, its info a `UOROInfo`.

    Raises:
      TypeError: at `init`: as `rtrl`.
      ValueError: at `estimate`: there is no key.

    References: Tallec and Ollivier, *Unbiased online recurrent optimization*, ICLR 2018,
    arXiv:1702.05043.
    """
    loss, name = checked_loss(loss_fn), name_of(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> UOROMemory:
        check_forward(loss, name, params, carry, batch)
        s = floating_tree(carry, [jnp.zeros_like(leaf) for leaf in floating_leaves(carry)])
        return UOROMemory(carry, s, jax.tree.map(jnp.zeros_like, params))

    def step(
        params: Params, state: tuple[UOROMemory, PRNGKey], step_batch: Batch
    ) -> tuple[Array, Params, Any]:
        memory, key = state
        key, sign_key = jax.random.split(key)
        at, theta = step_at(loss, memory.carry, step_batch), memory.theta
        loss_sum, jvp, carry = at.jvp_of_carry(params)
        loss_along, moved = jvp(jax.tree.leaves(memory.s))
        vjp, nu = at.vjp(params), _signs(sign_key, at.floats)
        d_params, _ = vjp((jnp.ones_like(loss_sum), jax.tree.map(jnp.zeros_like, nu)))
        projected, _ = vjp((jnp.zeros_like(loss_sum), nu))
        grads = jax.tree.map(lambda d, v: d + loss_along.astype(v.dtype) * v, d_params, theta)
        rho0, rho1 = _balance(theta, moved), _balance(projected, nu)
        s = [(rho0 * a + rho1 * b).astype(a.dtype) for a, b in zip(moved, nu, strict=True)]
        theta = jax.tree.map(lambda a, b: (a / rho0 + b / rho1).astype(a.dtype), theta, projected)
        return loss_sum, grads, (UOROMemory(carry, floating_tree(carry, s), theta), key)

    def estimate(
        params: Params, memory: UOROMemory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        key = require_key(key, "uoro", "random signs")
        windows = split_windows(batch, 1)
        (memory, _), sums = accumulate(step, params, (memory, key), windows)
        out = weighted_mean(params, memory, sums, batch)
        # Unlike global_norm, measure keeps sharded batch rows on their devices.
        norms = measure(memory.s).norm, measure(memory.theta).norm
        return out._replace(info=UOROInfo(out.info.losses, out.info.weights, *norms))

    return Estimator(init, estimate)


def _signs(key: PRNGKey, like: list[Array]) -> list[Array]:
    keys = jax.random.split(key, max(1, len(like)))
    return [
        jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, like, strict=True)
    ]


def _balance(params_side: Params, carry_side: list[Array]) -> Float[Array, ""]:
    """Return the factor that gives both sides of a product the same norm.

    It minimises the sum of their squared norms.
    """
    ratio = (measure(params_side).norm + EPSILON) / (measure(carry_side).norm + EPSILON)
    return jnp.sqrt(ratio)
