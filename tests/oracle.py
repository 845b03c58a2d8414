"""TBPTT(k1, k2) written out: a plain Python loop over windows with one stop_gradient each. Slow, and hard to get wrong."""

import jax
import jax.numpy as jnp

from tbptt import Batch


def part(batch, start, end):
    return jax.tree.map(lambda leaf: leaf[start:end], batch)


def weight_of(batch):
    weights = jnp.ones(batch.inputs.shape[:-1]) if batch.weights is None else batch.weights
    return jnp.sum(weights if batch.mask is None else weights * batch.mask)


def truncated(loss_fn, params, carry, batch: Batch, k1: int, k2: int):
    """Mean loss and gradient at fixed parameters."""
    T = len(batch.inputs)
    loss, grads = 0.0, jax.tree.map(jnp.zeros_like, params)
    for j in range(T // k1):
        new, end = j * k1, (j + 1) * k1
        start = max(0, end - k2)

        def window(p, new=new, end=end, start=start):
            _, entering = loss_fn(params, carry, part(batch, 0, start)) if start else (0.0, carry)
            entering = jax.lax.stop_gradient(entering)
            if start < new:
                _, entering = loss_fn(p, entering, part(batch, start, new))
            return loss_fn(p, entering, part(batch, max(start, new), end))[0]

        ahead = 0.0
        if end - k2 > new:  # k2 < k1: these steps only run forward
            _, entering = loss_fn(params, carry, part(batch, 0, new)) if new else (0.0, carry)
            ahead = loss_fn(params, entering, part(batch, new, end - k2))[0]
        value, g = jax.value_and_grad(window)(params)
        loss, grads = loss + ahead + value, jax.tree.map(jnp.add, grads, g)
    weight = weight_of(batch)
    return loss / weight, jax.tree.map(lambda g: g / weight, grads)
