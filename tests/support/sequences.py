"""Initial params and carries as numpy arrays, which compile no program per shape.

Params have the distributions of `init_params` and `cell.init`. Tracing and lowering the random
numbers and the QR decomposition of `jax.random` takes longer than most tests. Cells that are not
known here are drawn by their own `init`.
"""

import functools

import jax
import numpy as np

from tbptt.losses.sequence import SequenceParams
from tests.support.problems import initial_params

_SCALES = {
    "bias": lambda shape: 0.0,
    "kernel": lambda shape: 1 / np.sqrt(shape[0]),
    "embedding": lambda shape: 1 / np.sqrt(shape[-1]),
}


def _variables(module, x, random):
    """Draw the variables of a flax readout or embedding."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(
            _SCALES[path[-1].key](leaf.shape) * random.normal(size=leaf.shape), leaf.dtype
        ),
        shapes,
    )


def cell_params(cell, seed=0):
    return initial_params(cell, seed)


@functools.cache
def sequence_params(cell, readout, embedding=None, shift=0.0, seed=0):
    """Return params as of `init_params`, shifted by `shift` so that biases are not zero."""
    random, drawn = np.random.default_rng([seed, 1]), initial_params(cell, seed)
    y = jax.ShapeDtypeStruct((cell.hidden_dim,), jax.tree.leaves(drawn)[0].dtype)
    embedded = () if embedding is None else _variables(embedding, np.zeros((), np.int32), random)
    params = SequenceParams(drawn, _variables(readout, y, random), embedded)
    return jax.tree.map(lambda a: a + a.dtype.type(shift), params)


def zero_carry(cell, batch_shape=(), value=0.0):
    """Return a carry of the cell's shapes filled with `value`."""
    shapes = jax.eval_shape(functools.partial(cell.initial_carry, batch_shape))
    return jax.tree.map(lambda a: np.full(a.shape, value, a.dtype), shapes)


def steps_of(tree, start, end):
    return jax.tree.map(lambda a: a[start:end], tree)
