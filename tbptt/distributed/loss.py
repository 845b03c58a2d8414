"""A loss function whose lanes run on the devices that hold them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from tbptt.distributed.mesh import LANES, batch_specs, check_divisible
from tbptt.types import Batch, Carry, LossFn, Params


def sharded_loss(loss_fn: LossFn, initial_carry: Callable[[tuple[int, ...]], Carry], mesh: Mesh) -> LossFn:
    """Runs a loss function on every device with its own lanes, and adds up.

        for device, own in enumerate(lanes of each device):                            # at the same time
            loss[device], carry[own] = loss_fn(params, carry[own], batch[:, own])
        return sum(loss), carry

    It is a `LossFn` again, the same one to rounding, so any estimator takes it. Its derivative by params is added up over
    the devices once, after the whole of it: left to itself, XLA's partitioner adds up in every step of a scan, or gathers
    all lanes on every device for a product over time and lanes together. The lanes must be independent, which a loss
    function that exchanges numbers between lanes (batch normalisation) is not.

    Args:
      loss_fn: any `LossFn` of batches `[T, B, ...]`, B the only batch axis.
      initial_carry: `batch_shape -> carry`, as `cell.initial_carry`: for shapes only, it tells which axis of each leaf
        of the carry is that of lanes. A leaf without one must not depend on the lanes (a counter of steps).
      mesh: of `batch_mesh`.

    Raises:
      ValueError, at the call: B is no multiple of the devices, or a leaf of the batch has no axis of lanes.
    """
    carries = batch_specs(lambda lanes: initial_carry((lanes,)), mesh.size)
    batches = PartitionSpec(None, LANES)

    def local(params: Params, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        loss_sum, carry = loss_fn(params, carry, batch)
        return loss_sum[None], carry

    # Untracked (check_vma): a user's scan may start from zeros that do not vary over devices and go on with what does.
    each = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), carries, batches),
        out_specs=(PartitionSpec(LANES), carries),
        check_vma=False,
    )

    def loss(params: Params, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.ndim(leaf) < 2:
                raise ValueError(
                    f"batch{jax.tree_util.keystr(path)} must be [T, B, ...], to be split by its lanes; got {np.shape(leaf)}"
                )
            check_divisible(np.shape(leaf)[1], mesh)
        losses, carry = each(params, carry, batch)
        return jnp.sum(losses), carry

    return loss
