"""Unbiased online recurrent optimization (UORO): RTRL's influence as one random product of two vectors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.estimators._accumulate import accumulate, checked_loss, require_key, weighted_mean
from tbptt.estimators.online.common import check_forward, floats_of, like_floats, name_of, opened
from tbptt.numerics import measure
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Params, PRNGKey
from tbptt.windows import cut

# Keeps the two scalings off 0 / 0. It changes the variance alone: any positive scalings that do not
# know the sign of nu are unbiased.
EPSILON = 1e-7


class UOROMemory(NamedTuple):
    """What UORO remembers: E[s (x) theta] = dcarry/dparams.

    carry: the carry that enters the next step
    s:     like the carry; None in place of a leaf that is not floating
    theta: like params
    """

    carry: Carry
    s: Carry
    theta: Params


class UOROInfo(NamedTuple):
    """What there is to see of one call.

    losses, weights:    as in WindowInfo, one window a step
    s_norm, theta_norm: scalars, the norms of the two vectors after the last step; the scalings keep them about equal
    """

    losses: Float[Array, " n"]
    weights: Float[Array, " n"]
    s_norm: Float[Array, ""]
    theta_norm: Float[Array, ""]


def uoro(loss_fn: LossFn) -> Estimator:
    """Carries forward two vectors whose product is, on average over random signs, the influence that RTRL carries.

        g = (1 / W) sum_t [ (dl_t/dc_{t-1} . s_{t-1}) theta_{t-1} + dl_t/dparams ]
        s_t     = rho0 (dc_t/dc_{t-1}) s_{t-1} + rho1 nu                     nu: random signs, one a number of the carry
        theta_t = theta_{t-1} / rho0 + nu^T (dc_t/dparams) / rho1
        rho0 = sqrt(|theta_{t-1}| / |(dc_t/dc_{t-1}) s_{t-1}|),    rho1 = sqrt(|nu^T dc_t/dparams| / |nu|)

    (s = theta = 0 at the start; each norm plus a small epsilon.) Since E[nu nu^T] = 1 and the cross terms are odd in nu,
    E[s (x) theta] = dcarry/dparams for any scalings even in nu, and E[g] is RTRL's gradient: at constant parameters that of
    full BPTT, see `rtrl` for streams and staleness. A step costs a tangent and two cotangents of one step; memory is a
    carry and a copy of the parameters.

    With B lanes there is ONE pair for the whole carry. It is unbiased, but each lane's loss then meets the signs of all
    lanes: the noise of the products between lanes adds to each lane's own, so the variance of the lanes' mean gradient does
    not fall as 1 / B, as data averaging lets one hope, but stays about that of one lane. Use small batches; the price is
    paid in learning rate.

    Args:
      loss_fn: any `LossFn` whose single step JAX can differentiate forwards and backwards.

    Returns:
      An `Estimator` for any T >= 1 a call, whose `estimate` needs a key; memory is a `UOROMemory`, info a `UOROInfo`.

    Raises:
      ValueError, at `estimate`: no key. TypeError, at `init`: as `rtrl`.

    References: Tallec and Ollivier, *Unbiased online recurrent optimization*, ICLR 2018, arXiv:1702.05043.
    """
    loss, name = checked_loss(loss_fn), name_of(loss_fn)

    def init(params: Params, carry: Carry, batch: Batch) -> UOROMemory:
        check_forward(loss, name, params, carry, batch)
        s = like_floats(carry, [jnp.zeros_like(leaf) for leaf in floats_of(carry)])
        return UOROMemory(carry, s, jax.tree.map(jnp.zeros_like, params))

    def step(params: Params, state: tuple[UOROMemory, PRNGKey], piece: Batch) -> tuple[Array, Params, Any]:
        memory, key = state
        key, now = jax.random.split(key)
        at, s, theta = opened(loss, memory.carry, piece), jax.tree.leaves(memory.s), memory.theta
        loss_sum, push, carry = at.along_carry(params)
        loss_along, moved = push(s)
        pull, nu = at.back(params), _signs(now, at.floats)
        d_params, _ = pull((jnp.ones_like(loss_sum), jax.tree.map(jnp.zeros_like, nu)))
        drawn, _ = pull((jnp.zeros_like(loss_sum), nu))
        grads = jax.tree.map(lambda d, v: d + loss_along.astype(v.dtype) * v, d_params, theta)
        rho0, rho1 = _balance(theta, moved), _balance(drawn, nu)
        new_s = [(rho0 * a + rho1 * b).astype(a.dtype) for a, b in zip(moved, nu, strict=True)]
        new_theta = jax.tree.map(lambda a, b: (a / rho0 + b / rho1).astype(a.dtype), theta, drawn)
        return loss_sum, grads, (UOROMemory(carry, like_floats(carry, new_s), new_theta), key)

    def estimate(params: Params, memory: UOROMemory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        key = require_key(key, "uoro", "random signs")
        (memory, _), sums = accumulate(step, params, (memory, key), cut(batch, 1))
        out = weighted_mean(memory, sums)
        norms = measure(memory.s).norm, measure(memory.theta).norm  # lanes stay on their devices
        return out._replace(info=UOROInfo(out.info.losses, out.info.weights, *norms))

    return Estimator(init, estimate)


def _signs(key: PRNGKey, like: list[Array]) -> list[Array]:
    keys = jax.random.split(key, max(1, len(like)))
    return [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, like, strict=True)]


def _balance(params_side: Params, carry_side: list[Array]) -> Float[Array, ""]:
    """The factor that makes both sides of a product equally long: what minimises the sum of their squares."""
    return jnp.sqrt((measure(params_side).norm + EPSILON) / (measure(carry_side).norm + EPSILON))
