"""Flax's recurrent cells as ours, and ours as flax's.

cell = LinenCell(nn.LSTMCell(8), input_dim=2)                                    # params are flax's own variables
cell = NnxCell(lambda rngs: nnx.LSTMCell(2, 8, rngs=rngs), input_dim=2)          # params are an nnx.State
ys = nn.RNN(as_linen(tbptt.LSTM(2, 8))).init_with_output(key, xs)[0]             # and the other direction
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tbptt.types import Carry, Cell, Params, PRNGKey


class _FlaxCell:
    @property
    def hidden_dim(self) -> int:
        """H, the size of y: one step is run abstractly, whatever the module calls its size."""
        cell: Any = self
        x = jnp.zeros((cell.input_dim,))
        return jax.eval_shape(lambda k: cell(cell.init(k), cell.initial_carry(), x)[1], jax.random.key(0)).shape[-1]


@dataclasses.dataclass(frozen=True)
class LinenCell(_FlaxCell):
    """Steps a flax linen recurrent cell: `carry, y = module.apply(params, carry, x)`.

    Params are the variables that `module.init` returns, so the way back is `module.apply(params, carry, x)`, or
    `nn.RNN(module).apply({"params": {"cell": params["params"]}}, xs)`. The carry is flax's own: `(c, h)` for an LSTM.
    Their dtype is the module's `param_dtype` (flax's default is float32, also under jax_enable_x64).

    Args (all static):
      module: `nn.LSTMCell(8)`, `nn.OptimizedLSTMCell(8)`, `nn.GRUCell(8)`, ...; one feature axis; nothing but params.
      input_dim: D.

    Raises:
      TypeError: module is no linen recurrent cell or not hashable, input_dim no int.
      ValueError: input_dim < 1; module has several feature axes; at `init`: module has other variables than params.
    """

    module: nn.RNNCellBase
    input_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.RNNCellBase):
            raise TypeError(
                f"LinenCell.module must be a linen RNNCellBase, nn.LSTMCell(8) say; got {_name(self.module)}: "
                "give the cell itself, not the nn.RNN around it; an nnx cell goes into NnxCell"
            )
        _check_common(self, self.module, self.module)

    def init(self, key: PRNGKey) -> Params:
        """Draws parameters as flax does: `{"params": {...}}`. The key is consumed."""
        variables = self.module.init(key, self.initial_carry(), jnp.zeros((self.input_dim,)))
        if others := sorted(set(variables) - {"params"}):
            raise ValueError(
                f"LinenCell.module must have params only; got {type(self.module).__name__} with {others}: use the carry"
            )
        return variables

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Makes flax's initial carry for inputs `[*batch_shape, D]`; a random `carry_init` always draws from key 0."""
        return self.module.initialize_carry(jax.random.key(0), (*batch_shape, self.input_dim))

    def __call__(self, params: Params, carry: Carry, x: Float[Array, "*batch D"]) -> tuple[Carry, Any]:
        """Takes one step; returns (carry, y) with y `[*batch, H]`."""
        return self.module.apply(params, carry, x)


