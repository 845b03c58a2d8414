"""A readout with dropout before it: flax modules, for `tbptt.losses.dropout_loss`."""

import flax.linen as nn
import jax


class DropoutDense(nn.Module):
    """Numbers from the cell's output: `Dense(size)(Dropout(rate)(y))`; rate 0 draws nothing, on the same parameters."""

    size: int
    rate: float = 0.0

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        return nn.Dense(self.size)(nn.Dropout(self.rate, deterministic=False)(y))
