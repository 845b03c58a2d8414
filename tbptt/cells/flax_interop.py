"""Conversion between flax's recurrent cells and cells of this library, in both directions.

cell = LinenCell(nn.LSTMCell(8), input_dim=2)                             # params: flax variables
cell = NnxCell(lambda rngs: nnx.LSTMCell(2, 8, rngs=rngs), input_dim=2)   # params: an nnx.State
ys = nn.RNN(as_linen(tbptt.LSTM(2, 8))).init_with_output(key, xs)[0]      # a tbptt cell in flax
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tbptt.types import Carry, Cell, Params, PRNGKey


def _nnx() -> Any:
    """Import `flax.nnx` when an `NnxCell` is made: it takes longer than the rest of the library."""
    from flax import nnx

    return nnx


class _FlaxCell:
    @property
    def hidden_dim(self) -> int:
        """H, the size of y, found by an abstract evaluation of one step."""
        cell: Any = self
        x = jnp.zeros((cell.input_dim,))
        return jax.eval_shape(
            lambda k: cell(cell.init(k), cell.initial_carry(), x)[1], jax.random.key(0)
        ).shape[-1]


@dataclasses.dataclass(frozen=True)
class LinenCell(_FlaxCell):
    """A flax linen recurrent cell: `carry, y = module.apply(params, carry, x)`.

    Params are the variables that `module.init` returns. Flax can use them as `module.apply(params,
    carry, x)` or as `nn.RNN(module).apply({"params": {"cell": params["params"]}}, xs)`. The carry
    is that of flax, `(c, h)` for an LSTM. The dtype of both is the module's `param_dtype` (float32
    by default in flax, also under jax_enable_x64).

    Args (all static):
      module: for example `nn.LSTMCell(8)`, `nn.OptimizedLSTMCell(8)` or `nn.GRUCell(8)`; it has one
        feature axis and no variables other than params.
      input_dim: D, the size of `x`.

    Raises:
      TypeError: `module` is not a linen recurrent cell or not hashable, or `input_dim` is not an
        int.
      ValueError: `input_dim` is below 1, or `module` has several feature axes; at `init`, if
        `module` has variables other than params.
    """

    module: nn.RNNCellBase
    input_dim: int

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.RNNCellBase):
            raise TypeError(
                "LinenCell.module must be a linen RNNCellBase, for example nn.LSTMCell(8); got "
                f"{_name(self.module)}: pass the cell itself, not the nn.RNN around it; for an nnx "
                "cell use NnxCell"
            )
        _check_common(self, self.module, self.module)

    def init(self, key: PRNGKey) -> Params:
        """Draw parameters with `module.init`: `{"params": {...}}`; the key is consumed."""
        variables = self.module.init(key, self.initial_carry(), jnp.zeros((self.input_dim,)))
        if others := sorted(set(variables) - {"params"}):
            raise ValueError(
                "LinenCell.module must have no variables other than params; got "
                f"{type(self.module).__name__} with {others}: keep state in the carry"
            )
        return variables

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return flax's initial carry for inputs `[*batch_shape, D]`.

        A random `carry_init` always draws from key 0.
        """
        return self.module.initialize_carry(jax.random.key(0), (*batch_shape, self.input_dim))

    def __call__(
        self, params: Params, carry: Carry, x: Float[Array, "*batch D"]
    ) -> tuple[Carry, Any]:
        """Take one step; return `(carry, y)` with `y [*batch, H]`."""
        return self.module.apply(params, carry, x)


