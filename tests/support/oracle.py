"""A reference for TBPTT(k1, k2): plain Python loops over windows and over the steps of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tbptt import Batch


def part(batch, start, end):
    return jax.tree.map(lambda leaf: leaf[start:end], batch)


def weight_of(batch):
    weights = (
        np.ones(batch.inputs.shape[:-1]) if batch.weights is None else np.asarray(batch.weights)
    )
    return np.sum(weights if batch.mask is None else weights * np.asarray(batch.mask))


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


@functools.cache  # two programs, for windows of any length
def compiled(loss_fn):
    """Return `(step, back)`: loss and carry of one step, and its vjp by params and float carry."""

    def vjp(params, carry, batch, d_loss, d_carry):
        leaves, tree = jax.tree.flatten(carry)
        floats = [leaf if is_float(leaf) else None for leaf in leaves]

        def f(params, floats):
            merged = [a if b is None else b for a, b in zip(leaves, floats, strict=True)]
            loss, new = loss_fn(params, jax.tree.unflatten(tree, merged), batch)
            new = [leaf if is_float(leaf) else None for leaf in jax.tree.leaves(new)]
            return loss, new

        (loss, _), pull = jax.vjp(f, params, floats)
        return pull((d_loss.astype(loss.dtype), d_carry))

    return jax.jit(loss_fn), jax.jit(vjp)


def window_gradient(loss_fn, params, entering, batch: Batch, first: int):
    """Return the gradient of the losses from step `first` on; the entering carry is constant."""
    step, back = compiled(loss_fn)
    steps = [part(batch, t, t + 1) for t in range(len(batch.inputs))]
    carries = [jax.tree.map(np.asarray, entering)]  # carries[t] enters step t
    for one in steps:
        carries.append(jax.device_get(step(params, carries[-1], one)[1]))
    grads = jax.tree.map(lambda a: np.zeros(np.shape(a)), params)
    last = jax.tree.leaves(carries[-1])
    d_carry = [np.zeros_like(leaf) if is_float(leaf) else None for leaf in last]
    for t in reversed(range(len(steps))):
        d_loss = np.asarray(float(t >= first))
        g, d_carry = jax.device_get(back(params, carries[t], steps[t], d_loss, d_carry))
        grads = jax.tree.map(np.add, grads, g)
    return grads


def truncated(loss_fn, params, carry, batch: Batch, k1: int, k2: int, divisor=None):
    """Return the mean loss and its TBPTT(k1, k2) gradient at fixed parameters.

    The divisor of the sums is the total weight unless it is given.
    """
    T, (step, _) = len(batch.inputs), compiled(loss_fn)
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
        window = part(batch, start, end)
        g = window_gradient(loss_fn, params, carries[start], window, first - start)
        grads = jax.tree.map(np.add, grads, g)
    weight = weight_of(batch) if divisor is None else divisor
    return sum(map(float, losses)) / weight, jax.tree.map(lambda g: g / weight, grads)
