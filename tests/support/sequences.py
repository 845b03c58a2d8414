"""Initial params and carries as numpy arrays, which compile no program per shape."""

import functools

import jax
import numpy as np

from tbptt.losses.sequence import init_params

_draw = jax.jit(init_params, static_argnums=(1, 2, 3))
_draw_cell = jax.jit(lambda key, cell: cell.init(key), static_argnums=1)


def _plain(tree):
    return jax.tree.map(np.asarray, tree)


@functools.cache
def sequence_params(cell, readout, embedding=None, shift=0.0, seed=0):
    """Return `init_params(...)`, shifted by `shift` so that biases are not zero."""
    drawn = _plain(_draw(jax.random.key(seed), cell, readout, embedding))
    return jax.tree.map(lambda a: a + a.dtype.type(shift), drawn)


@functools.cache
def cell_params(cell, seed=0):
    return _plain(_draw_cell(jax.random.key(seed), cell))


def zero_carry(cell, batch_shape=(), value=0.0):
    """Return a carry of the cell's shapes filled with `value`."""
    shapes = jax.eval_shape(functools.partial(cell.initial_carry, batch_shape))
    return jax.tree.map(lambda a: np.full(a.shape, value, a.dtype), shapes)


def steps_of(tree, start, end):
    return jax.tree.map(lambda a: a[start:end], tree)
