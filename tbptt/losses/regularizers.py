"""The regularizer of Pascanu et al. (2013), which preserves the norm of error signals."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tbptt.cells.wrappers import Recorded
from tbptt.losses.sequence import SequenceParams, StepLoss, sequence_loss
from tbptt.numerics import expand, measure, select, zero_where_masked
from tbptt.types import Batch, Carry, Cell, LossFn, Params, UnrollFn
from tbptt.unroll import unroll as default_unroll
from tbptt.unroll.remat import MemoryBudget, Remat
from tbptt.unroll.validate import check_floating


def norm_preserving_loss(
    cell: Cell,
    readout: nn.Module,
    loss: StepLoss,
    strength: float,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
    unroll: UnrollFn = default_unroll,
) -> LossFn:
    """Return a `sequence_loss` plus the norm-preserving regularizer Omega.

        loss_sum = E + strength * Omega,    E = sequence_loss(cell, readout, loss)
        Omega = sum_t (|| s_{t+1} J_t || / || s_{t+1} || - 1)^2
        J_t = dh_{t+1}/dh_t,    s_{t+1} = dE/dh_{t+1}

    h is the whole carry, one vector per batch row (h and c of an LSTM, all layers of a `Stack`).
    The sum is over all steps and batch rows. As in the paper, only the direct part is
    differentiated: the carries h_t, the inputs of the cell and the error signals s are constants.
    So Omega has a gradient by the parameters of the cell only, and adds no path through time. Terms
    are 0 at steps without an error signal (s = 0), at masked steps, and at steps that start from a
    reset.

    s includes the losses of THIS call only, from step t + 1 on, as does the gradient of a window of
    TBPTT. If s does not matter (J is a multiple of an orthogonal matrix), Omega is additive over
    time. Otherwise the sum over segments differs from that of the whole by the losses outside of
    each segment. So use it with `full_bptt`, and with windows of k1 = k2. If the output of a cell
    is not a leaf of its carry, s_{t+1} lacks the loss of step t + 1. The regularizer costs one more
    forward and two more backward passes.

    Args (all static):
      cell, readout, loss, embedding, remat, unroll: as in `sequence_loss`; every leaf of the carry
        must be floating.
      strength: multiplies Omega, which like E is a sum that the estimator divides by the total
        weight.

    Returns:
      A `LossFn` of `SequenceParams`, see `init_params`.

    Raises:
      TypeError: at the call: the carry has a leaf that is not floating.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural
    networks*, ICML 2013, arXiv:1211.5063, section 3.3.
    """
    plain = sequence_loss(cell, readout, loss, embedding=embedding, remat=remat, unroll=unroll)
    of_outputs = sequence_loss(_Identity(cell.hidden_dim), readout, loss)

    def loss_fn(
        params: SequenceParams, carry: Carry, batch: Batch
    ) -> tuple[Float[Array, ""], Carry]:
        loss_sum, leaving = plain(params, carry, batch)
        fixed, start = jax.lax.stop_gradient((params, carry))
        xs: Any = batch.inputs
        if embedding is not None:
            xs = embedding.apply(fixed.embedding, xs)
        xs = zero_where_masked(xs, batch.mask)
        _, (carries, ys) = unroll(
            Recorded(cell), fixed.cell, start, xs, resets=batch.resets, mask=batch.mask
        )

        def from_outputs(ys: Array) -> Array:
            outputs = batch._replace(inputs=ys, resets=None)
            return of_outputs(SequenceParams((), fixed.readout), (), outputs)[0]

        d_ys = jax.grad(from_outputs)(ys)
        exists = jnp.ones(xs.shape[:-1], bool) if batch.mask is None else jnp.asarray(batch.mask)
        connected = exists if batch.resets is None else exists & ~jnp.asarray(batch.resets)
        signals = error_signals(cell, fixed.cell, carries, xs, d_ys, exists, connected)
        terms = regularizer_terms(cell, params.cell, carries, xs, signals)
        return loss_sum + strength * jnp.sum(jnp.where(connected, terms, 0)), leaving

    return loss_fn


def regularizer_terms(
    cell: Cell, params: Params, carries: Carry, xs: Float[Array, "T *batch D"], signals: Carry
) -> Float[Array, "T *batch"]:
    """Compute (|| s_{t+1} J_t || / || s_{t+1} || - 1)^2 of every step and batch row.

    The term is 0 where s is 0.

    Args:
      cell: static.
      params: the params of the cell, the only argument with a gradient.
      carries: h_t, the carry that enters each step, leaves `[T, *batch, ...]`.
      xs: the inputs of the cell.
      signals: s_{t+1}, by the carry that leaves each step, leaves `[T, *batch, ...]`.
    """
    carries, xs, signals = jax.lax.stop_gradient((carries, xs, signals))
    batch_dims = xs.ndim - 1
    leaving = measure(signals, batch_dims)
    # Scaled to norms of about 1, so that no square underflows.
    scaled = jax.tree.map(lambda s: s * expand(leaving.down, s), signals)

    def pull_back(carry: Carry, x: Array, signal: Carry) -> Carry:
        return jax.vjp(lambda c: cell(params, c, x)[0], carry)[1](signal)[0]

    entering = measure(jax.vmap(pull_back)(carries, xs, scaled), batch_dims)
    has_signal = leaving.size != 0
    ratio = entering.norm / jnp.where(has_signal, leaving.size, 1)
    return jnp.where(has_signal, (ratio - 1) ** 2, 0)


def error_signals(
    cell: Cell,
    params: Params,
    carries: Carry,
    xs: Float[Array, "T *batch D"],
    d_ys: Any,
    exists: Bool[Array, "T *batch"],
    connected: Bool[Array, "T *batch"],
) -> Carry:
    """Compute s_{t+1} = dE/dh_{t+1} for every step by one reverse sweep.

        s_{t+1} = e_{t+1} + dE/dy_{t+1}
        e_t = e_{t+1} dh_{t+1}/dh_t + dE/dy_{t+1} dy_{t+1}/dh_t,    e_T = 0

    dE/dy is added to the leaf of the carry that equals y, if there is one. At a masked step e_t =
    e_{t+1}; before a reset e_t = 0.

    Args:
      cell: static.
      params: the params of the cell.
      carries: the carry that enters each step, leaves `[T, *batch, ...]`.
      xs: the inputs of the cell.
      d_ys: dE/dy of every step, `[T, *batch, H]`.
      exists: `[T, *batch]`, False where a step is masked.
      connected: `[T, *batch]`, False where a step is masked or starts from a reset.

    Returns:
      The error signals, a tree like the carry with leaves `[T, *batch, ...]`.

    Raises:
      TypeError: a leaf of the carry is not floating.
    """
    check_floating(carries)

    def body(e: Carry, step: Any) -> tuple[Carry, Carry]:
        carry, x, d_y, exists, connected = step
        indices: list[int | None] = []  # of the leaf of the carry that is y

        def run(carry: Carry) -> tuple[Carry, Any]:
            new, y = cell(params, carry, x)
            leaves = jax.tree.leaves(new)
            indices.append(next((i for i, leaf in enumerate(leaves) if leaf is y), None))
            return new, y

        d_carry = jax.vjp(run, carry)[1]((e, d_y))[0]
        leaves, structure = jax.tree.flatten(e)
        if indices[0] is not None:
            leaves[indices[0]] = leaves[indices[0]] + d_y
        d_carry = zero_where_masked(d_carry, connected)
        return select(exists, d_carry, e), jax.tree.unflatten(structure, leaves)

    end = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), carries)
    return jax.lax.scan(body, end, (carries, xs, d_ys, exists, connected), reverse=True)[1]


@dataclasses.dataclass(frozen=True)
class _Identity:
    """A cell without memory, y = x, for a loss as a function of the outputs."""

    hidden_dim: int

    @property
    def input_dim(self) -> int:
        return self.hidden_dim

    def init(self, key: Any) -> tuple[()]:
        return ()

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> tuple[()]:
        return ()

    def __call__(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        return carry, x
