"""Shard the loss function, the state and the batches of a run over devices along the batch axis."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from tbptt.distributed.mesh import BATCH_AXIS, batch_specs, check_divisible
from tbptt.types import Batch, Carry, LossFn, Params

State = TypeVar("State")
BATCH_SPEC = PartitionSpec(None, BATCH_AXIS)  # `[T, B, ...]`


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


def state_shardings(make_state: Callable[[int], State], batch_size: int, mesh: Mesh) -> Any:
    """Return the sharding of every leaf of a state.

    Leaves with a batch axis (carries, remembered steps, influences) are sharded along it. All
    others (parameters, optimizer state, counters, keys) are replicated. The axis is inferred
    from the shapes of `make_state(batch_size)` and `make_state(2 * batch_size)`, so any
    estimator is supported.

    Args:
      make_state: returns the state before the first update, for any batch size:

            def make_state(batch_size):
                shape = lambda a: (chunk, batch_size, *a.shape[2:])
                example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(shape(a), a.dtype), batch)
                carry = cell.initial_carry((batch_size,))
                return init_state(estimator, optimizer, params, carry, example, key)

      batch_size: static, B, the total over all processes.
      mesh: from `batch_mesh`.

    Returns:
      A pytree of `NamedSharding` like the state. A checkpoint made on any number of devices can
      be restored to it.

    Raises:
      ValueError: batch_size is not a multiple of the number of devices.
    """
    check_divisible(batch_size, mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), batch_specs(make_state, batch_size))


def init_sharded_state(make_state: Callable[[int], State], batch_size: int, mesh: Mesh) -> State:
    """Create the state of a run on its devices; each device holds its own batch rows only.

    Args: as for `state_shardings`.

    Raises:
      ValueError: batch_size is not a multiple of the number of devices; or the replicated leaves
        differ between processes, for example because their seeds differ.
    """
    shardings = state_shardings(make_state, batch_size, mesh)
    state = jax.jit(lambda: make_state(batch_size), out_shardings=shardings)()
    if jax.process_count() > 1:
        whole = [
            _numbers(leaf) for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated
        ]
        try:
            multihost_utils.assert_equal(whole)
        except AssertionError as error:
            raise ValueError(
                "parameters, optimizer state and key must be equal in all processes; they differ. "
                "Start every process with the same seed and flags"
            ) from error
    return state


def _numbers(leaf: jax.Array) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def local_rows(batch_size: int, mesh: Mesh) -> range:
    """Return the batch rows that this process reads and passes to `put_batch`.

    A single process reads all B rows.
    """
    check_divisible(batch_size, mesh)
    each = batch_size // mesh.size
    own = [
        i
        for i, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    return range(own[0] * each, (own[-1] + 1) * each) if own else range(0)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put a batch on the devices; every process passes the rows given by `local_rows`.

    Args:
      batch: `[T, B / processes, ...]` of NumPy (or host) arrays.
      mesh: from `batch_mesh`.

    Returns:
      The global batch `[T, B, ...]`; each device holds its own rows.

    Raises:
      ValueError: a leaf has no batch axis after time, leaves differ in it, or B is not a multiple
        of the number of devices.
    """
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        if np.ndim(leaf) < 2:
            raise ValueError(
                f"{name} must be [T, B, ...], with a batch axis to shard; got shape "
                f"{np.shape(leaf)}"
            )
        sizes[name] = np.shape(leaf)[1]
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the leaves of a batch must have one batch size, [T, B, ...]; got {sizes}"
        )
    for batch_size in set(sizes.values()):
        check_divisible(batch_size * jax.process_count(), mesh)
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def make_sharded_step(
    step: Callable[[State, Batch], tuple[State, Any]], state: State
) -> Callable[..., Any]:
    """Return a train step (or epoch) that runs on the devices of the state, and keeps it there.

        optimizer = optax.adam(1e-3)
        mesh = batch_mesh()
        loss_fn = sharded_loss(loss_fn, cell.initial_carry, mesh)
        estimator = truncated_bptt(loss_fn, k1, k2)                                # any estimator
        state = init_sharded_state(make_state, batch_size, mesh)
        step = make_sharded_step(make_train_step(estimator, optimizer), state)
        for local in batches:                                            # the rows of this process
            state, metrics = step(state, put_batch(local, mesh))

    With `sharded_loss`, gradients are summed over the devices once per derivative of the loss
    function that the estimator takes: once per update for `full_bptt`, and for `truncated_bptt`
    with k1 steps per update. Carries and remembered steps stay on their device. Losses equal
    those of one device up to the order of summation.

    Args:
      step: `(state, batch) -> (state, metrics)`, from `make_train_step`, `make_train_epoch`, or
        `over_seeds` of one.
      state: from `init_sharded_state`, or restored; only its shardings are used.

    Returns:
      The step. It donates the state; the metrics are replicated, so every process can read them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = next(s.mesh for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding))
    batch, replicated = NamedSharding(mesh, BATCH_SPEC), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(
        lambda state, batch: step(state, batch),
        in_shardings=(shardings, batch),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    platforms = {device.platform for device in batch.device_set}
    if mesh.size == 1 or platforms != {"cpu"}:
        return run
    return _blocking(run)


def _blocking(run: Any) -> Callable[..., Any]:
    """Block each call until its update is complete, at almost no cost on a CPU.

    CPU devices that wait for each other hold threads that the others need. With several updates
    in flight they can deadlock: observed with 2 devices on 2 cores, in one process and in two
    (jax 0.10.2).
    """

    def step(state: Any, batch: Batch) -> Any:
        return jax.block_until_ready(run(state, batch))

    setattr(step, "lower", run.lower)  # noqa: B010, gives access to the compiled program
    return step
