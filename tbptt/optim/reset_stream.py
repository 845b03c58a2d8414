"""A wrapper of estimators that restarts a stream after a non-finite carry."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tbptt.numerics import is_floating, zero_where_masked
from tbptt.optim.clip import count
from tbptt.types import Batch, Carry, Estimator, Gradient, Memory, Params, PRNGKey


class ResetMemory(NamedTuple):
    """Memory of `reset_on_non_finite`.

    inner:         the memory of the estimator, always finite
    start:         the memory at the start of the stream
    restart_count: scalar, the number of restarts so far
    """

    inner: Memory
    start: Memory
    restart_count: Int[Array, ""]


class ResetInfo(NamedTuple):
    """Info of `reset_on_non_finite`.

    inner:         the info of the estimator
    restarted:     scalar, whether the stream restarts after this call
    restart_count: scalar, the number of restarts so far
    """

    inner: Any
    restarted: Bool[Array, ""]
    restart_count: Int[Array, ""]


def reset_on_non_finite(estimator: Estimator) -> Estimator:
    """Wrap an estimator so that the stream restarts after a non-finite result.

        gradient = estimator.estimate(params, memory, batch, key)
        if loss, gradient or new memory hold NaN or inf: memory = start, restart_count += 1
        else:                                            memory = gradient.memory

    `skip_non_finite` and `shrink_non_finite` act on updates. One NaN among the inputs also enters
    the carry of every later chunk, so they would skip or shrink all later updates. Use both:

        estimator = reset_on_non_finite(truncated_bptt(loss_fn, 50, 100))
        optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3)))

    `start` is the result of `estimator.init` for the carry at the start of the stream
    (`init_state`, `rewind`). All batch rows restart together. The gradient is returned unchanged,
    so that the policy on updates detects it. Finite results are unchanged, bit by bit. Masked steps
    (mask False) may hold any values. Apply this wrapper outside of `monitored`.

    Args:
      estimator: static; any `Estimator`.

    Returns:
      An `Estimator` with a `ResetMemory` and a `ResetInfo`; a train step reports
      `metrics.info.restart_count`. The count starts at 0 with `init`, so with every `rewind`.
    """

    def init(params: Params, carry: Carry, batch: Batch) -> ResetMemory:
        inner = estimator.init(params, carry, batch)
        # A copy: a train step donates its state, and no buffer can be donated twice.
        return ResetMemory(inner, jax.tree.map(jnp.copy, inner), jnp.zeros((), jnp.int32))

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        gradient = estimator.estimate(params, memory.inner, batch, key)
        bad = ~_finite((gradient.loss, gradient.grads, gradient.memory))
        inner = jax.tree.map(
            lambda old, new: jnp.where(bad, old, new), memory.start, gradient.memory
        )
        restarts = count(memory.restart_count, bad)
        info = ResetInfo(gradient.info, bad, restarts)
        return gradient._replace(memory=ResetMemory(inner, memory.start, restarts), info=info)

    return Estimator(init, estimate)


def _finite(tree: Any) -> Bool[Array, ""]:
    """Return whether all floating leaves are finite; of a stored Batch, the unmasked inputs."""
    flags = []
    for node in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Batch)):
        if isinstance(node, Batch):
            node = zero_where_masked(node.inputs, node.mask)
        floating = [leaf for leaf in jax.tree.leaves(node) if is_floating(leaf)]
        flags += [jnp.all(jnp.isfinite(leaf)) for leaf in floating]
    return jnp.all(jnp.stack(flags))
