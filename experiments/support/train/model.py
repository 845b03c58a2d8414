"""The model of a run, built from its settings alone: by training, and again by whoever uses the result."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

import tbptt
from experiments.support.train.task import Characters, Task

CELLS = {
    "lstm": tbptt.LSTM,
    "gru": tbptt.GRU,
    "elman": tbptt.Elman,
    "minlstm": tbptt.MinLSTM,
    "mingru": tbptt.MinGRU,
}


class Model(NamedTuple):
    """A cell (a Stack of several layers), its linear readout, and an embedding if the inputs are symbols."""

    cell: Any
    readout: nn.Module
    embedding: nn.Module | None


def make_model(task: Task, cell: str, hidden: int, layers: int = 1) -> Model:
    """Builds the model.

    Args:
        task: what is predicted; gives the sizes of input and output.
        cell: a name in CELLS.
        hidden: units of every layer.
        layers: cells on top of each other.

    Raises:
        ValueError: no such cell, or a size below 1.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
    if hidden < 1 or layers < 1:
        raise ValueError(f"hidden and layers must be at least 1; got hidden={hidden}, layers={layers}")
    symbols = isinstance(task, Characters)
    width = hidden if symbols else len(task.columns)
    cells = tuple(CELLS[cell](width if layer == 0 else hidden, hidden) for layer in range(layers))
    embedding = nn.Embed(len(task.vocabulary), width) if symbols else None
    return Model(cells[0] if layers == 1 else tbptt.Stack(cells), nn.Dense(task.outputs), embedding)


def init_params(key: jax.Array, model: Model) -> tbptt.SequenceParams:
    """Draws the model's parameters. The key is consumed."""
    return tbptt.init_params(key, model.cell, model.readout, model.embedding)
