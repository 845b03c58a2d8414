"""Build the model of a run from its settings, for training and for prediction."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

import tbptt
from experiments.support.train.linear import Linear
from experiments.support.train.task import Characters, Task

CELLS = {
    "lstm": tbptt.LSTM,
    "gru": tbptt.GRU,
    "elman": tbptt.Elman,
    "minlstm": tbptt.MinLSTM,
    "mingru": tbptt.MinGRU,
}


class Model(NamedTuple):
    """The model of a run.

    cell:      the cell; a Stack if there are several layers
    readout:   the dense layer on the output of the cell
    embedding: the embedding of symbols; None for numbers
    unroll:    the function that runs the cell through time
    linear:    the linear forecast to which the outputs are added; None without it
    """

    cell: Any
    readout: nn.Module
    embedding: nn.Module | None
    unroll: tbptt.UnrollFn
    linear: Linear | None = None


def make_model(
    task: Task,
    cell: str,
    hidden: int,
    layers: int = 1,
    unroll: tbptt.UnrollFn = tbptt.unroll,
    linear: Linear | None = None,
    longest_lag: int | None = None,
) -> Model:
    """Build the model.

    With a linear forecast, its values are further inputs of the network. The kernel of the readout
    is then 0 before training, so that the first prediction is the linear forecast.

    Args:
        task: the task; determines the sizes of input and output.
        cell: a name in CELLS.
        hidden: units of every layer.
        layers: number of stacked layers.
        unroll: the function that runs the cell through time.
        linear: the linear forecast, or None.
        longest_lag: for an LSTM or a GRU, as their argument of this name.

    Raises:
        ValueError: `cell` is unknown, or a size is below 1.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
    if hidden < 1 or layers < 1:
        raise ValueError(
            f"hidden and layers must be at least 1; got hidden={hidden}, layers={layers}"
        )
    symbols = isinstance(task, Characters)
    width = hidden if symbols else len(task.columns) + (linear.outputs if linear else 0)
    more = {} if longest_lag is None else {"longest_lag": longest_lag}
    cells = tuple(
        CELLS[cell](width if layer == 0 else hidden, hidden, **more) for layer in range(layers)
    )
    embedding = nn.Embed(len(task.vocabulary), width) if symbols else None
    readout = nn.Dense(task.outputs)
    if linear is not None:
        readout = nn.Dense(task.outputs, kernel_init=nn.initializers.zeros)
    stack = cells[0] if layers == 1 else tbptt.Stack(cells)
    return Model(stack, readout, embedding, unroll, linear)


def init_params(key: jax.Array, model: Model) -> tbptt.SequenceParams:
    """Draw the parameters of the model. The key is consumed."""
    return tbptt.init_params(key, model.cell, model.readout, model.embedding)
