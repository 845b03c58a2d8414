"""A train state with leaves of every kind, its checkpoints, and its bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tbptt.checkpoints import Checkpoints, finished

CONFIG = {"hidden": 3, "task": {"target": "a", "mean": [0.5, 1.0]}}


@functools.cache
def keys():
    return {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 2),
        "raw": jax.random.PRNGKey(3),
    }


def state_of(shift=0.0):
    """Return a state with leaves of every kind that estimators and optimizers use."""
    arrays = {
        "params": {
            "w": np.arange(6.0).reshape(2, 3) + shift,
            "half": np.full(3, 1 + shift, jnp.bfloat16),
        },
        "step": np.asarray(5, np.int32),
        "flags": np.array([True, False]),
        "nothing": np.zeros((0, 4)),
        "special": np.array([np.nan, np.inf, -0.0, 1e-310]),
        "absent": None,
    }
    return jax.tree.map(jnp.asarray, arrays) | keys()


def bits(tree):
    """Return every leaf as bytes, so that NaN equals itself, and -0 differs from 0."""
    words = jax.tree.map(
        lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a,
        tree,
    )
    return [(a.dtype.name, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(words)]


def saved(folder, *steps, metrics=None, **options):
    with Checkpoints(folder, CONFIG, **options) as checkpoints:
        for index, step in enumerate(steps):
            checkpoints.save(
                step, state_of(step), 10 * step, None if metrics is None else metrics[index]
            )
    return finished(folder)
