"""Derivatives of a loss function over a single step; checks that they exist and fit in memory."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tbptt.numerics import floating_leaves, is_floating, replace_floating_leaves
from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length

Tangents = tuple[Array, list[Array]]  # of (loss_sum, floating leaves of the new carry)


class Step(NamedTuple):
    """One step as a function of params and of the floating leaves of the entering carry.

    run:    (params, floats) -> ((loss_sum, new floats), new carry); the new carry is auxiliary
    floats: the point of differentiation, the floating leaves of the entering carry, in order; other
      leaves (counters, keys) have no derivative
    """

    run: Callable[[Params, list[Array]], tuple[tuple[Array, list[Array]], Carry]]
    floats: list[Array]

    def jvp_of_carry(
        self, params: Params
    ) -> tuple[Array, Callable[[list[Array]], Tangents], Carry]:
        """Return `(loss_sum, jvp, new carry)`, with jvp from tangents of floats."""
        (loss_sum, _), jvp, carry = jax.linearize(
            lambda f: self.run(params, f), self.floats, has_aux=True
        )
        return loss_sum, jvp, carry

    def jvp_of_params(self, params: Params) -> Callable[[Params], Tangents]:
        """Return the function from tangents of params to those of (loss_sum, new floats)."""
        return jax.linearize(lambda p: self.run(p, self.floats), params, has_aux=True)[1]

    def vjp(self, params: Params) -> Callable[[Any], tuple[Params, list[Array]]]:
        """Return the function from cotangents of (loss_sum, new floats) to (params, floats)."""
        return jax.vjp(self.run, params, self.floats, has_aux=True)[1]


def step_at(loss_fn: LossFn, carry: Carry, step: Batch) -> Step:
    """Return the loss function at one step as a `Step`; `step` has leaves `[1, ...]`."""

    def run(params: Params, floats: list[Array]) -> tuple[tuple[Array, list[Array]], Carry]:
        loss_sum, new = loss_fn(params, replace_floating_leaves(carry, floats), step)
        return (loss_sum, floating_leaves(new)), new

    return Step(run, floating_leaves(carry))


def floating_tree(carry: Carry, values: list[Any]) -> Carry:
    """Return a tree like `carry`, with `values` for its floating leaves and None for all others."""
    leaves, tree = jax.tree.flatten(carry)
    rest = iter(values)
    return jax.tree.unflatten(tree, [next(rest) if is_floating(leaf) else None for leaf in leaves])


def one_step(batch: Batch) -> Batch:
    """Return the shapes of one step of an example batch (or of its `jax.eval_shape`)."""
    length(batch)  # raises an error if the leaves differ in T
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), jnp.result_type(a)), batch
    )


def check_forward(loss_fn: LossFn, name: str, params: Params, carry: Carry, batch: Batch) -> None:
    """Check, from shapes only, that forward-mode differentiation of one step is possible.

    Raises:
      TypeError: a leaf of params is not floating, one of the carry is complex, or loss_fn has no
        forward derivative in JAX.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be floating, to be differentiated; got "
                f"dtype {jnp.result_type(leaf)}"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is complex, but influences are real arrays; "
                "carry its real and imaginary parts as two leaves"
            )
    step_batch = one_step(batch)
    jax.eval_shape(loss_fn, params, carry, step_batch)  # errors of loss_fn pass unchanged

    def forward(params: Params, carry: Carry, step_batch: Batch) -> Any:
        step = step_at(loss_fn, carry, step_batch)
        return jax.jvp(step.run, (params, step.floats), (params, step.floats), has_aux=True)

    remedy = (
        "Online estimators differentiate loss_fn in forward mode, one step at a time. Write that "
        "step in plain JAX operations or give it a jax.custom_jvp; run cells by unroll or "
        "plain_unroll; clip gradients by clip_by_global_norm, not inside the recurrence "
        "(clip_cotangent, ClippedCell)"
    )
    try:
        traced = jax.make_jaxpr(forward)(params, carry, step_batch)
    except Exception as error:
        raise TypeError(f"{name} has no forward derivative (jax.jvp): {error}. {remedy}") from error
    if _has_custom_vjp(traced.jaxpr):
        raise TypeError(
            f"{name} contains a jax.custom_vjp, which jax.jvp cannot differentiate. {remedy}"
        )


def _has_custom_vjp(jaxpr: Any) -> bool:
    """Return whether a jaxpr of tangents contains a custom_vjp.

    JAX traces it without an error and raises only when it runs.
    """
    params = [leaf for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(leaf, "jaxpr", leaf) for leaf in params]
    return any(eqn.primitive.name == "custom_lin" for eqn in jaxpr.eqns) or any(
        _has_custom_vjp(part) for part in inner if hasattr(part, "eqns")
    )


def device_bytes() -> int | None:
    """Return the memory of the default device in bytes; None if it is unknown.

    For a CPU it is the memory of the machine.
    """
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit


def check_memory(what: str, size: int, remedy: str, max_bytes: int | None = None) -> None:
    """Raise a ValueError if `size` bytes exceed the limit.

    Args:
      what: the subject of the error message.
      size: bytes that are needed.
      remedy: the end of the error message.
      max_bytes: the limit; None = the memory of the device.
    """
    limit, whose = (
        (device_bytes(), "this device has")
        if max_bytes is None
        else (max_bytes, "max_bytes allows")
    )
    if limit is not None and size > limit:
        raise ValueError(f"{what} need {size:,} bytes; {whose} {limit:,}. {remedy}")
