"""Gated cells without derivatives between units: their exact gradient is the e-prop rule."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from tbptt.cells.gru import GRU, GRUCarry, GRUParams
from tbptt.cells.lstm import LSTM, LSTMCarry, LSTMParams
from tbptt.cells.matmul import product


@dataclasses.dataclass(frozen=True)
class LocalLSTM(LSTM):
    """An LSTM whose gates treat the last output as a constant; its values are those of `LSTM`.

        a_t = stop_gradient(h_{t-1}) w_h + x_t w_x + b,    so that dc_t/dc_{t-1} = diag(f_t)

    The gradient flows through each unit's own memory only. An exact estimator of this cell
    (`sparse_rtrl`, at the cost of a diagonal recurrence, or `full_bptt`) computes e-prop with
    symmetric feedback, which is a biased gradient of the LSTM.

    Args (all static): those of `LSTM`. Params and carries are those of `LSTM` too, so parameters
    trained with one cell can be used with the other.

    References: Bellec et al., *A solution to the learning dilemma for recurrent networks of spiking
    neurons*, Nature Communications 11, 2020. RFLO (Murray, eLife 2019) is the same rule with a
    leaky memory.
    """

    backprop = None  # type: ignore[assignment]  # that of LSTM differentiates another step

    def recur(
        self, params: LSTMParams, carry: LSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        return super().recur(params, carry._replace(h=jax.lax.stop_gradient(carry.h)), z)


@dataclasses.dataclass(frozen=True)
class LocalGRU(GRU):
    """A GRU whose gates treat the last output as a constant; its values are those of `GRU`.

        r, z, n from stop_gradient(h),    h' = (1 - z) * n + z * h,    so that dh'/dh = diag(z)

    See `LocalLSTM`. The arguments are those of `GRU`.
    """

    backprop = None  # type: ignore[assignment]  # that of GRU differentiates another step

    def recur(
        self, params: GRUParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Take the recurrent step from `z = x w_x + b`."""
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(
            product(jax.lax.stop_gradient(carry.h), params.w_h, self.compute_dtype), 3, axis=-1
        )
        keep = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * (h_n + params.b_n))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h
