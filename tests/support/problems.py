"""Problems for tests of unroll functions, a reference loop, and results of `plain_unroll`."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from tbptt.unroll import plain_unroll

D, H, B, T = 3, 4, 2, 7


def _weights(random, cell, name, shape):
    """Draw one leaf of the parameters as `cell.init` does; None if its name is not known here."""
    glorot = np.sqrt(6 / (shape[0] + cell.hidden_dim)) if shape else 0
    if name in ("w_h", "w_n"):
        gates = [
            np.linalg.qr(random.normal(size=2 * (cell.hidden_dim,)))[0]
            for _ in range(shape[1] // cell.hidden_dim)
        ]
        return getattr(cell, "gain", 1.0) * np.concatenate(gates, axis=1)
    if name == "a" and hasattr(cell, "a_min"):
        return random.uniform(cell.a_min, cell.a_max, shape)
    return {
        "w_x": random.uniform(-glorot, glorot, shape),
        "b": np.zeros(shape),
        "b_n": np.zeros(shape),
    }.get(name)


@functools.cache
def initial_params(cell, seed=1):
    """Return params distributed as those of `cell.init`, without compiling it where possible."""
    if hasattr(cell, "cells"):
        return tuple(initial_params(layer, seed + i) for i, layer in enumerate(cell.cells))
    shapes, random = jax.eval_shape(cell.init, jax.random.key(0)), np.random.default_rng(seed)
    plain = hasattr(shapes, "_asdict") and all(hasattr(leaf, "shape") for leaf in shapes)
    named = shapes._asdict() if plain else {}
    leaves = {name: _weights(random, cell, name, leaf.shape) for name, leaf in named.items()}
    if leaves and all(leaf is not None for leaf in leaves.values()):
        return jax.tree.map(lambda a, b: np.asarray(a, b.dtype), type(shapes)(**leaves), shapes)
    return jax.tree.map(np.asarray, jax.jit(cell.init)(jax.random.key(0)))


@functools.cache
def _drawn(cell, batch_shape, steps, seed):
    """Draw a problem with numpy, because JAX compiles a program per eager operation and shape."""
    random = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: a + 0.05 * random.normal(size=a.shape), initial_params(cell))
    carry = jax.eval_shape(functools.partial(cell.initial_carry, batch_shape))
    carry = jax.tree.map(lambda a: random.normal(size=a.shape), carry)
    xs = random.normal(size=(steps, *batch_shape, D))
    flags = np.random.default_rng([seed, 1])  # a separate seed: the same flags for every cell
    resets = flags.random((steps, *batch_shape)) < 0.2
    mask = flags.random((steps, *batch_shape)) < 0.7
    if steps > 2 and 0 not in batch_shape:  # one masked step that is reset
        resets[(2, *(0 for _ in batch_shape))], mask[(2, *(0 for _ in batch_shape))] = True, False
    return jax.tree.map(jnp.asarray, (params, carry, xs, resets, mask))


def problem(cell, batch_shape=(B,), steps=T, seed=0):
    """Return random params (biases included), carry, inputs, and `{"resets": ..., "mask": ...}`.

    No gradient is zero by coincidence.
    """
    params, carry, xs, resets, mask = _drawn(cell, batch_shape, steps, seed)
    return params, carry, xs, {"resets": resets, "mask": mask}


def _probe(leaf):
    """Return a constant for every entry, by numpy: by jax it would be four operations to trace."""
    dtype = leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else float
    return np.cos(1.0 + np.arange(leaf.size)).reshape(leaf.shape).astype(dtype)


def scalar_loss(out):
    """Return a scalar that depends on every entry of every leaf."""
    return sum(jnp.sum(_probe(leaf) * (leaf * leaf + leaf)) for leaf in jax.tree.leaves(out))


def with_gradients(run):
    """Return a compiled function of params, carry and xs: `(out, gradients)`.

    `out` is the result of `run`; the gradients are those of `scalar_loss(out)` with respect to the
    three arguments.
    """

    def loss(params, carry, xs, given):
        out = run(params, carry, xs, **given)
        return scalar_loss(out), out

    def swapped(params, carry, xs, **given):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            params, carry, xs, given
        )
        return out, grads

    return jax.jit(swapped)


def values_and_gradients(run, params, carry, xs):
    """Return `(out, gradients)` of one call, see `with_gradients`."""
    return with_gradients(run)(params, carry, xs)


_slopes_of_leaves = jax.jit(jax.grad(scalar_loss))


def _slopes(out):
    """Return the gradient of `scalar_loss`; cells with leaves of equal shapes share a program."""
    leaves, tree = jax.tree.flatten(out)
    return jax.tree.unflatten(tree, _slopes_of_leaves(leaves))


@functools.cache
def _step_and_back(cell):
    return jax.jit(lambda *given: cell(*given)), jax.jit(
        lambda given, d_out: jax.vjp(cell, *given)[1](d_out)
    )


@functools.cache
def _initial_carry(cell):
    return jax.jit(cell.initial_carry)()


def reference_loop(cell, params, carry, xs, resets=None, mask=None, reverse=False):
    """Return the values and gradients of the plain loop in the docstring of `unroll`.

    It loops over batch rows and steps, forward and backward, with a compiled step and its VJP.
    """
    step, back = _step_and_back(cell)
    copied = functools.partial(jax.tree.map, np.array)

    def at(tree, row):
        return jax.tree.map(lambda a: a[row], tree)

    def put(tree, row, new):
        jax.tree.map(lambda a, b: a.__setitem__(row, b), tree, new)

    params, carry, xs, initial, resets, mask = copied(
        (params, carry, xs, _initial_carry(cell), resets, mask)
    )
    steps, *batch_shape = xs.shape[:-1]
    ys, ran = np.zeros((steps, *batch_shape, cell.hidden_dim)), []
    for row in np.ndindex(*batch_shape):
        for t in reversed(range(steps)) if reverse else range(steps):
            where = (t, *row)
            if mask is not None and not mask[where]:
                continue
            reset = resets is not None and resets[where]
            given = copied((params, initial if reset else at(carry, row), xs[where]))
            new, ys[where] = step(*given)
            put(carry, row, new)
            ran.append((row, where, reset, given))
    d_carry, d_ys = copied(_slopes((carry, ys)))
    d_params, d_xs = jax.tree.map(np.zeros_like, (params, xs))
    for row, where, reset, given in reversed(ran):
        d_p, d_c, d_xs[where] = back(given, (at(d_carry, row), d_ys[where]))
        d_params = jax.tree.map(np.add, d_params, d_p)
        # No gradient crosses a reset.
        put(d_carry, row, jax.tree.map(np.zeros_like, d_c) if reset else d_c)
    return (carry, ys), (d_params, d_carry, d_xs)


@functools.cache
def _plain(cell, reverse):
    return with_gradients(functools.partial(plain_unroll, cell, reverse=reverse))


@functools.cache
def plain_reference(cell, batch_shape=(B,), steps=T, use="resets mask", reverse=False):
    """Return the values and gradients of `plain_unroll` on `problem`, cached.

    Unused flags are passed as arrays without effect, so that all uses share one program. The cache
    is valid because no test patches code that `plain_unroll` runs.
    """
    params, carry, xs, given = problem(cell, batch_shape, steps)
    flags = np.shape(given["mask"])
    neutral = {
        "resets": jnp.asarray(np.zeros(flags, bool)),
        "mask": jnp.asarray(np.ones(flags, bool)),
    }
    given = neutral | {name: given[name] for name in use.split()}
    return _plain(cell, reverse)(params, carry, xs, **given)


def assert_same(got, want, tol=1e-11):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol), got, want)