@dataclasses.dataclass(frozen=True)
class NnxCell(_FlaxCell):
    """Steps a flax nnx recurrent cell: `carry, y = merge(params)(carry, x)`.

    Params are the `nnx.State` of the module's `nnx.Param`s; `merge(params)` is the way back to a module.

    Args (all static):
      make: `rngs -> nnx.RNNCellBase`. Pass a named function: cells hash by it. It is run once abstractly, here.
      input_dim: D.

    Raises:
      TypeError: make is no function, not hashable, or makes no nnx recurrent cell; input_dim is no int.
      ValueError: input_dim < 1 or not in_features; several feature axes; state that is no `nnx.Param` (rngs too).
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    input_dim: int

    def __post_init__(self) -> None:
        if isinstance(self.make, nnx.Module) or not callable(self.make):
            raise TypeError(
                f"NnxCell.make must be a function, lambda rngs: nnx.LSTMCell(2, 8, rngs=rngs); got {_name(self.make)}"
            )
        module = nnx.eval_shape(lambda: self._module(nnx.Rngs(0)))
        kind = type(module).__name__
        _check_common(self, module, self.make)
        in_features = getattr(module, "in_features", self.input_dim)
        if in_features != self.input_dim:
            raise ValueError(f"NnxCell.input_dim must be the {kind}'s in_features={in_features}; got {self.input_dim}")
        if others := [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))]:
            raise ValueError(
                f"NnxCell.make's module must have nnx.Param only; got {kind} with {others}: use the carry, no keep_rngs"
            )

    def _module(self, rngs: nnx.Rngs) -> nnx.Module:
        module = self.make(rngs)
        if not isinstance(module, nnx.RNNCellBase):
            raise TypeError(
                f"NnxCell.make must return an nnx.RNNCellBase; got {_name(module)}: a linen cell goes into LinenCell"
            )
        return module

    def init(self, key: PRNGKey) -> Params:
        """Draws parameters as flax does, an `nnx.State`. The key is consumed."""
        return nnx.split(self._module(nnx.Rngs(key)))[1]

    def merge(self, params: Params) -> nnx.Module:
        """Makes the nnx module that has these params; a copy, so changing the module leaves params alone."""
        return nnx.merge(_skeleton(self)[0], params, copy=True)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Makes flax's initial carry for inputs `[*batch_shape, D]`; a random `carry_init` always draws from seed 0."""
        module = nnx.merge(*_skeleton(self), copy=True)
        return module.initialize_carry((*batch_shape, self.input_dim), nnx.Rngs(0))

    def __call__(self, params: Params, carry: Carry, x: Float[Array, "*batch D"]) -> tuple[Carry, Any]:
        """Takes one step; returns (carry, y) with y `[*batch, H]`."""
        return self.merge(params)(carry, x)


class AsLinen(nn.RNNCellBase):
    """One of our cells as a flax linen recurrent cell; see `as_linen`."""

    cell: Any  # a Cell

    @nn.compact
    def __call__(self, carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        """Takes one step; returns (carry, y)."""
        return self.cell(self.param("weights", self.cell.init), carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Carry:
        """Makes the cell's initial carry for inputs `[*batch, D]`; rng is not used."""
        del rng
        name, D = type(self.cell).__name__, self.cell.input_dim
        if input_shape[-1] != D:
            raise ValueError(f"inputs must be [..., D] with D = {name}.input_dim = {D}; got shape {input_shape}")
        return self.cell.initial_carry(tuple(input_shape[:-1]))

    @property
    def num_feature_axes(self) -> int:
        return 1


def as_linen(cell: Cell) -> nn.RNNCellBase:
    """Wraps one of our cells as a flax linen recurrent cell, for `nn.RNN`, `nn.Bidirectional` and linen models.

    The cell's params are one linen parameter, a pytree under the name "weights": the way back is
    `variables["params"]["weights"]`, or `variables["params"]["cell"]["weights"]` out of an `nn.RNN`.

    Args (static): cell, an instance of a `Cell`.
    Returns: a linen module; equal cells give equal modules.
    Raises: TypeError: cell is no instance of a `Cell`. ValueError, at the call: inputs are not `[..., input_dim]`.
    """
    if isinstance(cell, type) or not isinstance(cell, Cell):
        raise TypeError(
            f"cell must be an instance of a tbptt Cell, tbptt.LSTM(2, 8) say; got {_name(cell)}: see tbptt.types.Cell"
        )
    return AsLinen(cell)


@functools.lru_cache(maxsize=256)
def _skeleton(cell: NnxCell) -> tuple[Any, Any]:
    """The module without its arrays: (graphdef, State of shapes and dtypes)."""
    return nnx.split(nnx.eval_shape(lambda: cell._module(nnx.Rngs(0))))


def _check_common(cell: Any, module: Any, hashed: Any) -> None:
    """Checks what both kinds share: input_dim, one feature axis, hashability."""
    kind, D = type(cell).__name__, cell.input_dim
    if isinstance(D, bool) or not isinstance(D, int) or D < 1:
        error = ValueError if type(D) is int else TypeError
        raise error(f"{kind}.input_dim must be a Python int of at least 1; got {D!r}")
    if (axes := module.num_feature_axes) != 1:
        name = type(module).__name__
        raise ValueError(f"{kind} takes a cell on vectors [*batch, D]; got {name} with {axes} feature axes: flatten")
    try:
        hash(hashed)
    except TypeError as error:
        raise TypeError(f"{kind} must be hashable; got {_name(hashed)}: {error}. Use tuples for lists") from error


def _name(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
