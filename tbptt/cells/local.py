"""Gated cells whose recurrence between units carries no derivative: their exact gradient is the e-prop rule."""

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
    """Steps an LSTM whose gates take the last output for a constant; its values are those of `LSTM`.

        a_t = stop_gradient(h_{t-1}) w_h + x_t w_x + b,    so that dc_t/dc_{t-1} = diag(f_t), and nothing else

    Credit flows through each unit's own memory alone. An exact estimator of this cell (`sparse_rtrl`, at the price of a
    diagonal recurrence; or full_bptt) computes e-prop with symmetric feedback: a biased gradient of the LSTM, by design.

    Args (all static): as `LSTM`; params and carries are its own, so a step may be trained by one and run by the other.

    References: Bellec et al., *A solution to the learning dilemma for recurrent networks of spiking neurons*, Nature
    Communications 11, 2020. Of the same kind: RFLO (Murray, eLife 2019), where the memory is a leak.
    """

    backprop = None  # type: ignore[assignment]  # LSTM's would be the gradient of another step

    def recur(
        self, params: LSTMParams, carry: LSTMCarry, z: Float[Array, "*batch G"]
    ) -> tuple[LSTMCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        return super().recur(params, carry._replace(h=jax.lax.stop_gradient(carry.h)), z)


@dataclasses.dataclass(frozen=True)
class LocalGRU(GRU):
    """Steps a GRU whose gates take the last output for a constant; its values are those of `GRU`.

        r, z, n from stop_gradient(h),    h' = (1 - z) * n + z * h,    so that dh'/dh = diag(z), and nothing else

    See `LocalLSTM`; args as `GRU`.
    """

    backprop = None  # type: ignore[assignment]  # GRU's would be the gradient of another step

    def recur(
        self, params: GRUParams, carry: GRUCarry, z: Float[Array, "*batch G"]
    ) -> tuple[GRUCarry, Float[Array, "*batch H"]]:
        """Takes the step from z = x w_x + b."""
        x_r, x_z, x_n = jnp.split(z, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(product(jax.lax.stop_gradient(carry.h), params.w_h, self.compute_dtype), 3, axis=-1)
        keep = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + sigmoid(x_r + h_r) * (h_n + params.b_n))
        h = (1 - keep) * n + keep * carry.h
        return GRUCarry(h), h
