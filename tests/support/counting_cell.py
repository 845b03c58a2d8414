"""A cell with an integer counter in its carry, and a loss, for tests of diagnostics."""

import jax.numpy as jnp


class CountingElman:
    """A cell of a user with an integer in its carry."""

    input_dim, hidden_dim = 2, 3

    def initial_carry(self, batch_shape=()):
        return {"h": jnp.zeros((*batch_shape, 3)), "steps": jnp.zeros(batch_shape, jnp.int32)}

    def init(self, key):
        return None

    def __call__(self, params, carry, x):
        h = jnp.tanh(carry["h"] + jnp.sum(x))
        return {"h": h, "steps": carry["steps"] + 1}, h


def total(y, s):
    del s
    return jnp.sum(y)
