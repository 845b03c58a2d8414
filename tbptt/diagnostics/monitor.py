"""Run diagnostics inside a jitted train step; locate the first NaN or infinity.

The results of probes are in the info of the estimator.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tbptt.diagnostics.saturation import GateSaturation, saturation
from tbptt.estimators.truncated import Past
from tbptt.numerics import global_norm
from tbptt.types import Batch, Carry, Cell, Estimator, Gradient, Memory, Params, PRNGKey

# (params, memory before the call, batch, gradient) -> a pytree of scalars; a pure function, traced
# into the train step.
Probe = Callable[[Params, Memory, Batch, Gradient], Any]


class MonitoredInfo(NamedTuple):
    """Info of a monitored estimator.

    inner:  the wrapped estimator's info
    probes: the result of each probe, `{name: pytree of scalars}`
    """

    inner: Any
    probes: dict[str, Any]


class FirstNonFinite(NamedTuple):
    """Position of the first non-finite value; scalars. `where_non_finite` describes it as text.

    found: whether there is one
    step:  the first step with one, -1 = before step 0 (in params or in the carry that enters)
    leaf:  the first leaf with one at that step, in the order params, entering carry, x, carry, y;
           -1 = none
    """

    found: Bool[Array, ""]
    step: Int[Array, ""]
    leaf: Int[Array, ""]


def monitored(estimator: Estimator, probes: Mapping[str, Probe]) -> Estimator:
    """Wrap an estimator so that its info also holds the results of probes.

        gradient = estimator.estimate(params, memory, batch, key)
        seen = {name: probe(params, memory, batch, gradient) for name, probe in probes.items()}
        info = MonitoredInfo(gradient.info, seen)

    Gradients and memory are unchanged. Example:

        probes = {"norms": norms_by_layer, "gates": saturation_probe(cell)}
        step = make_train_step(monitored(truncated_bptt(loss_fn, 50, 50), probes), optimizer)
        state, metrics = step(state, batch)
        metrics.info.probes["gates"]["f"].flat

    `benchmarks/diagnostics_cost.py` measures the cost at B=32, H=128, k=50.

    Args:
      estimator: static.
      probes: static; by name.

    Raises:
      ValueError: in `estimate`, a probe returned a leaf that is not a scalar; the message gives
        the probe and the leaf.
    """
    probes = dict(probes)

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        gradient = estimator.estimate(params, memory, batch, key)
        # Without the barrier XLA may share sums with the probes and change the update's rounding.
        observed = jax.lax.optimization_barrier(gradient)
        seen = {
            name: _scalars(name, probe(params, memory, batch, observed))
            for name, probe in probes.items()
        }
        return gradient._replace(info=MonitoredInfo(gradient.info, seen))

    return Estimator(estimator.init, estimate)


def norms_by_leaf(
    params: Params, memory: Memory, batch: Batch, gradient: Gradient
) -> dict[str, Array]:
    """Compute the norm of every leaf of the gradient, by its path, without overflow.

    The result is such as `{".cell.w_h": 0.31, ...}`.
    """
    del params, memory, batch
    return {
        jax.tree_util.keystr(path): global_norm(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient.grads)
    }


def norms_by_layer(
    params: Params, memory: Memory, batch: Batch, gradient: Gradient
) -> dict[str, Array]:
    """Compute the norm of the gradient over the leaves of each layer together.

    The result is such as `{".cell[0]": ..., ".readout['params']": ...}`. A layer consists of all
    leaves whose paths differ in their last entry only.
    """
    del params, memory, batch
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient.grads):
        layers.setdefault(jax.tree_util.keystr(path[:-1]), []).append(leaf)
    return {name: global_norm(leaves) for name, leaves in layers.items()}


def bad_leaf(params: Params, memory: Memory, batch: Batch, gradient: Gradient) -> Array:
    """Return the index of the gradient's first leaf with NaN or inf, or -1; see `leaf_name`."""
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
    """Return a probe of `saturation` over the first steps that the estimator's carry enters.

    Those are the first steps of the batch where memory is the carry (`full_bptt`,
    `truncated_bptt` with k2 <= k1), and the oldest remembered steps, k2 - k1 back, of overlapping
    windows. The probe uses all batch rows: B * H * steps units, at little cost for few steps.

    Args (all static):
      cell: see `gates` for the supported cells.
      steps: at most the steps of a batch.
      flat: as in `saturation`.
      cell_params: selects the cell's params; `lambda p: p` if params are the cell's own.
      carry_of: selects the carry in the memory of another estimator; it must enter the batch's
        first step.
      xs_of: computes the cell's inputs, if they are not the batch's:
        `lambda p, b: embedding.apply(p.embedding, b.inputs)`.

    Raises:
      ValueError: in `estimate`, the batch has fewer steps, or the memory holds no carry where
        expected.
    """

    def probe(
        params: Params, memory: Memory, batch: Batch, gradient: Gradient
    ) -> dict[str, GateSaturation]:
        del gradient
        T = np.shape(batch.inputs)[0]
        if not 1 <= steps <= T:
            raise ValueError(
                f"saturation_probe needs 1 <= steps <= T of the batch; got steps={steps}, T={T}"
            )
        own = batch._replace(targets=None)
        if carry_of is None and isinstance(memory, Past):
            old = memory.batch._replace(targets=None)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, own)
            begin = np.shape(old.inputs)[0] - memory.n_valid
            window = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, steps), both)
            carry = memory.carry
        else:
            window = jax.tree.map(lambda a: a[:steps], own)
            carry = memory if carry_of is None else carry_of(memory)
        wanted = jax.tree.structure(jax.eval_shape(cell.initial_carry))
        if jax.tree.structure(carry) != wanted:
            raise ValueError(
                f"saturation_probe needs the carry {wanted}; got {jax.tree.structure(carry)} from "
                "the estimator's memory. Pass carry_of=lambda memory: ..."
            )
        xs = xs_of(params, window)
        return saturation(
            cell, cell_params(params), carry, xs, resets=window.resets, mask=window.mask, flat=flat
        )

    return probe


