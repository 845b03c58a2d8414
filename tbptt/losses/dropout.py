"""Dropout, and whatever else of a flax module draws at random, under any estimator: every step brings its own seed."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from tbptt.losses.sequence import SequenceParams, StepLoss, sequence_loss
from tbptt.types import Batch, Carry, Cell, LossFn, PRNGKey, UnrollFn
from tbptt.unroll import unroll as default_unroll
from tbptt.unroll.remat import MemoryBudget, Remat
from tbptt.windows import step_shape


class SeededTargets(NamedTuple):
    """targets: whatever the loss wants; seeds: `[T, *batch]` what a step's random numbers are made from."""

    targets: Any
    seeds: UInt32[Array, "T *batch"]


def with_seeds(key: PRNGKey, batch: Batch) -> Batch:
    """Gives every step of a batch a seed of its own, beside its targets. The key is consumed.

    Draw anew for every pass over the data, or a step meets the same dropout mask in each.
    """
    seeds = jax.random.bits(key, step_shape(batch), jnp.uint32)
    return batch._replace(targets=SeededTargets(batch.targets, seeds))


def dropout_loss(
    cell: Cell,
    readout: nn.Module,
    loss: StepLoss,
    *,
    embedding: nn.Module | None = None,
    remat: Remat | MemoryBudget | None = None,
    unroll: UnrollFn = default_unroll,
) -> LossFn:
    """Makes `sequence_loss` with modules that draw at random, such as `flax.linen.Dropout`, before and after the cell.

        for t in range(T):                                             # elementwise over *batch
            key = seeds[t]
            x = embedding(inputs[t], rngs={"dropout": fold_in(key, 0)})
            carry, y = cell(params.cell, carry, x)
            outputs[t] = readout(y, rngs={"dropout": fold_in(key, 1)})

    A mask is a pure function of the seed that its step brings along in the batch, not of the order of computation. So the
    loss stays additive over time, and an estimator may cut, group, replay, shard or compute it again as it likes: a step
    that an overlapping window replays meets the mask that it met before, and every identity between estimators holds with
    dropout as without. Between the layers of a `Stack` nothing is drawn: what is recurrent stays deterministic.

    Batches must come from `with_seeds`. To predict, use modules that do not draw (`nn.Dropout(deterministic=True)`, or
    rate 0) with `predict`, on the same params.

    Args (all static): as for `sequence_loss`; readout and embedding are applied step by step, to `[H]` and to one symbol
      or `[D]`, and may call `self.make_rng("dropout")`, as `nn.Dropout` does.

    Returns:
      A `LossFn` of `SequenceParams`, see `init_params`.

    Raises:
      TypeError, at the call: the batch has no seeds.

    References: dropout outside the recurrence only: Zaremba, Sutskever and Vinyals, *Recurrent neural network
    regularization*, 2014, arXiv:1409.2329.
    """
    name = getattr(loss, "__qualname__", repr(loss))

    def loss_fn(params: SequenceParams, carry: Carry, batch: Batch) -> tuple[Float[Array, ""], Carry]:
        if not isinstance(batch.targets, SeededTargets):
            raise TypeError(
                f"dropout_loss needs a seed for every step: call with_seeds(key, batch) before; got targets of type "
                f"{type(batch.targets).__name__}"
            )
        inputs = batch.inputs
        if embedding is not None:
            inputs = _step_by_step(embedding, params.embedding, 0, inputs, batch.targets.seeds)

        @functools.wraps(loss)
        def after_the_cell(ys: Any, targets: SeededTargets) -> Array:
            outputs = _step_by_step(readout, params.readout, 1, ys, targets.seeds)
            return loss(outputs, targets.targets)

        after_the_cell.__qualname__ = name  # for the error that says what it returned
        plain = sequence_loss(cell, _Same(), after_the_cell, remat=remat, unroll=unroll)
        return plain(SequenceParams(params.cell, {}), carry, batch._replace(inputs=inputs))

    return loss_fn


class _Same(nn.Module):
    """Hands the cell's output on."""

    @nn.compact
    def __call__(self, ys: Any) -> Any:
        return ys


def _step_by_step(module: nn.Module, variables: Any, place: int, xs: Array, seeds: UInt32[Array, "T *batch"]) -> Any:
    """Applies a module to every step, each with the random numbers of its seed."""

    def one(x: Array, seed: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), place)
        return module.apply(variables, x, rngs={"dropout": key})

    apply = one
    for _ in seeds.shape:
        apply = jax.vmap(apply)
    return apply(xs, seeds)
