"""TBPTT(k1, k2) written out: a plain Python loop over windows with one stop_gradient each. Slow, and hard to get wrong."""

import functools

import jax
import numpy as np

from tbptt import Batch


def part(batch, start, end):
    return jax.tree.map(lambda leaf: leaf[start:end], batch)


def weight_of(batch):
    weights = np.ones(batch.inputs.shape[:-1]) if batch.weights is None else np.asarray(batch.weights)
    return np.sum(weights if batch.mask is None else weights * np.asarray(batch.mask))


@functools.cache  # compiled once for all (k1, k2) whose pieces are as long
def compiled(loss_fn):
    """(one step's loss and carry, a window's gradient)."""

    def window(params, entering, old, new):
        entering = jax.lax.stop_gradient(entering)
        if len(old.inputs):
            _, entering = loss_fn(params, entering, old)
        return loss_fn(params, entering, new)[0]

    return jax.jit(loss_fn), jax.jit(jax.grad(window))


def truncated(loss_fn, params, carry, batch: Batch, k1: int, k2: int):
    """Mean loss and gradient at fixed parameters."""
    T, (step, window_grad) = len(batch.inputs), compiled(loss_fn)
    batch = jax.tree.map(np.asarray, batch)  # cut by numpy: a slice of a jax array is a program
    carries, losses = [carry], []  # carries[t] enters step t
    for t in range(T):
        loss, carry = step(params, carries[t], part(batch, t, t + 1))
        carries.append(carry)
        losses.append(loss)

    grads = jax.tree.map(lambda a: np.zeros(np.shape(a)), params)
    for j in range(T // k1):
        end = (j + 1) * k1
        start = max(0, end - k2)  # its carry is constant
        first = max(start, j * k1)  # the first loss whose gradient counts; k2 < k1: those before it only run forward
        g = window_grad(params, carries[start], part(batch, start, first), part(batch, first, end))
        grads = jax.tree.map(lambda a, b: a + np.asarray(b), grads, g)
    weight = weight_of(batch)
    return sum(map(float, losses)) / weight, jax.tree.map(lambda g: g / weight, grads)
