"""Measure how many gates are saturated, in the flat regions of their activations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Bool, Float

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, GRUResetBefore, Stack
from tbptt.cells.wrappers import ClippedCell, Recorded
from tbptt.types import Carry, Cell, Params, UnrollFn
from tbptt.unroll import unroll as default_unroll


class Gate(NamedTuple):
    """A gate: its value is activation(pre).

    pre:        `[..., H]`, the input of the activation
    activation: elementwise
    """

    pre: Array
    activation: Callable[[Array], Array]


class GateSaturation(NamedTuple):
    """Statistics of one gate over a sequence; scalars.

    flat:  fraction of (step, batch row, unit) with |slope| < flat times the steepest slope
    stuck: fraction of units that are flat at every step in every batch row
    slope: mean |slope| of the activation; at most 1 for tanh, 1/4 for a sigmoid
    value: mean of the activation: a forget gate that is flat at 1 preserves the gradient, one
           that is flat at 0 removes it
    """

    flat: Float[Array, ""]
    stuck: Float[Array, ""]
    slope: Float[Array, ""]
    value: Float[Array, ""]


@runtime_checkable
class HasGates(Protocol):
    """A user-defined cell with a method that returns its gates."""

    def gates(self, params: Params, carry: Carry, x: Any) -> Mapping[str, Gate]:
        """Compute every gate of one step, for any number of leading axes."""
        ...


def gates(cell: Cell, params: Params, carry: Carry, x: Float[Array, "*batch D"]) -> dict[str, Gate]:
    """Compute the pre-activations of one step from the cell's parameters.

        Elman                   h           h' = activation(h)
        GRU, GRUResetBefore     r, z, n     h' = (1 - sigmoid(z)) * tanh(n) + sigmoid(z) * h
        LSTM                    i, f, g, o  c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
                                c           h' = sigmoid(o) * tanh(c)        (c is c')
        DiagonalLinear          none
        Stack                   each layer's, named "0.i", "1.i", ...
        ClippedCell             those of the cell inside

    A cell with a method `gates(params, carry, x)` takes precedence over this table.

    Args:
      cell: static.
      params: the cell's.
      carry, x: enter the step, `[*batch, ...]`; any number of leading axes, which may include
        time.

    Raises:
      TypeError: an unsupported cell.
    """
    if isinstance(cell, HasGates):
        return dict(cell.gates(params, carry, x))
    if isinstance(cell, ClippedCell):
        return gates(cell.cell, params, carry, x)
    if isinstance(cell, Stack):
        return _stack_gates(cell, params, carry, x)
    if type(cell) not in _GATES:
        supported = ", ".join(sorted(kind.__name__ for kind in _GATES))
        raise TypeError(
            f"cell must be one of {supported} or Stack; got {type(cell).__name__}. Give it a "
            "method gates(params, carry, x) -> {name: Gate(pre, activation)}"
        )
    return _GATES[type(cell)](cell, params, carry, x)


def saturation(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Float[Array, "T *batch D"],
    *,
    resets: Bool[Array, "T *batch"] | None = None,
    mask: Bool[Array, "T *batch"] | None = None,
    flat: float = 0.05,
    unroll: UnrollFn = default_unroll,
) -> dict[str, GateSaturation]:
    """Measure the saturation of every gate of a cell over a sequence.

        |activation'(pre_t)| < flat * max |activation'|         a unit in the flat region at step t

    One forward pass, then all gates of all steps at once. The default 0.05 means |a| > 2.18 for
    tanh, a sigmoid outside (0.0127, 0.9873), and the zero side of a relu. NaN counts as flat,
    because it passes no gradient; slope and value are then NaN too. Without any unmasked step
    (or T = 0) all four are NaN. Works inside jit.

    Args:
      cell: static; see `gates` for the supported cells.
      params, carry: the cell's; the carry enters step 0.
      xs: `[T, *batch, D]`.
      resets, mask: as in `unroll`; masked steps do not count.
      flat: fraction of the steepest slope.
      unroll: the unroll function, static; it runs a wrapped cell, so one for any cell.

    Returns:
      `{gate name: GateSaturation}`, names as in `gates`.
    """
    _, (entering, _) = unroll(Recorded(cell), params, carry, xs, resets=resets, mask=mask)
    return {
        name: _summary(gate, mask, flat * _steepest(gate.activation, gate.pre.dtype))
        for name, gate in gates(cell, params, entering, xs).items()
    }


def _summary(gate: Gate, mask: Array | None, threshold: Array) -> GateSaturation:
    value, slope = jax.jvp(gate.activation, (gate.pre,), (jnp.ones_like(gate.pre),))
    slope, dtype = jnp.abs(slope), jnp.promote_types(gate.pre.dtype, jnp.float32)
    is_flat = ~(slope >= threshold)
    exists = jnp.ones(is_flat.shape[:-1], bool) if mask is None else jnp.asarray(mask)
    exists = jnp.broadcast_to(exists[..., None], is_flat.shape)

    def mean(a: Array) -> Array:
        return jnp.mean(a, dtype=dtype) if mask is None else jnp.mean(a, dtype=dtype, where=exists)

    is_stuck = jnp.all(is_flat | ~exists, axis=tuple(range(is_flat.ndim - 1)))
    # Without any step, `all` would count every unit as stuck.
    stuck = jnp.where(jnp.any(exists), jnp.mean(is_stuck, dtype=dtype), jnp.nan)
    return GateSaturation(mean(is_flat), stuck, mean(slope), mean(value))


def _steepest(activation: Callable[[Array], Array], dtype: Any) -> Array:
    """Return the largest |slope| on a grid over [-8, 8] that contains 0.

    It is exact for tanh, sigmoid, relu and the identity.
    """
    grid = jnp.arange(-32, 33).astype(dtype) / 4
    return jnp.max(jnp.abs(jax.jvp(activation, (grid,), (jnp.ones_like(grid),))[1]))


def _elman(cell: Any, params: Any, carry: Any, x: Array) -> dict[str, Gate]:
    return {"h": Gate(carry.h @ params.w_h + cell.inputs(params, x), cell.activation)}


def _gru(cell: Any, params: Any, carry: Any, x: Array) -> dict[str, Gate]:
    x_r, x_z, x_n = jnp.split(cell.inputs(params, x), 3, axis=-1)
    h_r, h_z, h_n = jnp.split(carry.h @ params.w_h, 3, axis=-1)
    n = x_n + sigmoid(x_r + h_r) * (h_n + params.b_n)
    return {"r": Gate(x_r + h_r, sigmoid), "z": Gate(x_z + h_z, sigmoid), "n": Gate(n, jnp.tanh)}


def _gru_reset_before(cell: Any, params: Any, carry: Any, x: Array) -> dict[str, Gate]:
    x_r, x_z, x_n = jnp.split(cell.inputs(params, x), 3, axis=-1)
    h_r, h_z = jnp.split(carry.h @ params.w_h, 2, axis=-1)
    n = x_n + (sigmoid(x_r + h_r) * carry.h) @ params.w_n
    return {"r": Gate(x_r + h_r, sigmoid), "z": Gate(x_z + h_z, sigmoid), "n": Gate(n, jnp.tanh)}


def _lstm(cell: Any, params: Any, carry: Any, x: Array) -> dict[str, Gate]:
    i, f, g, o = jnp.split(cell.inputs(params, x) + carry.h @ params.w_h, 4, axis=-1)
    c = sigmoid(f) * carry.c + sigmoid(i) * jnp.tanh(g)
    pre = {
        "i": (i, sigmoid),
        "f": (f, sigmoid),
        "g": (g, jnp.tanh),
        "o": (o, sigmoid),
        "c": (c, jnp.tanh),
    }
    return {name: Gate(*gate) for name, gate in pre.items()}


def _stack_gates(stack: Stack, params: Any, carry: Any, x: Array) -> dict[str, Gate]:
    found: dict[str, Gate] = {}
    for layer, (cell, p, c) in enumerate(zip(stack.cells, params, carry, strict=True)):
        found |= {f"{layer}.{name}": gate for name, gate in gates(cell, p, c, x).items()}
        _, x = cell(p, c, x)
    return found


_GATES: dict[type, Callable[[Any, Any, Any, Any], dict[str, Gate]]] = {
    Elman: _elman,
    GRU: _gru,
    GRUResetBefore: _gru_reset_before,
    LSTM: _lstm,
    DiagonalLinear: lambda *_: {},
}
