"""Estimators that divide by the number of steps or by a constant instead of by the weights."""

import functools
import math
from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tbptt.numerics import sum_dtype
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import total_weight

Options = ParamSpec("Options")
Constructor = Callable[Concatenate[LossFn, Options], Estimator]


def normalised(
    make: Constructor[Options], by: Literal["weights", "steps"] | int | float
) -> Constructor[Options]:
    """Return the constructor of an estimator that divides by `by` instead of by the weights.

        g = (1 / N) sum_t w_t dl_t/dparams

        by          N
        "weights"   the total weight of the call, as without `normalised`
        "steps"     the number of steps of the call, of any weight, that the mask does not exclude
        a number    this number, in every call

    Divide by "steps" if weights are signed, as advantages are: they may cancel. With "weights" a
    chunk in which all steps have one weight does not depend on it. With a number, the loss and the
    gradient are sums over the call divided by it. They add up exactly over calls of different
    lengths and weights, as `optax.MultiSteps` and updates online need.

    Args (all static):
      make: the constructor of any estimator, `(loss_fn, ...) -> Estimator`.
      by: "weights", "steps", or a positive number.

    Returns:
      A constructor with the arguments of `make`. The info of its estimators is that of a division
      by steps: `weights` are numbers of steps, `losses` are means over steps.

    Raises:
      ValueError: `by` is not as above.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp, tbptt
      >>> loss_fn = tbptt.sequence_loss(tbptt.GRU(2, 8), nn.Dense(1), tbptt.squared_error)
      >>> by_steps = tbptt.estimators.normalised(tbptt.truncated_bptt, by="steps")
      >>> estimator = by_steps(loss_fn, k1=10, k2=30)
    """
    if by == "weights":
        return make
    constant = None if isinstance(by, str | bool | None) else float(by)
    if by != "steps" and (constant is None or not 0 < constant < math.inf):
        raise ValueError(f'by must be "weights", "steps" or a positive number; got {by!r}')

    def constructor(loss_fn: LossFn, *args: Options.args, **options: Options.kwargs) -> Estimator:
        estimator = make(_with_stored_weights(loss_fn), *args, **options)

        def init(params: Params, carry: Carry, batch: Batch) -> Memory:
            return estimator.init(params, carry, _store_weights(batch))

        def estimate(
            params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
        ) -> Gradient:
            batch = _store_weights(batch)
            gradient = estimator.estimate(params, memory, batch, key)
            if constant is None:
                return gradient
            loss, grads = _scaled((gradient.loss, gradient.grads), total_weight(batch) / constant)
            return gradient._replace(loss=loss, grads=grads)

        return Estimator(init, estimate)

    return functools.update_wrapper(constructor, make)


def _store_weights(batch: Batch) -> Batch:
    """Move the weights beside the targets, where no estimator reads them; every step weighs 1."""
    ones = None if batch.weights is None else jnp.ones(np.shape(batch.weights))
    return batch._replace(targets=(batch.targets, batch.weights), weights=ones)


def _with_stored_weights(loss_fn: LossFn) -> LossFn:
    @functools.wraps(loss_fn)
    def loss(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        targets, weights = batch.targets
        return loss_fn(params, carry, batch._replace(targets=targets, weights=weights))

    return loss


def _scaled(tree: Any, scale: Float[Array, ""]) -> Any:
    def one(leaf: Array) -> Array:
        wide = sum_dtype(leaf.dtype)
        return (leaf.astype(wide) * scale.astype(wide)).astype(leaf.dtype)

    return jax.tree.map(one, tree)
