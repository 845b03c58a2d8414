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


def functional(out):
    """A number that every entry of every leaf has its own say in."""
    probes = [jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in jax.tree.leaves(out)]
    return sum(jnp.sum(p * leaf**2 + p * leaf) for p, leaf in zip(probes, jax.tree.leaves(out), strict=True))


def with_gradients(run):
    """A compiled function of params, carry and xs: what `run` gives, and the gradient of its `functional` wrt all three."""

    def loss(params, carry, xs, given):
        out = run(params, carry, xs, **given)
        return functional(out), out

    def swapped(params, carry, xs, **given):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, carry, xs, given)
        return out, grads

    return jax.jit(swapped)


def everything(run, params, carry, xs):
    """(outputs, gradients) of one run: see with_gradients."""
    return with_gradients(run)(params, carry, xs)


@functools.cache
def _step_and_back(cell):
    return jax.jit(lambda *given: cell(*given)), jax.jit(lambda given, d_out: jax.vjp(cell, *given)[1](d_out))


def looped(cell, params, carry, xs, resets=None, mask=None, reverse=False):
    """`everything` of the docstring of unroll, lane by lane and back by hand: one compiled step and its transpose."""
    step, back = _step_and_back(cell)
    copied, at = functools.partial(jax.tree.map, np.array), lambda tree, lane: jax.tree.map(lambda a: a[lane], tree)
    put = lambda tree, lane, new: jax.tree.map(lambda a, b: a.__setitem__(lane, b), tree, new)  # noqa: E731
    params, carry, xs, initial, resets, mask = copied((params, carry, xs, cell.initial_carry(), resets, mask))
    steps, *batch_shape = xs.shape[:-1]
    ys, ran = np.zeros((steps, *batch_shape, cell.hidden_dim)), []
    for lane in np.ndindex(*batch_shape):
        for t in reversed(range(steps)) if reverse else range(steps):
            where = (t, *lane)
            if mask is not None and not mask[where]:
                continue
            reset = resets is not None and resets[where]
            given = copied((params, initial if reset else at(carry, lane), xs[where]))
            new, ys[where] = step(*given)
            put(carry, lane, new)
            ran.append((lane, where, reset, given))
    d_carry, d_ys = copied(jax.jit(jax.grad(functional))((carry, ys)))
    d_params, d_xs = jax.tree.map(np.zeros_like, (params, xs))
    for lane, where, reset, given in reversed(ran):
        d_p, d_c, d_xs[where] = back(given, (at(d_carry, lane), d_ys[where]))
        d_params = jax.tree.map(np.add, d_params, d_p)
        put(d_carry, lane, jax.tree.map(np.zeros_like, d_c) if reset else d_c)  # no gradient crosses a reset
    return (carry, ys), (d_params, d_carry, d_xs)


@functools.cache
def _plain(cell, reverse):
    return with_gradients(functools.partial(plain_unroll, cell, reverse=reverse))


@functools.cache
def plain_answer(cell, batch_shape=(B,), steps=T, use="resets mask", reverse=False):
    """`everything` of plain_unroll on `problem`, kept: no test patches anything that plain_unroll runs.

    A flag that is not in use resets nothing, or masks nothing: so every use is one and the same program.
    """
    params, carry, xs, given = problem(cell, batch_shape, steps)
    neutral = {"resets": jnp.zeros_like(given["resets"]), "mask": jnp.ones_like(given["mask"])}
    given = neutral | {name: given[name] for name in use.split()}
    return _plain(cell, reverse)(params, carry, xs, **given)


def assert_same(got, want, tol=1e-11):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)
