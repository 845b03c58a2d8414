"""A sequence loss with dropout that is exact under every estimator, by one random seed per step."""

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
    """Targets of a batch with one random seed per step.

    targets: `[T, *batch, ...]`, in the form that the loss takes
    seeds:   `[T, *batch]`, the seeds of the random numbers of each step
    """

    targets: Any
    seeds: UInt32[Array, "T *batch"]


def with_seeds(key: PRNGKey, batch: Batch) -> Batch:
    """Return the batch with `SeededTargets`: one random seed per step. The key is consumed.

    Draw new seeds for every pass over the data; otherwise each step has the same dropout mask in
    all passes.
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
    """Return a `sequence_loss` with random modules, such as `nn.Dropout`, around the cell.

        for t in range(T):                                             # elementwise over *batch
            key = seeds[t]
            x = embedding(inputs[t], rngs={"dropout": fold_in(key, 0)})
            carry, y = cell(params.cell, carry, x)
            outputs[t] = readout(y, rngs={"dropout": fold_in(key, 1)})

    The mask of a step is a pure function of its seed, which is part of the batch. It does not
    depend on the order of computation. So the loss remains additive over time, and estimators may
    truncate, group, replay, shard or rematerialise it: a replayed step has the same mask again.
    Every identity between estimators holds as without dropout. There is no dropout between the
    layers of a `Stack`; the recurrence is deterministic.

    Batches must come from `with_seeds`. To predict, use `predict` with modules without randomness
    (`nn.Dropout(deterministic=True)`, or rate 0), on the same params.

    Args (all static): as for `sequence_loss`. The readout and the embedding are applied to single
      steps, to `[H]` and to one symbol or `[D]`, and may call `self.make_rng("dropout")`, as
      `nn.Dropout` does.

    Returns:
      A `LossFn` of `SequenceParams`, see `init_params`.

    Raises:
      TypeError: at the call: the batch has no seeds.

    References: Zaremba, Sutskever and Vinyals, *Recurrent neural network regularization*, 2014,
    arXiv:1409.2329 (dropout outside of the recurrence).
    """

    def loss_fn(
        params: SequenceParams, carry: Carry, batch: Batch
    ) -> tuple[Float[Array, ""], Carry]:
        if not isinstance(batch.targets, SeededTargets):
            raise TypeError(
                "dropout_loss needs a seed for every step: call with_seeds(key, batch) first; got "
                f"targets of type {type(batch.targets).__name__}"
            )
        inputs = batch.inputs
        if embedding is not None:
            inputs = _apply_per_step(embedding, params.embedding, 0, inputs, batch.targets.seeds)

        @functools.wraps(loss)  # error messages name the user's loss
        def readout_and_loss(ys: Any, targets: SeededTargets) -> Array:
            outputs = _apply_per_step(readout, params.readout, 1, ys, targets.seeds)
            return loss(outputs, targets.targets)

        plain = sequence_loss(cell, _Identity(), readout_and_loss, remat=remat, unroll=unroll)
        return plain(SequenceParams(params.cell, {}), carry, batch._replace(inputs=inputs))

    return loss_fn


class _Identity(nn.Module):
    """A readout that returns the output of the cell."""

    @nn.compact
    def __call__(self, ys: Any) -> Any:
        return ys


def _apply_per_step(
    module: nn.Module, variables: Any, number: int, xs: Array, seeds: UInt32[Array, "T *batch"]
) -> Any:
    """Apply a module to single steps, with a key from the seed of each step and `number`."""

    def one(x: Array, seed: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return module.apply(variables, x, rngs={"dropout": key})

    apply = one
    for _ in seeds.shape:
        apply = jax.vmap(apply)
    return apply(xs, seeds)
