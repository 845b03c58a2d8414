"""A backward pass for any cell: JAX linearises the step, for all steps of a block at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal
from jaxtyping import Array

from tbptt.cells.base import CellVJP, check_override, input_projection, recurrent_step
from tbptt.types import Carry, Cell, Params


def cell_vjp_of(cell: Cell) -> CellVJP:
    """Return the cell's own backward pass, or the one that JAX derives for any cell."""
    own = getattr(cell, "backprop", None)
    if own is None:
        return AutodiffVJP(cell)
    check_override(cell, "backprop", depends_on=("__call__", "recur", "inputs"))
    return own


@dataclasses.dataclass(frozen=True)
class AutodiffVJP:
    """The forward and backward pass of any cell: a `CellVJP` by JAX's derivative of one step.

        pull[t] = vjp(carry -> cell(params, carry, xs[t]))          for all t at once
        d_entering = pull[t](d_leaving, d_y)                        [d_leaving and d_y are emitted]
        d_params, d_xs = vjp((params, xs) -> vmap(cell)(entering, xs))(emitted)

    The residuals of the forward pass are the carries alone, and the weight gradient is one product
    over the block.
    """

    cell: Cell

    def prepare(self, params: Params) -> Params:
        return params

    def inputs(self, weights: Params, xs: Array) -> Any:
        return input_projection(self.cell, weights, xs)

    def forward(self, weights: Params, carry: Carry, z: Any) -> tuple[Carry, Any, Any]:
        leaving, y = recurrent_step(self.cell, weights, carry, z)
        return leaving, y, ()

    def linearize(
        self, weights: Params, xs: Array, entering: Carry, leaving: Carry, saved: Any
    ) -> tuple["Pull", list[Array]]:
        zs = self.inputs(weights, xs)
        trees = []

        def pull_of(params: Params, carry: Carry, z: Any) -> list[Array]:
            leaves, tree = jax.tree.flatten(
                jax.vjp(lambda c: recurrent_step(self.cell, params, c, z), carry)[1]
            )
            trees.append(tree)
            return leaves

        one = jax.tree.map(lambda a: a[0], (entering, zs))
        changing = _depends_on_time(pull_of, weights, *one)
        # Leaves that depend on the parameters alone are the same at every step, so they are not
        # stacked.
        constant = [
            leaf
            for leaf, changes in zip(pull_of(weights, *one), changing, strict=True)
            if not changes
        ]
        every = jax.vmap(lambda c, z: _chosen(pull_of(weights, c, z), changing))(entering, zs)
        return Pull(trees[-1], changing, constant), every

    def backward(
        self, common: "Pull", factors: list[Array], d_leaving: Carry, d_y: Any
    ) -> tuple[Carry, Any]:
        (d_entering,) = common.at(factors)((d_leaving, d_y))
        return d_entering, (d_leaving, d_y)

    def collect(
        self, params: Params, xs: Array, entering: Carry, leaving: Carry, factors: Any, emitted: Any
    ) -> tuple[Params, Array]:
        def steps(params: Params, xs: Array) -> tuple[Carry, Any]:
            return jax.vmap(lambda c, z: recurrent_step(self.cell, params, c, z))(
                entering, self.inputs(params, xs)
            )

        return jax.vjp(steps, params, xs)[1](emitted)


def scan_residuals(cell: Cell, params: Params, carry: Carry, x: Any) -> list[Any]:
    """Return the shapes that JAX stores at every step of a scan of the cell, without its input."""

    def pull_of(params: Params, carry: Carry, x: Any) -> list[Array]:
        return jax.tree.leaves(jax.vjp(cell, params, carry, x)[1])

    traced = jax.make_jaxpr(pull_of)(params, carry, x).jaxpr
    changing = _depends_on_time(pull_of, params, carry, x)
    stored = {id(v): v for v, changes in zip(traced.outvars, changing, strict=True) if changes}
    inputs = traced.invars[len(traced.invars) - len(jax.tree.leaves(x)) :]
    return [v.aval for v in stored.values() if v not in inputs]


class Pull(NamedTuple):
    """The pullback of a step, a pytree, with the leaves that all steps share."""

    tree: Any
    changing: list[bool]
    constant: list[Array]

    def at(self, factors: list[Array]) -> Callable[[Any], Any]:
        """Return the pullback of one step from its own leaves and the shared ones."""
        own, shared = iter(factors), iter(self.constant)
        return jax.tree.unflatten(
            self.tree, [next(own) if changes else next(shared) for changes in self.changing]
        )


def _chosen(leaves: list[Array], chosen: list[bool]) -> list[Array]:
    return [leaf for leaf, take in zip(leaves, chosen, strict=True) if take]


def _depends_on_time(
    function: Callable[..., list[Array]], params: Params, carry: Carry, z: Any
) -> list[bool]:
    """Return for each result whether it depends on the carry or the input, from the jaxpr."""
    traced = jax.make_jaxpr(function)(params, carry, z).jaxpr
    shared = len(jax.tree.leaves(params))
    reached = set(traced.invars[shared:])
    for equation in traced.eqns:
        if any(not isinstance(v, Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return [not isinstance(v, Literal) and v in reached for v in traced.outvars]
