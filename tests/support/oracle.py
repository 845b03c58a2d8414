"""A reference for TBPTT(k1, k2): a plain Python loop over windows, with one stop_gradient each."""

import functools

import jax
import numpy as np

from tbptt import Batch


def part(batch, start, end):
    return jax.tree.map(lambda leaf: leaf[start:end], batch)


def weight_of(batch):
    weights = (
        np.ones(batch.inputs.shape[:-1]) if batch.weights is None else np.asarray(batch.weights)
    )
    return np.sum(weights if batch.mask is None else weights * np.asarray(batch.mask))


@functools.cache  # one program per window length
def compiled(loss_fn):
    """Return `(step, window_grad)`: loss and carry of one step, and the gradient of a window."""

    def window(params, entering, old, new):
        entering = jax.lax.stop_gradient(entering)
        if len(old.inputs):
            _, entering = loss_fn(params, entering, old)
        return loss_fn(params, entering, new)[0]

    return jax.jit(loss_fn), jax.jit(jax.grad(window))


def truncated(loss_fn, params, carry, batch: Batch, k1: int, k2: int, divisor=None):
    """Return the mean loss and its TBPTT(k1, k2) gradient at fixed parameters.

    The divisor of the sums is the total weight unless it is given.
    """
    T, (step, window_grad) = len(batch.inputs), compiled(loss_fn)
    batch = jax.tree.map(np.asarray, batch)  # numpy slices compile no program
    carries, losses = [carry], []  # carries[t] enters step t
    for t in range(T):
        loss, carry = step(params, carries[t], part(batch, t, t + 1))
        carries.append(carry)
        losses.append(loss)

    grads = jax.tree.map(lambda a: np.zeros(np.shape(a)), params)
    for j in range(T // k1):
        end = (j + 1) * k1
        start = max(0, end - k2)  # its carry is constant
        # The first loss whose gradient counts; k2 < k1: the steps before it run forward only.
        first = max(start, j * k1)
        g = window_grad(params, carries[start], part(batch, start, first), part(batch, first, end))
        grads = jax.tree.map(lambda a, b: a + np.asarray(b), grads, g)
    weight = weight_of(batch) if divisor is None else divisor
    return sum(map(float, losses)) / weight, jax.tree.map(lambda g: g / weight, grads)
