"""Pascanu's regulariser: a term of the loss that asks every step to hand the error signal on at its length."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tbptt.cells.recorded import Recorded
from tbptt.losses.sequence import SequenceParams, StepLoss, sequence_loss
from tbptt.numerics import expand, measure, zero_where_masked
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
    """Makes `sequence_loss` with Pascanu's regulariser added.

        loss_sum = E + strength * Omega,    E = sequence_loss(cell, readout, loss)
        Omega = sum_t (|| s_{t+1} J_t || / || s_{t+1} || - 1)^2,    J_t = dh_{t+1}/dh_t,    s_{t+1} = dE/dh_{t+1}

    h is the whole carry, one vector a lane (h and c of an LSTM, all layers of a `Stack`); the sum runs over every step and
    lane. As in the paper only the direct part is differentiated: the carries h_t, the cell's inputs and the error signals
    s are constants, so Omega's gradient reaches the cell's parameters alone and adds no path through time. Left out
    (a term of 0) are steps without an error signal, s = 0, masked steps, and steps that a reset cut from their past.

    s counts the losses of THIS call, at step t + 1 and later: a window's error signals, as the gradient that TBPTT
    uses. Where s does not matter (J a multiple of an orthogonal matrix) Omega is additive over time like any loss; else
    the sum over pieces differs from the whole by the losses that a piece does not see. So feed it to `full_bptt` and to
    windows with k1 = k2. Where a cell's output is not itself a leaf of its carry, s_{t+1} lacks the loss of step t + 1.
    Costs one more forward and two more backward passes.

    Args (all static):
      cell, readout, loss, embedding, remat: as in `sequence_loss`; every leaf of the carry must be floating.
      strength: multiplies Omega, which like E is a sum that the estimator divides by the total weight.

    Raises:
      TypeError, at the call: the carry has a leaf that is not floating.

    References: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013,
    arXiv:1211.5063, section 3.3.
    """
    plain = sequence_loss(cell, readout, loss, embedding=embedding, remat=remat, unroll=unroll)
    of_outputs = sequence_loss(_Outputs(cell.hidden_dim), readout, loss)

    def loss_fn(params: SequenceParams, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        loss_sum, leaving = plain(params, carry, batch)
        fixed, start = jax.lax.stop_gradient((params, carry))
        xs: Any = batch.inputs if embedding is None else embedding.apply(fixed.embedding, batch.inputs)
        xs = zero_where_masked(xs, batch.mask)
        _, (carries, ys) = unroll(Recorded(cell), fixed.cell, start, xs, resets=batch.resets, mask=batch.mask)

        def from_outputs(ys: Array) -> Array:
            step = batch._replace(inputs=ys, resets=None)
            return of_outputs(SequenceParams((), fixed.readout), (), step)[0]

        exists = jnp.ones(xs.shape[:-1], bool) if batch.mask is None else jnp.asarray(batch.mask)
        joined = exists if batch.resets is None else exists & ~jnp.asarray(batch.resets)
        signals = error_signals(cell, fixed.cell, carries, xs, jax.grad(from_outputs)(ys), exists, joined)
        terms = omega_terms(cell, params.cell, carries, xs, signals)
        return loss_sum + strength * jnp.sum(jnp.where(joined, terms, 0)), leaving

    return loss_fn


def omega_terms(
    cell: Cell, params: Params, carries: Carry, xs: Float[Array, "T *batch D"], signals: Carry
) -> Float[Array, "T *batch"]:
    """Computes (|| s_{t+1} J_t || / || s_{t+1} || - 1)^2 of every step and lane; 0 where s is 0.

    Args:
      cell: static.
      params: the cell's, the only argument through which a gradient flows.
      carries: h_t, what entered each step; signals: s_{t+1}, by what left it. Leaves `[T, *batch, ...]`.
    """
    carries, xs, signals = jax.lax.stop_gradient((carries, xs, signals))
    lane_dims = xs.ndim - 1
    sizes = measure(signals, lane_dims)
    scaled = jax.tree.map(lambda s: s * expand(sizes.down, s), signals)  # lengths of about 1: no square underflows

    def arrives(carry: Carry, x: Array, signal: Carry) -> Carry:
        return jax.vjp(lambda c: cell(params, c, x)[0], carry)[1](signal)[0]

    arriving = measure(jax.vmap(arrives)(carries, xs, scaled), lane_dims)
    has_signal = sizes.size != 0
    return jnp.where(has_signal, (arriving.norm / jnp.where(has_signal, sizes.size, 1) - 1) ** 2, 0)


def error_signals(
    cell: Cell,
    params: Params,
    carries: Carry,
    xs: Float[Array, "T *batch D"],
    by_outputs: Any,
    exists: Bool[Array, "T *batch"],
    joined: Bool[Array, "T *batch"],
) -> Carry:
    """Computes s_{t+1} = dE/dh_{t+1} for every step by one reverse sweep; leaves `[T, *batch, ...]`.

        s_{t+1} = e_{t+1} + dE/dy_{t+1},    e_t = e_{t+1} dh_{t+1}/dh_t + dE/dy_{t+1} dy_{t+1}/dh_t,    e_T = 0

    (dE/dy is added to the leaf of the carry that y is.) e_t = e_{t+1} over a step that does not exist, 0 before a reset.

    Args:
      by_outputs: dE/dy of every step, `[T, *batch, H]`.
      exists, joined: `[T, *batch]`, False where a step is masked; where it is masked or starts from a reset.

    Raises:
      TypeError: a leaf of the carry is not floating.
    """
    check_floating(carries)

    def body(e: Carry, step: Any) -> tuple[Carry, Carry]:
        carry, x, by_y, here, linked = step
        places: list[int | None] = []

        def run(carry: Carry) -> tuple[Carry, Any]:
            new, y = cell(params, carry, x)
            leaves = jax.tree.leaves(new)
            places.append(next((i for i, leaf in enumerate(leaves) if leaf is y), None))
            return new, y

        arriving = jax.vjp(run, carry)[1]((e, by_y))[0]
        leaves, shape = jax.tree.flatten(e)
        place = places[0]
        if place is not None:
            leaves[place] = leaves[place] + by_y
        cut = jax.tree.map(lambda a: jnp.where(expand(linked, a), a, 0), arriving)
        return jax.tree.map(lambda a, b: jnp.where(expand(here, a), a, b), cut, e), jax.tree.unflatten(shape, leaves)

    end = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), carries)
    return jax.lax.scan(body, end, (carries, xs, by_outputs, exists, joined), reverse=True)[1]


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """A cell without memory, y = x: with it a loss is a function of the outputs."""

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
