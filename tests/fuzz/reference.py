"""The reference: loops over steps in float64 numpy, with the backward pass written by hand."""

import functools
from typing import Any

import jax
import numpy as np

from tbptt import Batch
from tests.fuzz.programs import H, K, Program


def reference(program: Program, params: Any, carry: Any, batches: list[Batch]) -> Any:
    """Compute the result by loops over rows and steps in float64."""
    wide = functools.partial(np.asarray, dtype=np.float64)
    (w_h, w_x, b), readout = jax.tree.map(wide, params[:2])
    kernel, bias = readout["params"]["kernel"], readout["params"]["bias"]
    T, calls = program.T, 1 if program.function == "step" else program.calls
    xs, targets, weights, resets, mask = (
        np.concatenate([_field(each, name, T, program) for each in batches[:calls]])
        for name in ("inputs", "targets", "weights", "resets", "mask")
    )
    h = wide(carry.h).reshape(-1, H)
    before, after, outputs = [], [], np.zeros((calls * T, len(h), K))
    for t in range(calls * T):
        entering = np.where(resets[t][:, None], 0, h)
        new = np.tanh(entering @ w_h + np.where(mask[t][:, None], xs[t], 0) @ w_x + b)
        h = np.where(mask[t][:, None], new, h)
        before.append(entering)
        after.append(np.where(mask[t][:, None], new, 0))
        outputs[t] = after[t] @ kernel + bias
    last = slice((calls - 1) * T, calls * T)
    steps = (T, *program.batch_shape)
    carry = h.reshape(*program.batch_shape, H)
    if program.function == "unroll":
        ys = np.array(after[last]).reshape(*steps, H)
        return {"carry": carry, "outputs": ys}
    if program.function == "predict":
        return {"carry": carry, "outputs": outputs[last].reshape(*steps, K)}
    counts = np.where(mask, weights, 0)
    errors = np.where(counts[..., None] != 0, outputs - targets, 0)
    total = np.sum((counts * np.mean(errors**2, -1))[last])
    grads = [np.zeros_like(a) for a in (w_h, w_x, b, kernel, bias)]
    for start, first, end in _windows(program, (calls - 1) * T):
        dh = np.zeros_like(h)
        for t in reversed(range(start, end)):
            exists = mask[t][:, None]
            d_out = 2 / K * counts[t][:, None] * errors[t] * (t >= first)
            da = np.where(exists, (dh + d_out @ kernel.T) * (1 - after[t] ** 2), 0)
            x = np.where(exists, xs[t], 0)
            pieces = before[t].T @ da, x.T @ da, da.sum(0), after[t].T @ d_out, d_out.sum(0)
            grads = [g + p for g, p in zip(grads, pieces, strict=True)]
            back = np.where(resets[t][:, None], 0, da @ w_h.T)
            dh = np.where(exists, back, dh)
    divisor = 1.0
    if program.function != "loss":
        divisor = np.sum(counts[last])
        if divisor < 1e-3 * np.sum(np.abs(counts[last])):
            divisor = np.nan  # signed weights that cancel
    scale = 0.0 if divisor == 0 else 1 / divisor
    tree = (grads[:3], {"params": {"bias": grads[4], "kernel": grads[3]}})
    found = {"loss": total * scale, "grads": jax.tree.map(lambda g: g * scale, tree)}
    return found | ({"carry": carry} if program.function == "loss" else {})


def _windows(program: Program, begin: int) -> list[tuple[int, int, int]]:
    """Return (start of the gradient, first loss that counts, end) of every window of a call."""
    T = program.T
    if program.function in ("truncated", "step"):
        found = []
        for end in range(begin + program.k1, begin + T + 1, program.k1):
            start = max(0, end - program.k2)
            found.append((start, max(start, end - program.k1), end))
        return found
    return [(0 if "rtrl" in program.function else begin, begin, begin + T)]


def _field(batch: Batch, name: str, T: int, program: Program) -> np.ndarray:
    """Return a field as float64 or bool `[T, N, ...]`, with its default."""
    rows = int(np.prod(program.batch_shape, dtype=int))
    value = getattr(batch, name)
    if value is None:
        return np.full((T, rows), name != "resets", float if name == "weights" else bool)
    value = value["x"] if isinstance(value, dict) else value
    value = value.astype(bool if name in ("resets", "mask") else np.float64)
    return value.reshape(T, rows, *value.shape[1 + len(program.batch_shape) :])
