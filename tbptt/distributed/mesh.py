"""Devices in a row, and which axis of an array is dealt out to them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tbptt.distributed.cpu_count import usable_cores

LANES = "lanes"  # the name of the only axis of the mesh


def split_cpu(devices: int | None = None) -> int:
    """Makes jax see the CPU as several devices, one a core, so that lanes are trained on all cores at once.

        split_cpu()                                                 # first of all, before jax starts
        mesh = batch_mesh()                                          # then as with any other devices

    XLA runs the products of a recurrent step on one core while they are small, as those of a few dozen lanes are, and where
    they are larger, cores wait for each other in every step. Lanes share only the parameters, and wait once an update.
    The compiled loops of `Elman`, `GRU` and `LSTM` (extra `cpu`) share their lanes out by themselves; there only what lies
    around the loops can gain.

    Args:
      devices: static int >= 1; None = as many as this process may use cores.

    Returns:
      The number of devices.

    Raises:
      ValueError: devices is no int >= 1.
      RuntimeError: jax has already started, with another number of devices.
    """
    wanted = usable_cores() if devices is None else devices
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ValueError(f"devices must be an int >= 1, or None for one a core; got devices={devices!r}")
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
        there = len(jax.local_devices(backend="cpu"))
        if there != wanted:
            raise RuntimeError(
                f"the CPU must be split before jax starts its devices, and it has started with {there}, not {wanted}: call "
                "split_cpu first of all, ahead of the first array and of jax.devices()"
            ) from error
    return wanted


def batch_mesh(devices: int | None = None) -> Mesh:
    """Makes a row of devices, over which the lanes of a batch are dealt out.

    Args:
      devices: static int >= 1, how many, those of all processes counted; every process gives equally many. None = all.

    Returns:
      A `jax.sharding.Mesh` with the one axis "lanes"; neighbouring lanes stay in one process.

    Raises:
      ValueError: there are not so many devices, or they are no multiple of the number of processes.
    """
    processes, there = jax.process_count(), jax.device_count()
    wanted = there if devices is None else devices
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= there:
        raise ValueError(
            f"devices must be an int between 1 and {there}, the devices that jax sees ({jax.default_backend()}, processes: "
            f"{processes}); got devices={devices!r}. On a CPU, more are made by "
            f"tbptt.distributed.split_cpu({wanted}) before jax starts"
        )
    each, rest = divmod(wanted, processes)
    own = {i: [d for d in jax.devices() if d.process_index == i][:each] for i in range(processes)}
    if rest or any(len(found) < each for found in own.values()):
        counts = ", ".join(f"{sum(d.process_index == i for d in jax.devices())}" for i in range(processes))
        raise ValueError(
            f"every process must give equally many devices; got devices={wanted} from {processes} processes that have "
            f"{counts}. Choose a multiple of {processes} of which each has its share"
        )
    return Mesh(np.array([d for found in own.values() for d in found]), (LANES,))


def check_divisible(lanes: int, mesh: Mesh) -> None:
    """Raises a ValueError, naming both numbers and the remedy, unless every device gets equally many lanes."""
    devices = mesh.size
    if lanes < 1 or lanes % devices:
        below, above = lanes // devices * devices, -(-max(lanes, 1) // devices) * devices
        near = f"{below} or {above}" if below else f"{above}"
        fit = max(n for n in range(1, devices + 1) if max(lanes, 1) % n == 0)
        raise ValueError(
            f"B lanes must be a multiple of the devices; got B={lanes} lanes on {devices} devices. Take B={near}, or "
            f"devices={fit}"
        )


def batch_specs(make: Callable[[int], Any], lanes: int) -> Any:
    """Finds the axis of lanes in every leaf that `make(lanes)` returns: the one whose size goes with the number of lanes.

        axis = the first i with shape(make(2 lanes))[i] == 2 shape(make(lanes))[i] > 0

    Nothing is computed (`jax.eval_shape`), and no axis is taken for lanes only because it happens to be as long.

    Returns:
      The same pytree with a `PartitionSpec` for every leaf; one without such an axis is whole on every device.
    """
    once, twice = jax.eval_shape(lambda: make(lanes)), jax.eval_shape(lambda: make(2 * lanes))

    def spec(a: Any, b: Any) -> PartitionSpec:
        axes = [i for i, (p, q) in enumerate(zip(a.shape, b.shape, strict=True)) if q == 2 * p != p]
        return PartitionSpec(*[None] * axes[0], LANES) if axes else PartitionSpec()

    return jax.tree.map(spec, once, twice)
