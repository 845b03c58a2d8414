"""Evaluate a loss function with the batch sharded over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from tbptt.distributed.mesh import BATCH_AXIS, batch_specs, check_divisible
from tbptt.types import Batch, Carry, LossFn, Params


def sharded_loss(
    loss_fn: LossFn, initial_carry: Callable[[tuple[int, ...]], Carry], mesh: Mesh
) -> LossFn:
    """Evaluate a loss function on every device with its own batch rows, and sum the results.

        for device, own in enumerate(rows of each device):                        # in parallel
            loss[device], carry[own] = loss_fn(params, carry[own], batch[:, own])
        return sum(loss), carry

    The result is a `LossFn`, equal to the given one up to rounding, so any estimator accepts it.
    Its derivative by params is summed over the devices once per call. Without `sharded_loss`,
    XLA's partitioner sums in every step of a scan, or gathers the whole batch on every device
    for a product over time and batch. The rows must be independent, which excludes loss
    functions that mix them, such as batch normalisation.

    Args:
      loss_fn: any `LossFn` of batches `[T, B, ...]`, with B the only batch axis.
      initial_carry: `batch_shape -> carry`, as `cell.initial_carry`. Only shapes are used, to
        find the batch axis of each leaf of the carry. A leaf without one must not depend on the
        rows (for example a step counter).
      mesh: from `batch_mesh`.

    Raises:
      ValueError: in a call, B is not a multiple of the number of devices, or a leaf of the batch
        has no batch axis.
    """
    carries = batch_specs(lambda batch_size: initial_carry((batch_size,)), mesh.size)
    batches = PartitionSpec(None, BATCH_AXIS)

    def local(params: Params, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        loss_sum, carry = loss_fn(params, carry, batch)
        return loss_sum[None], carry

    # Without check_vma: a user's scan may start from replicated zeros and carry varying values.
    per_device = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), carries, batches),
        out_specs=(PartitionSpec(BATCH_AXIS), carries),
        check_vma=False,
    )

    def loss(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.ndim(leaf) < 2:
                raise ValueError(
                    f"batch{jax.tree_util.keystr(path)} must be [T, B, ...], with a batch axis to "
                    f"shard; got shape {np.shape(leaf)}"
                )
            check_divisible(np.shape(leaf)[1], mesh)
        losses, carry = per_device(params, carry, batch)
        return jnp.sum(losses), carry

    return loss
