"""Diagnostics inside a jitted train step: cheap probes whose results come back in the estimator's info."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tbptt.diagnostics.non_finite import first_bad_leaf
from tbptt.diagnostics.saturation import GateSaturation, saturation
from tbptt.estimators.truncated import Past
from tbptt.numerics import global_norm
from tbptt.types import Batch, Carry, Cell, Estimator, Gradient, Memory, Params, PRNGKey

# (params, memory before the call, batch, gradient) -> a pytree of scalars: a pure function, traced into the train step.
Probe = Callable[[Params, Memory, Batch, Gradient], Any]


class MonitoredInfo(NamedTuple):
    """inner: the wrapped estimator's info; probes: what each probe saw, `{name: pytree of scalars}`."""

    inner: Any
    probes: dict[str, Any]


def monitored(estimator: Estimator, probes: Mapping[str, Probe]) -> Estimator:
    """Wraps an estimator so that its info also holds what the probes see. Gradients and memory are left as they are.

        gradient = estimator.estimate(params, memory, batch, key)
        info = MonitoredInfo(gradient.info, {name: probe(params, memory, batch, gradient) for name, probe in probes})

        probes = {"norms": norms_by_layer, "gates": saturation_probe(cell)}
        step = make_train_step(monitored(truncated_bptt(loss_fn, 50, 50), probes), optimizer)
        state, metrics = step(state, batch)
        metrics.info.probes["gates"]["f"].flat

    Cost at B=32, H=128, k=50: see `benchmarks/diagnostics_cost.py`.

    Args (static): estimator; probes, by name.

    Raises:
      ValueError, at `estimate`: a probe returned a leaf that is no scalar; the message names the probe and the leaf.
    """
    probes = dict(probes)

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        gradient = estimator.estimate(params, memory, batch, key)
        # Probes' sums over the gradient stay their own: shared with the update's, those would be rounded otherwise.
        observed = jax.lax.optimization_barrier(gradient)
        seen = {name: _scalars(name, probe(params, memory, batch, observed)) for name, probe in probes.items()}
        return gradient._replace(info=MonitoredInfo(gradient.info, seen))

    return Estimator(estimator.init, estimate)


def norms_by_leaf(params: Params, memory: Memory, batch: Batch, gradient: Gradient) -> dict[str, Array]:
    """Probes the norm of every leaf of the gradient, by its path: `{".cell.w_h": 0.31, ...}`; free of overflow."""
    del params, memory, batch
    return {
        jax.tree_util.keystr(path): global_norm(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient.grads)
    }


def norms_by_layer(params: Params, memory: Memory, batch: Batch, gradient: Gradient) -> dict[str, Array]:
    """Probes the gradient's norm over the leaves of one layer together: `{".cell[0]": ..., ".readout['params']": ...}`.

    A layer is all leaves whose paths differ in their last entry only.
    """
    del params, memory, batch
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient.grads):
        layers.setdefault(jax.tree_util.keystr(path[:-1]), []).append(leaf)
    return {name: global_norm(leaves) for name, leaves in layers.items()}


def bad_leaf(params: Params, memory: Memory, batch: Batch, gradient: Gradient) -> Array:
    """Probes which leaf of the gradient is the first to hold NaN or inf: an index for `leaf_name`, -1 = none."""
    del params, memory, batch
    return first_bad_leaf(gradient.grads)


def saturation_probe(
    cell: Cell,
    *,
    steps: int = 1,
    flat: float = 0.05,
    cell_params: Callable[[Params], Params] = operator.attrgetter("cell"),
    carry_of: Callable[[Memory], Carry] | None = None,
    xs_of: Callable[[Params, Batch], Array] = lambda params, batch: batch.inputs,
) -> Probe:
    """Makes a probe of `saturation` over the first few steps that the estimator's carry enters, all lanes.

    Those are the first steps of the batch where memory is the carry (`full_bptt`, `truncated_bptt` with k2 <= k1), and
    the oldest remembered steps, k2 - k1 back, of overlapping windows. A few steps cost little and see B * H * steps units.

    Args (all static):
      cell: see `gates` for the kinds.
      steps: at most the steps of a batch.
      flat: as in `saturation`.
      cell_params: the cell's part of params; `lambda p: p` if params are the cell's own.
      carry_of: the carry in the memory of another estimator, one that enters the batch's first step.
      xs_of: the cell's inputs, if they are not the batch's: `lambda p, b: embedding.apply(p.embedding, b.inputs)`.

    Raises:
      ValueError, at `estimate`: the batch has fewer steps, or the memory holds no carry where it was looked for.
    """

    def probe(params: Params, memory: Memory, batch: Batch, gradient: Gradient) -> dict[str, GateSaturation]:
        del gradient
        T = np.shape(batch.inputs)[0]
        if not 1 <= steps <= T:
            raise ValueError(f"saturation_probe needs 1 <= steps <= T of the batch; got steps={steps}, T={T}")
        own = batch._replace(targets=None)
        if carry_of is None and isinstance(memory, Past):
            old = memory.batch._replace(targets=None)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, own)
            begin = np.shape(old.inputs)[0] - memory.age
            window = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, steps), both)
            carry = memory.carry
        else:
            window = jax.tree.map(lambda a: a[:steps], own)
            carry = memory if carry_of is None else carry_of(memory)
        wanted = jax.tree.structure(jax.eval_shape(cell.initial_carry))
        if jax.tree.structure(carry) != wanted:
            raise ValueError(
                f"saturation_probe needs the carry {wanted}; got {jax.tree.structure(carry)} from the estimator's memory: "
                "give carry_of=lambda memory: ..."
            )
        xs = xs_of(params, window)
        return saturation(cell, cell_params(params), carry, xs, resets=window.resets, mask=window.mask, flat=flat)

    return probe


def _scalars(name: str, seen: Any) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        if np.shape(leaf) != ():
            raise ValueError(
                f"probe {name!r} must return scalars; got shape {np.shape(leaf)} at {jax.tree_util.keystr(path) or 'root'}"
            )
    return seen
