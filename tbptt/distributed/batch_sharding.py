"""The state and the batches of a run, dealt out over a row of devices by their lanes."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tbptt.distributed.mesh import LANES, batch_specs, check_divisible
from tbptt.types import Batch

State = TypeVar("State")
OF_BATCH = PartitionSpec(None, LANES)  # `[T, B, ...]`


def state_shardings(make_state: Callable[[int], State], lanes: int, mesh: Mesh) -> Any:
    """Says where every leaf of a state lies: split where it has an axis of lanes (carries, remembered steps, influences),
    whole on every device where it has none (parameters, the optimizer's state, counters, keys).

    The axis is found from the shapes of `make_state(lanes)` and `make_state(2 lanes)`: so for any estimator.

    Args:
      make_state: makes the state before the first update, of any number of lanes:

            def make_state(lanes):
                example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chunk, lanes, *a.shape[2:]), a.dtype), batch)
                return init_state(estimator, optimizer, params, cell.initial_carry((lanes,)), example, key)

      lanes: static, B, of all processes together.
      mesh: of `batch_mesh`.

    Returns:
      A pytree of `NamedSharding` like the state: where a checkpoint, made on any number of devices, is restored to.

    Raises:
      ValueError: lanes is no multiple of the mesh's devices.
    """
    check_divisible(lanes, mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), batch_specs(make_state, lanes))


def init_sharded_state(make_state: Callable[[int], State], lanes: int, mesh: Mesh) -> State:
    """Makes the state of a run on its devices: `make_state(lanes)`, of which no device ever holds other lanes than its own.

    Args: as for `state_shardings`.

    Raises:
      ValueError: lanes is no multiple of the devices; or processes disagree on what all must share, as they do when each
        draws from a seed of its own.
    """
    shardings = state_shardings(make_state, lanes, mesh)
    state = jax.jit(lambda: make_state(lanes), out_shardings=shardings)()
    if jax.process_count() > 1:
        whole = [_numbers(leaf) for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated]
        try:
            multihost_utils.assert_equal(whole)
        except AssertionError as error:
            raise ValueError(
                "parameters, optimizer state and key must start equal in all processes; they differ. Give every process "
                "the same seed and flags"
            ) from error
    return state


def _numbers(leaf: jax.Array) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def local_rows(lanes: int, mesh: Mesh) -> range:
    """Returns which of the B lanes this process reads, and hands to `put_batch`; of a single process all."""
    check_divisible(lanes, mesh)
    each = lanes // mesh.size
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return range(own[0] * each, (own[-1] + 1) * each) if own else range(0)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Lays out a batch over the devices: every process gives the lanes that `local_rows` says, and no other.

    Args:
      batch: `[T, B / processes, ...]` of NumPy (or host) arrays.

    Returns:
      The batch `[T, B, ...]` of all processes together; each device holds its lanes.

    Raises:
      ValueError: a leaf has no axis of lanes behind time, leaves differ in it, or B is no multiple of the devices.
    """
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        if np.ndim(leaf) < 2:
            raise ValueError(f"{name} must be [T, B, ...], to be dealt out by its lanes; got shape {np.shape(leaf)}")
        sizes[name] = np.shape(leaf)[1]
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the leaves of a batch must have equally many lanes, [T, B, ...]; got {sizes}")
    for lanes in set(sizes.values()):
        check_divisible(lanes * jax.process_count(), mesh)
    sharding = NamedSharding(mesh, OF_BATCH)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def make_sharded_step(step: Callable[[State, Batch], tuple[State, Any]], state: State) -> Callable[..., Any]:
    """Makes a train step (or epoch) that runs on the devices where the state lies, and leaves it there.

        optimizer = optax.adam(1e-3)
        mesh = batch_mesh()
        estimator = truncated_bptt(sharded_loss(loss_fn, cell.initial_carry, mesh), k1, k2)       # any estimator
        state = init_sharded_state(make_state, lanes, mesh)
        step = make_sharded_step(make_train_step(estimator, optimizer), state)
        for local in batches:                                                                   # this process's lanes
            state, metrics = step(state, put_batch(local, mesh))

    With `sharded_loss` the gradients are added up over the devices once for each call that the estimator makes of the loss
    function's derivative: once an update for `full_bptt`, and for `truncated_bptt` fed with k1 steps an update. Carries and
    remembered steps never leave their device. Losses are those of one device, to the rounding of sums in another order.

    Args:
      step: `(state, batch) -> (state, metrics)`, of `make_train_step`, `make_train_epoch`, or `over_seeds` of one.
      state: of `init_sharded_state`, or restored; only where its leaves lie is looked at.

    Returns:
      The step; the state is donated; metrics are whole on every device, so every process can read them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = next(s.mesh for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding))
    batch, everywhere = NamedSharding(mesh, OF_BATCH), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(
        lambda state, batch: step(state, batch),
        in_shardings=(shardings, batch),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return run
    return _waiting(run)


def _waiting(run: Any) -> Callable[..., Any]:
    """Ends each call when its update has ended. CPU devices that wait for each other hold threads that the others need, and
    with several updates under way they can wait for ever: seen with 2 devices on 2 cores, in one process and in two (jax
    0.10.2). On a CPU this costs next to nothing."""

    def step(state: Any, batch: Batch) -> Any:
        return jax.block_until_ready(run(state, batch))

    setattr(step, "lower", run.lower)  # noqa: B010, as of any jitted function: what it compiles to can be looked at
    return step
