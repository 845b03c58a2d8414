"""What forward estimators share: the loss function on one step, with the carry's integers set aside, and its check."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tbptt.types import Batch, Carry, LossFn, Params
from tbptt.windows import length


class Step(NamedTuple):
    """One step at the point (params, floats), opened for differentiation.

    run:    (params, floats) -> ((loss_sum, new floats), new carry); the last is not to be differentiated
    floats: the floating leaves of the carry that enters, in order; all else in a carry (counters, keys) has no derivative
    """

    run: Callable[[Params, list[Array]], tuple[tuple[Array, list[Array]], Carry]]
    floats: list[Array]

    def along_carry(self, params: Params) -> tuple[Array, Callable[[list[Array]], tuple[Array, list[Array]]], Carry]:
        """Steps: `(loss_sum, push, new carry)`; push maps a tangent of floats to those of (loss_sum, new floats)."""
        (loss_sum, _), push, carry = jax.linearize(lambda f: self.run(params, f), self.floats, has_aux=True)
        return loss_sum, push, carry

    def along_params(self, params: Params) -> Callable[[Params], tuple[Array, list[Array]]]:
        """Returns what maps a tangent of params to those of loss_sum and new floats."""
        return jax.linearize(lambda p: self.run(p, self.floats), params, has_aux=True)[1]

    def back(self, params: Params) -> Callable[[Any], tuple[Params, list[Array]]]:
        """Returns what maps cotangents of (loss_sum, new floats) to those of (params, floats)."""
        return jax.vjp(self.run, params, self.floats, has_aux=True)[1]


def opened(loss_fn: LossFn, carry: Carry, piece: Batch) -> Step:
    """Opens the loss function at one step, `piece` of leaves `[1, ...]`."""

    def run(params: Params, floats: list[Array]) -> tuple[tuple[Array, list[Array]], Carry]:
        loss_sum, new = loss_fn(params, _merged(carry, floats), piece)
        return (loss_sum, floats_of(new)), new

    return Step(run, floats_of(carry))


def floats_of(carry: Carry) -> list[Array]:
    """Returns the floating leaves of a carry, in order."""
    return [leaf for leaf in jax.tree.leaves(carry) if _floating(leaf)]


def like_floats(carry: Carry, values: list[Any]) -> Carry:
    """Makes a tree like the carry of one value for each floating leaf; None stands for every other leaf."""
    leaves, tree = jax.tree.flatten(carry)
    rest = iter(values)
    return jax.tree.unflatten(tree, [next(rest) if _floating(leaf) else None for leaf in leaves])


def one_step(batch: Batch) -> Batch:
    """Returns the shapes of one step of an example batch (or of its eval_shape)."""
    length(batch)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *np.shape(a)[1:]), jnp.result_type(a)), batch)


def check_forward(loss_fn: LossFn, name: str, params: Params, carry: Carry, batch: Batch) -> None:
    """Checks, by shapes alone, that one step can be differentiated forwards.

    Raises:
      TypeError: a leaf of params is not floating, one of the carry is complex, or JAX has no forward derivative of loss_fn.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _floating(leaf):
            place = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{place} must be floating, to be differentiated; got dtype {jnp.result_type(leaf)}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is complex, and influences are kept as real numbers; hand on its real "
                "and imaginary parts as two leaves"
            )
    piece = one_step(batch)
    jax.eval_shape(loss_fn, params, carry, piece)  # its own errors come as they are

    def forward(params: Params, carry: Carry, piece: Batch) -> Any:
        step = opened(loss_fn, carry, piece)
        return jax.jvp(step.run, (params, step.floats), (params, step.floats), has_aux=True)

    remedy = (
        "Online estimators differentiate loss_fn forwards, one step at a time. Write that step in plain JAX operations or "
        "give it a jax.custom_jvp; run cells by unroll or plain_unroll; bound gradients by clip_by_global_norm, not inside "
        "the recurrence (clip_cotangent, ClippedCell)"
    )
    try:
        traced = jax.make_jaxpr(forward)(params, carry, piece)
    except Exception as error:
        raise TypeError(f"{name} has no forward derivative (jax.jvp): {error}. {remedy}") from error
    if _holds_custom_vjp(traced.jaxpr):
        raise TypeError(f"{name} holds a backward pass of its own (jax.custom_vjp), which jax.jvp cannot pass. {remedy}")


def name_of(loss_fn: LossFn) -> str:
    """Returns what errors call a user's function."""
    return getattr(loss_fn, "__qualname__", None) or type(loss_fn).__name__


def _merged(carry: Carry, floats: list[Array]) -> Carry:
    leaves, tree = jax.tree.flatten(carry)
    rest = iter(floats)
    return jax.tree.unflatten(tree, [next(rest) if _floating(leaf) else leaf for leaf in leaves])


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _holds_custom_vjp(jaxpr: Any) -> bool:
    """Says whether a program of tangents holds the place where JAX will refuse: it does so only where it is run."""
    inside = [getattr(leaf, "jaxpr", leaf) for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values()))]
    return any(eqn.primitive.name == "custom_lin" for eqn in jaxpr.eqns) or any(
        _holds_custom_vjp(part) for part in inside if hasattr(part, "eqns")
    )