@dataclasses.dataclass(frozen=True)
class NnxCell(_FlaxCell):
    """A flax nnx recurrent cell: `carry, y = merge(params)(carry, x)`.

    Params are the `nnx.State` of the module's `nnx.Param`s; `merge(params)` makes the module again.

    Args (all static):
      make: a function `rngs -> nnx.RNNCellBase`. Pass a named function, because cells hash by it.
        The constructor evaluates it once, abstractly.
      input_dim: D, the size of `x`.

    Raises:
      TypeError: `make` is not a function, not hashable, or does not return an nnx recurrent cell;
        or `input_dim` is not an int.
      ValueError: `input_dim` is below 1 or differs from `in_features`; or the module has several
        feature axes or state other than `nnx.Param` (rngs included).
    """

    make: Callable[[Any], Any]
    input_dim: int

    def __post_init__(self) -> None:
        nnx = _nnx()
        if isinstance(self.make, nnx.Module) or not callable(self.make):
            raise TypeError(
                "NnxCell.make must be a function, for example lambda rngs: nnx.LSTMCell(2, 8, "
                f"rngs=rngs); got {_name(self.make)}"
            )
        module = nnx.eval_shape(lambda: self._module(nnx.Rngs(0)))
        kind = type(module).__name__
        _check_common(self, module, self.make)
        in_features = getattr(module, "in_features", self.input_dim)
        if in_features != self.input_dim:
            raise ValueError(
                f"NnxCell.input_dim must be in_features={in_features} of the {kind}; "
                f"got {self.input_dim}"
            )
        if others := [
            ".".join(map(str, path))
            for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
        ]:
            raise ValueError(
                "NnxCell.make must return a module whose only state is nnx.Param; got "
                f"{kind} with {others}: keep state in the carry and do not pass keep_rngs"
            )

    def _module(self, rngs: Any) -> Any:
        nnx = _nnx()
        module = self.make(rngs)
        if not isinstance(module, nnx.RNNCellBase):
            raise TypeError(
                f"NnxCell.make must return an nnx.RNNCellBase; got {_name(module)}: for a linen "
                "cell use LinenCell"
            )
        return module

    def init(self, key: PRNGKey) -> Params:
        """Draw parameters as flax does, as an `nnx.State`; the key is consumed."""
        nnx = _nnx()
        return nnx.split(self._module(nnx.Rngs(key)))[1]

    def merge(self, params: Params) -> Any:
        """Return a new nnx module with a copy of these params."""
        return _nnx().merge(_skeleton(self)[0], params, copy=True)

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Carry:
        """Return flax's initial carry for inputs `[*batch_shape, D]`.

        A random `carry_init` always draws from seed 0.
        """
        nnx = _nnx()
        module = nnx.merge(*_skeleton(self), copy=True)
        return module.initialize_carry((*batch_shape, self.input_dim), nnx.Rngs(0))

    def __call__(
        self, params: Params, carry: Carry, x: Float[Array, "*batch D"]
    ) -> tuple[Carry, Any]:
        """Take one step; return `(carry, y)` with `y [*batch, H]`."""
        return self.merge(params)(carry, x)


class AsLinen(nn.RNNCellBase):
    """A `tbptt` cell as a flax linen recurrent cell; see `as_linen`."""

    cell: Any  # a Cell

    @nn.compact
    def __call__(self, carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        """Take one step; return `(carry, y)`."""
        return self.cell(self.param("weights", self.cell.init), carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Carry:
        """Return the initial carry for inputs `[*batch, D]`; `rng` is not used."""
        del rng
        name, D = type(self.cell).__name__, self.cell.input_dim
        if input_shape[-1] != D:
            raise ValueError(
                f"inputs must be [..., D] with D = {name}.input_dim = {D}; got shape {input_shape}"
            )
        return self.cell.initial_carry(tuple(input_shape[:-1]))

    @property
    def num_feature_axes(self) -> int:
        return 1


def as_linen(cell: Cell) -> nn.RNNCellBase:
    """Wrap a `tbptt` cell as a flax linen cell, for `nn.RNN`, `nn.Bidirectional` and linen models.

    The params of the cell are one linen parameter, a pytree named "weights". They are found at
    `variables["params"]["weights"]`, or at `variables["params"]["cell"]["weights"]` in an `nn.RNN`.

    Args:
      cell: an instance of a `Cell`; static.

    Returns:
      A linen module; equal cells give equal modules.

    Raises:
      TypeError: `cell` is not an instance of a `Cell`.
      ValueError: at the call, if the inputs are not `[..., input_dim]`.
    """
    if isinstance(cell, type) or not isinstance(cell, Cell):
        raise TypeError(
            f"cell must be an instance of a tbptt Cell, for example tbptt.LSTM(2, 8); got "
            f"{_name(cell)}: see tbptt.types.Cell"
        )
    return AsLinen(cell)


@functools.lru_cache(maxsize=256)
def _skeleton(cell: NnxCell) -> tuple[Any, Any]:
    """Return the module without its arrays: `(graphdef, State of shapes and dtypes)`."""
    nnx = _nnx()
    return nnx.split(nnx.eval_shape(lambda: cell._module(nnx.Rngs(0))))


def _check_common(cell: Any, module: Any, hashed: Any) -> None:
    """Check `input_dim`, the number of feature axes, and hashability."""
    kind, D = type(cell).__name__, cell.input_dim
    if isinstance(D, bool) or not isinstance(D, int) or D < 1:
        error = ValueError if type(D) is int else TypeError
        raise error(f"{kind}.input_dim must be a Python int of at least 1; got {D!r}")
    if (axes := module.num_feature_axes) != 1:
        name = type(module).__name__
        raise ValueError(
            f"{kind} supports cells with one feature axis, [*batch, D]; got {name} with {axes} "
            "feature axes: flatten them"
        )
    try:
        hash(hashed)
    except TypeError as error:
        raise TypeError(
            f"{kind} must be hashable; got {_name(hashed)}: {error}. Use tuples for lists"
        ) from error


def _name(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
