"""Readout with dropout, for `tbptt.losses.dropout_loss`."""

import flax.linen as nn
import jax


class DropoutDense(nn.Module):
    """Compute `Dense(size)(Dropout(rate)(y))`.

    Its parameters do not depend on the rate, and rate 0 needs no key.
    """

    size: int
    rate: float = 0.0

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        return nn.Dense(self.size)(nn.Dropout(self.rate, deterministic=False)(y))
