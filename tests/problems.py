"""What the tests of every unroll share: a problem, the plain loop, a run with its gradients, the plain scan's answer."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from tbptt.unroll import plain_unroll

D, H, B, T = 3, 4, 2, 7


@functools.cache
def _drawn(cell, batch_shape, steps, seed):
    k_p, k_n, k_c, k_x, k_r, k_m = jax.random.split(jax.random.key(seed), 6)

    def noisy(key, tree, scale):
        flat, back = jax.flatten_util.ravel_pytree(tree)
        return back(flat + scale * jax.random.normal(key, flat.shape))

    params = noisy(k_n, cell.init(k_p), 0.05)
    carry = noisy(k_c, cell.initial_carry(batch_shape), 1.0)
    xs = jax.random.normal(k_x, (steps, *batch_shape, D))
    resets = jax.random.bernoulli(k_r, 0.2, (steps, *batch_shape))
    mask = jax.random.bernoulli(k_m, 0.7, (steps, *batch_shape))
    return params, carry, xs, resets, mask


def problem(cell, batch_shape=(B,), steps=T, seed=0):
    """Random params (biases too), a random carry, inputs, resets and mask: no gradient is zero by accident."""
    params, carry, xs, resets, mask = _drawn(cell, batch_shape, steps, seed)
    return params, carry, xs, {"resets": resets, "mask": mask}


def python_loop(cell, params, carry, xs, resets=None, mask=None, reverse=False):
    """The docstring of unroll, lane by lane: nothing of the engine is used."""
    resets, mask = (None if flag is None else np.asarray(flag) for flag in (resets, mask))
    steps, *batch_shape = xs.shape[:-1]
    carries, lanes = [], []
    for lane in np.ndindex(*batch_shape):
        c, ys = jax.tree.map(lambda a, i=lane: a[i], carry), [None] * steps
        for t in reversed(range(steps)) if reverse else range(steps):
            if mask is not None and not mask[(t, *lane)]:
                ys[t] = jnp.zeros((cell.hidden_dim,))
                continue
            if resets is not None and resets[(t, *lane)]:
                c = cell.initial_carry()
            c, ys[t] = cell(params, c, xs[(t, *lane)])
        carries.append(c)
        lanes.append(jnp.stack(ys))
    carry = jax.tree.map(lambda *a: jnp.stack(a).reshape(*batch_shape, *a[0].shape), *carries)
    return carry, jnp.stack(lanes, 1).reshape(steps, *batch_shape, -1)


def functional(out):
    """A number that every entry of every leaf has its own say in."""
    probes = [jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in jax.tree.leaves(out)]
    return sum(jnp.sum(p * leaf**2 + p * leaf) for p, leaf in zip(probes, jax.tree.leaves(out), strict=True))


def with_gradients(run):
    """A compiled function of params, carry and xs: what `run` gives, and the gradient of its `functional` wrt all three."""

    def loss(params, carry, xs):
        out = run(params, carry, xs)
        return functional(out), out

    def swapped(params, carry, xs):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, carry, xs)
        return out, grads

    return jax.jit(swapped)


def everything(run, params, carry, xs):
    """(outputs, gradients) of one run: see with_gradients."""
    return with_gradients(run)(params, carry, xs)


@functools.cache
def plain_answer(cell, batch_shape=(B,), steps=T, use="resets mask", reverse=False):
    """`everything` of plain_unroll on `problem`, kept: no test patches anything that plain_unroll runs."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    return everything(lambda *a: plain_unroll(cell, *a, **given, reverse=reverse), params, carry, xs)


def assert_same(got, want, tol=1e-11):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)
