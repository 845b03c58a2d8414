"""Explain an out-of-memory error of a device, and name flags with which the run fits."""

import contextlib
from typing import Any

import jax

import tbptt
from experiments.support.common.console import human_bytes
from experiments.support.train.model import Model, init_params


class OutOfMemory(MemoryError):
    """The device ran out of memory.

    The message names values of --k2, --batch or --memory with which the run fits.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of the device is an out-of-memory error."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def advice(
    model: Model,
    params: Any,
    example: tbptt.Batch,
    window: int,
    batch: int,
    available: int | None = None,
) -> str:
    """Return the predicted bytes of one gradient as text, and flags that need fewer.

    The prediction is that of `tbptt.memory_plan`.

    Args:
      params: parameters of one seed.
      example: a batch of at least one step, or its `jax.eval_shape`; only shapes are used.
      window, batch: k2 and batch size of the run.
      available: available bytes; None for half of what the run needs.
    """

    def needs(window: int, batch: int, remat: Any = None) -> int:
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((window, batch, *a.shape[2:]), a.dtype), example
        )
        return tbptt.memory_plan(
            model.cell, model.readout, params, shapes, embedding=model.embedding, remat=remat
        ).predicted_bytes

    now = needs(window, batch)
    available = now // 2 if available is None else available
    options = []
    if k2 := _largest(window - 1, lambda k2: needs(k2, batch) <= available):
        options.append(f"--k2 {k2}")
    if smaller := _largest(batch - 1, lambda n: needs(window, n) <= available):
        options.append(f"--batch {smaller}")
    if mebi := available >> 20:
        with contextlib.suppress(ValueError):  # no plan fits
            planned = needs(window, batch, tbptt.MemoryBudget(mebi << 20))
            options.append(
                f"--memory {mebi} (MiB; recomputes part of the forward pass, about "
                f"{human_bytes(planned)})"
            )
    what = (
        f"the device ran out of memory: one gradient with k2 = {window} and a batch of {batch} "
        f"needs about "
        f"{human_bytes(now)}"
    )
    if not options:
        fits = f"no smaller setting fits in {human_bytes(available)}"
        return f"{what}, and {fits}. Use a smaller --hidden"
    return f"{what}. Settings that fit in {human_bytes(available)}: {'; or '.join(options)}"


def device_memory() -> int | None:
    """Return the total bytes of the device; None if it does not report them."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else None


def explained(error: BaseException, config: Any, setup: Any) -> BaseException:
    """Return an `OutOfMemory` that names settings with which the run fits.

    An error of another kind is returned unchanged.
    """
    if not is_out_of_memory(error):
        return error
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), setup.model))
    batch = setup.stream.chunk(0).batch
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), batch)
    return OutOfMemory(
        f"{advice(setup.model, params, example, config.k2, config.batch, device_memory())}. The "
        f"checkpoints remain; "
        "--memory can be combined with --resume, the other flags need a new run"
    )


def _largest(top: int, fits: Any) -> int:
    """Return the largest number up to `top` for which `fits`, 0 if there is none.

    `fits` is monotone.
    """
    low, high = 0, max(top, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
