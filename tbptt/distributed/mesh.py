"""The devices of a run: one per core of a CPU, those of several processes, and a mesh of them."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

BATCH_AXIS = "batch"  # name of the only axis of the mesh


def start_processes(
    coordinator: str | None = None,
    number: int | None = None,
    index: int | None = None,
    *,
    timeout: int = 300,
) -> tuple[int, int]:
    """Connect this process to the others, so that `jax.devices()` lists the devices of all.

    Call it before any other use of jax.

        srun --nodes 4 --ntasks-per-node 1 python train.py   # Slurm: start_processes()
        python train.py host0:1234 4 $i                      # plain hosts, for i = 0 .. 3, and
                                                             # start_processes("host0:1234", 4, i)

    This calls `jax.distributed.initialize` and nothing else. A service in process 0 tracks the
    processes, and collectives are those of the backend (NCCL on GPUs, gloo on CPUs). If a process
    dies, the others end with an error after a timeout. The run can resume from its last
    checkpoint with any number of processes.

    Args:
      coordinator: "host:port" of process 0, the same for all; a free port that all can reach.
      number: number of processes.
      index: number of this process, 0 .. number - 1. If all three are None, they come from the
        environment of the cluster (Slurm, Open MPI, ...).
      timeout: seconds to wait for the other processes.

    Returns:
      (index, number) of this process.

    Raises:
      ValueError: some of coordinator, number, index are missing or out of range; or none is given
        and jax finds no cluster.
      RuntimeError: jax has already started its devices, or the timeout expired.
    """
    given = {"coordinator": coordinator, "number": number, "index": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            "coordinator, number and index must be given together, or not at all (in a cluster); "
            f"missing: {', '.join(missing)}. For example coordinator='host0:1234', number=2, "
            "index=0"
        )
    if number is not None and index is not None and not 0 <= index < number:
        raise ValueError(
            f"index must be in 0 .. number - 1; got index={index}, number={number}. Count from 0"
        )
    try:
        jax.distributed.initialize(coordinator, number, index, initialization_timeout=timeout)
    except ValueError as error:
        raise ValueError(
            f"jax cannot detect the number of processes: {error}. Start under Slurm (srun) or Open "
            "MPI, or pass coordinator, number and index"
        ) from error
    return jax.process_index(), jax.process_count()


def split_cpu(devices: int | None = None) -> int:
    """Configure jax to use the CPU as several devices, one per core, to train on all cores.

        split_cpu()                                                 # before any other use of jax
        mesh = batch_mesh()                                         # then as with any other devices

    XLA runs the products of a recurrent step on one core while they are small, as for a few
    dozen batch rows. For larger products, cores synchronise in every step. Devices synchronise
    only once per update. The compiled loops of `Elman`, `GRU` and `LSTM` (extra `cpu`) use
    threads of their own, so splitting can only accelerate the rest of the program.

    Args:
      devices: static int >= 1; None = the number of cores that this process may use.

    Returns:
      The number of devices.

    Raises:
      ValueError: devices is not an int >= 1.
      RuntimeError: jax has already started, with another number of devices.
    """
    wanted = usable_cores() if devices is None else devices
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ValueError(
            f"devices must be an int >= 1, or None for one per core; got devices={devices!r}"
        )
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
        present = len(jax.local_devices(backend="cpu"))
        if present != wanted:
            raise RuntimeError(
                f"the CPU must be split before jax starts its devices, but it has started with "
                f"{present}, not {wanted}. Call split_cpu before the first array and jax.devices()"
            ) from error
    return wanted


def batch_mesh(devices: int | None = None) -> Mesh:
    """Return a one-dimensional mesh of devices, over which batches are sharded.

    Args:
      devices: static int >= 1, the total over all processes, equal for every process; None = all.

    Returns:
      A `jax.sharding.Mesh` with the one axis "batch"; neighbouring rows stay in one process.

    Raises:
      ValueError: there are fewer devices, or devices is not a multiple of the number of
        processes.
    """
    processes, present = jax.process_count(), jax.device_count()
    wanted = present if devices is None else devices
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= present:
        raise ValueError(
            f"devices must be an int between 1 and {present}, the devices of jax "
            f"({jax.default_backend()}, processes: {processes}); got devices={devices!r}. On a "
            f"CPU, call tbptt.distributed.split_cpu({wanted}) before jax starts"
        )
    each, rest = divmod(wanted, processes)
    own = {i: [d for d in jax.devices() if d.process_index == i][:each] for i in range(processes)}
    if rest or any(len(found) < each for found in own.values()):
        counts = ", ".join(
            f"{sum(d.process_index == i for d in jax.devices())}" for i in range(processes)
        )
        raise ValueError(
            f"devices must be equally many per process; got devices={wanted} and {processes} "
            f"processes with {counts} devices. Use a multiple of {processes} that every process "
            "can supply"
        )
    return Mesh(np.array([d for found in own.values() for d in found]), (BATCH_AXIS,))


def check_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raise a ValueError unless batch_size is a positive multiple of the number of devices."""
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below, above = batch_size // devices * devices, -(-max(batch_size, 1) // devices) * devices
        near = f"{below} or {above}" if below else f"{above}"
        fit = max(n for n in range(1, devices + 1) if max(batch_size, 1) % n == 0)
        raise ValueError(
            f"the batch size B must be a multiple of the number of devices; got B={batch_size} on "
            f"{devices} devices. Use B={near}, or devices={fit}"
        )


def batch_specs(make: Callable[[int], Any], batch_size: int) -> Any:
    """Find the batch axis of every leaf of `make(batch_size)`: the one whose size scales with it.

        axis = the first i with shape(make(2 batch_size))[i] == 2 shape(make(batch_size))[i] > 0

    Nothing is computed (`jax.eval_shape`), and an axis that has the same length by coincidence
    is not mistaken for the batch axis.

    Returns:
      The same pytree with a `PartitionSpec` for every leaf; a leaf without such an axis is
      replicated.
    """
    once, twice = (
        jax.eval_shape(lambda: make(batch_size)),
        jax.eval_shape(lambda: make(2 * batch_size)),
    )

    def spec(a: Any, b: Any) -> PartitionSpec:
        axes = [i for i, (p, q) in enumerate(zip(a.shape, b.shape, strict=True)) if q == 2 * p != p]
        return PartitionSpec(*[None] * axes[0], BATCH_AXIS) if axes else PartitionSpec()

    return jax.tree.map(spec, once, twice)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    # Not available on every system; a container may grant fewer cores than the machine has.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
