"""A compiled loop where it serves, with more lanes under vmap; the scan that it computes in derivatives."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from tbptt.engine.loops import Ran, ScanLoops
from tbptt.engine.scan import Steps
from tbptt.native.frame import registered
from tbptt.native.sizes import halves_of, loops_fit, parts_of
from tbptt.native.tiles import pack
from tbptt.types import Backprop, Carry, Params


class Weights(NamedTuple):
    """A cell's parameters, and its `w_h` as the products of loops read it: for `rows` as it is, for `tiles` packed."""

    params: Params
    ahead: Float[Array, "H G"] | Float[Array, "J H C"]
    behind: Float[Array, "H G"] | Float[Array, "J G C"]


@dataclasses.dataclass(frozen=True)
class NativeLoops:
    """The loops of a cell as two operations: `Loops`. What they compute, and compute exactly, is `ScanLoops(back)`.

    call_forward, call_backward: `Loops.forward` less its ys, and `Loops.backward`, by `call_loop`; both are given `back`
    first, the forward one then `keep`, and `Weights`.
    tiled: whether products are those of `tiles`, whose weights are laid out once for all steps, or those of `rows`.
    factors: whether `back.collect` reads factors, and so whether `call_backward` returns them.
    """

    back: Backprop
    call_forward: Callable[..., Any]
    call_backward: Callable[..., Any]
    tiled: bool
    factors: bool

    def prepare(self, params: Params) -> Weights:
        w: Any = params.w_h
        return Weights(params, pack(w), pack(w.T)) if self.tiled else Weights(params, w, w)

    def forward(self, weights: Weights, start: Carry, carry: Carry, steps: Steps, keep: bool) -> tuple[Carry, Array, Any]:
        loops = ScanLoops(self.back)

        def scan(weights: Weights, start: Carry, carry: Carry, steps: Steps) -> Any:
            carries, _, saved = loops.forward(loops.prepare(weights.params), start, carry, steps, keep)
            return carries, saved

        def more(weights: Weights, start: Carry, carry: Carry, steps: Steps) -> Any:
            carries, _, saved = self._wide().forward(self._packed(weights), start, carry, steps, keep)
            return carries, saved

        run = _native(functools.partial(self.call_forward, self.back, keep), scan, more, (0, 0, 1), (1, 1))
        carries, saved = run(weights, start, carry, steps)
        return carries, carries.h, saved

    def backward(self, weights: Weights, ran: Ran, d: Carry, d_ys: Any) -> tuple[Carry, Any, Any]:
        loops = ScanLoops(self.back)

        def scan(weights: Weights, ran: Ran, d: Carry, d_ys: Any) -> Any:
            d, emitted, factors = loops.backward(loops.prepare(weights.params), ran, d, d_ys)
            return d, emitted, factors if self.factors else None

        def more(weights: Weights, ran: Ran, d: Carry, d_ys: Any) -> Any:
            return self._wide().backward(self._packed(weights), ran, d, d_ys)

        run = _native(functools.partial(self.call_backward, self.back), scan, more, (1, 0, 1), (0, 1, 1))
        return run(weights, ran, d, d_ys)

    def _wide(self) -> "NativeLoops":
        """Returns the loops for several lanes."""
        return dataclasses.replace(self, tiled=True)

    def _packed(self, weights: Weights) -> Weights:
        return weights if self.tiled else self._wide().prepare(weights.params)


def _native(
    call: Callable[..., Any],
    scan: Callable[..., Any],
    more: Callable[..., Any],
    axes: tuple[int, ...],
    out_axes: tuple[int, ...],
) -> Callable[..., Any]:
    """Makes a function of weights and more that is `call`, under `jax.vmap` `more` or `scan`; its derivative is `scan`'s.

    A batch of calls with the same weights is one call with more lanes. With weights of their own they would run one after
    another; the scan's products grow with the batch instead. And the gradient's gradient, through a backward pass that is a
    call, goes through the scan.

    Args (static): axes, out_axes: of each argument after the weights, and of each result, its first axis of lanes.
    """
    single = custom_vmap(call)

    @single.def_vmap
    def _many(axis_size: int, batched: Any, weights: Weights, *args: Any) -> tuple[Any, Any]:
        wide = [_with_lanes(*each, axis_size) for each in zip(args, batched[1:], axes, strict=True)]
        if any(jax.tree.leaves(batched[0])) or not loops_fit(math.prod(wide[1].h.shape[:-1]), wide[1].h.shape[-1]):
            in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
            out = jax.vmap(scan, in_axes=tuple(in_axes), axis_size=axis_size)(weights, *args)
        else:
            out = more(weights, *wide)
            out = tuple(
                jax.tree.map(functools.partial(jnp.moveaxis, source=axis, destination=0), each)
                for each, axis in zip(out, out_axes, strict=True)
            )
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def run(*args: Any) -> Any:
        return single(*args)

    run.defjvp(lambda primals, tangents: jax.jvp(scan, primals, tangents))
    return run


def _with_lanes(tree: Any, batched: Any, axis: int, size: int) -> Any:
    """Puts an axis of `size` lanes before the others: the first one where a leaf is batched, else repeats the leaf."""

    def lanes(leaf: Array, its: bool) -> Array:
        if its:
            return jnp.moveaxis(leaf, 0, axis)
        return jnp.broadcast_to(jnp.expand_dims(leaf, axis), (*leaf.shape[:axis], size, *leaf.shape[axis:]))

    return jax.tree.map(lanes, tree, batched)


def call_loop(make: Callable[..., Any], w: Array, arguments: Any, out: Any, steps: int, product: tuple[int, ...]) -> Any:
    """Calls a loop as an operation.

    Args:
      make: as `frame.registered` wants it.
      w: of `Weights`; tells which products are meant.
      arguments: a pytree of arrays, which the operation finds in this order: all of one dtype, flags boolean.
      out: a pytree of shapes.
      steps: how many.
      product: the shape of a step's product. Room for it comes after `out`: a row for every lane, as wide as whole tiles
        are; by `rows` at least four, see `halves`.
    """
    leaves = jax.tree.leaves(arguments)
    shapes, tree = jax.tree.flatten(out)
    dtypes = {a.dtype for a in (*leaves, *shapes) if a.dtype != bool}
    if len(dtypes) > 1:  # a loop would read numbers of one kind as those of another
        raise TypeError(
            f"params, carry and xs must be of one dtype; got {', '.join(sorted(map(str, dtypes)))}: convert them"
        )
    tiled, lanes = w.ndim == len("JKC"), math.prod(product[:-1])
    room = (lanes, w.shape[0] * w.shape[2]) if tiled else (max(lanes, 4), product[-1])
    work = jax.ShapeDtypeStruct(room, shapes[0].dtype)
    operation = jax.ffi.ffi_call(registered(make, shapes[0].dtype, tiled), (*shapes, work))
    parts = parts_of(lanes, steps * w.size) if tiled else halves_of(lanes, steps, w.size)
    *made, _ = operation(*leaves, parts=np.int64(parts))
    return jax.tree.unflatten(tree, made)


def given(flags: Bool[Array, "T *batch"] | None) -> Array:
    """Returns flags, empty if there are none."""
    return jnp.zeros((0,), bool) if flags is None else flags