def first_non_finite(
    cell: Cell, params: Params, carry: Carry, xs: Float[Array, "T *batch D"]
) -> FirstNonFinite:
    """Run a cell over a sequence and find the first step and leaf that hold NaN or inf.

    Before step 0 it checks params and the carry; at each step x, then the carry that leaves it,
    then y. This distinguishes bad input from a diverging recurrence. Integer leaves are always
    finite. Works inside jit.

    Args:
      cell: static.
      params, carry: the cell's; the carry enters step 0.
      xs: `[T, *batch, D]`, T = 0 allowed.
    """

    def body(carry: Carry, x: Array) -> tuple[Carry, Array]:
        new, y = cell(params, carry, x)
        return new, _flags((x, new, y))

    before = _flags((params, carry))
    _, during = jax.lax.scan(body, carry, xs)
    n, m = before.shape[0], during.shape[1]
    rows = (
        jnp.zeros((1 + during.shape[0], n + m), bool).at[0, :n].set(before).at[1:, n:].set(during)
    )
    at = jnp.argmax(jnp.any(rows, axis=1))
    found = jnp.any(rows)
    return FirstNonFinite(
        found, jnp.where(found, at - 1, -1), jnp.where(found, jnp.argmax(rows[at]), -1)
    )


def where_non_finite(
    first: FirstNonFinite, cell: Cell, params: Params, carry: Carry, xs: Float[Array, "T *batch D"]
) -> str:
    """Describe the result of `first_non_finite`: "before step 0: params.w_h", "step 12: carry.h".

    Runs on the host: `first` must be concrete; of params, carry and xs (as passed before) only
    shapes are used.
    """
    if not bool(first.found):
        return "all finite"
    left, y = jax.eval_shape(cell, params, carry, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    trees = {"params": params, "carry": carry}, {"x": xs, "carry": left, "y": y}
    names = [name for part in trees for root, tree in part.items() for name in _names(tree, root)]
    when = "before step 0" if int(first.step) < 0 else f"step {int(first.step)}"
    return f"{when}: {names[int(first.leaf)]}"


def first_bad_leaf(tree: Any) -> Int[Array, ""]:
    """Return the index in `jax.tree.leaves` of the first leaf with NaN or inf; or -1."""
    flags = _flags(tree)
    if not flags.shape[0]:
        return jnp.asarray(-1)
    return jnp.where(jnp.any(flags), jnp.argmax(flags), -1)


def leaf_name(tree: Any, index: int | Int[Array, ""]) -> str | None:
    """Return the path of a leaf by the index from `first_bad_leaf`, such as ".cell.w_h".

    None for -1. Runs on the host.
    """
    return None if int(index) < 0 else _names(tree, "")[int(index)]


def _scalars(name: str, seen: Any) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        if np.shape(leaf) != ():
            raise ValueError(
                f"probe {name!r} must return scalars; got shape {np.shape(leaf)} at "
                f"{jax.tree_util.keystr(path) or 'root'}"
            )
    return seen


def _flags(tree: Any) -> Bool[Array, " n"]:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return (
        jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        if leaves
        else jnp.zeros((0,), bool)
    )


def _names(tree: Any, root: str) -> list[str]:
    return [
        root + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
