"""What an optimizer's policy cannot mend: a NaN that has got into the carry of a stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tbptt.numerics import expand, is_floating
from tbptt.optim.clip import count
from tbptt.types import Batch, Carry, Estimator, Gradient, Memory, Params, PRNGKey


class ResetMemory(NamedTuple):
    """inner: the estimator's memory, always finite; start: that of the stream's beginning; restart_count: scalar."""

    inner: Memory
    start: Memory
    restart_count: Int[Array, ""]


class ResetInfo(NamedTuple):
    """inner: the estimator's info; restarted: whether the stream starts afresh after this call; how often it has so far."""

    inner: Any
    restarted: Bool[Array, ""]
    restart_count: Int[Array, ""]


def reset_on_non_finite(estimator: Estimator) -> Estimator:
    """Wraps an estimator so that a stream starts afresh after numbers went wrong, instead of staying wrong for ever.

        gradient = estimator.estimate(params, memory, batch, key)
        if loss, gradient or new memory hold NaN or inf: memory = start, restart_count += 1
        else:                                            memory = gradient.memory

    `skip_non_finite` and `shrink_non_finite` act on updates. One NaN among the inputs also goes through the carry into
    every later chunk, and they would skip, or shrink, for ever. Use both:

        estimator = reset_on_non_finite(truncated_bptt(loss_fn, 50, 100))
        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    `start` is what `estimator.init` made of the carry that the stream began with (`init_state`, `rewind`); all lanes go
    back to it together. The gradient passes as it came, for the policy to see. While all is finite nothing is changed,
    to the bit. Steps that do not exist (mask False) may hold anything. Put it outside `monitored`.

    Args (static): estimator, any.

    Returns:
      The estimator with a `ResetMemory` and a `ResetInfo`, in a train step `metrics.info.restart_count`. The count
      begins anew with `init`, so with every `rewind`.
    """

    def init(params: Params, carry: Carry, batch: Batch) -> ResetMemory:
        inner = estimator.init(params, carry, batch)
        # Copied: the train step donates its state, and one buffer can be donated once.
        return ResetMemory(inner, jax.tree.map(jnp.copy, inner), jnp.zeros((), jnp.int32))

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        gradient = estimator.estimate(params, memory.inner, batch, key)
        bad = ~_finite((gradient.loss, gradient.grads, gradient.memory))
        inner = jax.tree.map(lambda old, new: jnp.where(bad, old, new), memory.start, gradient.memory)
        restarts = count(memory.restart_count, bad)
        info = ResetInfo(gradient.info, bad, restarts)
        return gradient._replace(memory=ResetMemory(inner, memory.start, restarts), info=info)

    return Estimator(init, estimate)


def _finite(tree: Any) -> Bool[Array, ""]:
    """Whether all numbers are that can do harm; of a remembered Batch the inputs of steps that exist."""
    flags = []
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Batch)):
        if isinstance(node, Batch):
            exists = True if node.mask is None else expand(jnp.asarray(node.mask), node.inputs)
            node = jnp.where(exists, node.inputs, 0)
        if is_floating(node):
            flags.append(jnp.all(jnp.isfinite(node)))
    return jnp.all(jnp.stack(flags))
