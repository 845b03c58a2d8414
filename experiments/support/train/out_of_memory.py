"""A device that runs out of memory: what an update needs, and which flags would make it fit."""

import contextlib
from typing import Any

import jax

import tbptt
from experiments.support.common.console import human_bytes
from experiments.support.train.model import Model, init_params


class OutOfMemory(MemoryError):
    """The device ran out of memory; the message says which --k2, --lanes or --memory would fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error of the device is for want of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def advice(model: Model, params: Any, example: tbptt.Batch, window: int, lanes: int, room: int | None = None) -> str:
    """Says what one gradient needs, by `tbptt.memory_plan`, and what would need less.

    Args:
      params: of one seed; example: a batch of at least one step, or its `jax.eval_shape`: for shapes only.
      window, lanes: k2 and lanes of the run, as set.
      room: bytes that there are; None: half of what the run needs.
    """

    def needs(window: int, lanes: int, remat: Any = None) -> int:
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((window, lanes, *a.shape[2:]), a.dtype), example)
        return tbptt.memory_plan(
            model.cell, model.readout, params, batch, embedding=model.embedding, remat=remat
        ).predicted_bytes

    now = needs(window, lanes)
    room = now // 2 if room is None else room
    fits = []
    if k2 := _largest(window - 1, lambda k2: needs(k2, lanes) <= room):
        fits.append(f"--k2 {k2}")
    if fewer := _largest(lanes - 1, lambda n: needs(window, n) <= room):
        fits.append(f"--lanes {fewer}")
    if mebi := room >> 20:
        with contextlib.suppress(ValueError):  # no plan is lean enough
            leaner = needs(window, lanes, tbptt.MemoryBudget(mebi << 20))
            fits.append(f"--memory {mebi} (MiB; computes part of the forward pass twice, about {human_bytes(leaner)})")
    what = (
        f"the device ran out of memory: one gradient of k2={window} steps and {lanes} lanes needs about {human_bytes(now)}"
    )
    if not fits:
        return f"{what}, and nothing smaller fits in {human_bytes(room)}. Take a smaller --hidden"
    return f"{what}. In {human_bytes(room)} would fit: {'; or '.join(fits)}"


def room_on_device() -> int | None:
    """Returns the bytes that the device has in all; None where it does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else None


def explained(error: BaseException, config: Any, setup: Any) -> BaseException:
    """Returns an `OutOfMemory` that says what would fit, if that is what the error is about; else the error."""
    if not is_out_of_memory(error):
        return error
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), setup.model))
    batch = setup.stream.chunk(0).batch
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), batch)
    return OutOfMemory(
        f"{advice(setup.model, params, example, config.k2, config.lanes, room_on_device())}. The checkpoints stay; "
        "--memory can be added to --resume, the others need a new run"
    )


def _largest(top: int, fits: Any) -> int:
    """Returns the largest number up to `top` that fits, 0 if none does; what fits, fits when smaller."""
    low, high = 0, max(top, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
