"""Back-propagation through time in JAX, full and truncated.

A cell is a pure function. An unroll function runs it through time, a loss function sums the losses
of its outputs, an estimator differentiates the loss function through time, and a train step applies
the estimated gradient:

- cells: `Elman`, `GRU`, `LSTM`, `Stack`, ...; your own flax cells by `LinenCell`, `NnxCell`;
- unroll functions: `unroll`, `plain_unroll`, `parallel_unroll`, `newton_unroll`, and those of
  `backends`;
- loss functions: `sequence_loss`, or any `(params, carry, batch) -> (loss_sum, carry)`;
- estimators: `full_bptt`, `truncated_bptt`, `adaptive_bptt`, `rtrl`, ...;
- training: `fit`; `init_state`, `make_train_step`, `make_train_epoch` for loops of your own.

More is in the subpackages `backends`, `cells`, `checkpoints`, `data`, `diagnostics`, `distributed`,
`estimators`, `losses` and `optim`, which are imported when they are first used.

Example:
  >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, tbptt
  >>> cell, readout = tbptt.LSTM(input_dim=1, hidden_dim=16), nn.Dense(1)
  >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
  >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
  >>> estimator = tbptt.truncated_bptt(loss_fn, k1=10, k2=20)
  >>> optimizer = optax.chain(tbptt.optim.clip_by_global_norm(1.0), optax.adam(1e-2))
  >>> x = jnp.sin(jnp.arange(101.0) / 5)[:, None, None]                # [T, B, D]
  >>> batch = tbptt.Batch(inputs=x[:-1], targets=x[1:])
  >>> state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry((1,)), batch)
  >>> epoch = tbptt.make_train_epoch(estimator, optimizer, chunk=10)   # an update every 10 steps
  >>> state, metrics = epoch(state, batch)
  >>> metrics.loss.shape
  (10,)
"""

import importlib as _importlib
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from tbptt.cells.elman import Elman as Elman
from tbptt.cells.flax_interop import LinenCell as LinenCell
from tbptt.cells.flax_interop import NnxCell as NnxCell
from tbptt.cells.gru import GRU as GRU
from tbptt.cells.linear import DiagonalLinear as DiagonalLinear
from tbptt.cells.linear import MinGRU as MinGRU
from tbptt.cells.linear import MinLSTM as MinLSTM
from tbptt.cells.lstm import LSTM as LSTM
from tbptt.cells.wrappers import ClippedCell as ClippedCell
from tbptt.cells.wrappers import Stack as Stack
from tbptt.estimators import adaptive_bptt as adaptive_bptt
from tbptt.estimators import choose_window as choose_window
from tbptt.estimators import full_bptt as full_bptt
from tbptt.estimators import randomized_bptt as randomized_bptt
from tbptt.estimators import rtrl as rtrl
from tbptt.estimators import snap as snap
from tbptt.estimators import truncated_bptt as truncated_bptt
from tbptt.estimators import uoro as uoro
from tbptt.evaluation import make_evaluate as make_evaluate
from tbptt.fit import fit as fit
from tbptt.fit import load as load
from tbptt.fit import save as save
from tbptt.fit import training_updates as training_updates
from tbptt.losses.sequence import SequenceParams as SequenceParams
from tbptt.losses.sequence import init_params as init_params
from tbptt.losses.sequence import memory_plan as memory_plan
from tbptt.losses.sequence import predict as predict
from tbptt.losses.sequence import sequence_loss as sequence_loss
from tbptt.losses.sequence import squared_error as squared_error
from tbptt.training import Metrics as Metrics
from tbptt.training import TrainState as TrainState
from tbptt.training import init_state as init_state
from tbptt.training import make_train_epoch as make_train_epoch
from tbptt.training import make_train_step as make_train_step
from tbptt.training import rewind as rewind
from tbptt.types import Batch as Batch
from tbptt.types import Cell as Cell
from tbptt.types import Estimator as Estimator
from tbptt.types import Gradient as Gradient
from tbptt.types import LossFn as LossFn
from tbptt.types import UnrollFn as UnrollFn
from tbptt.unroll import CarriesOnly as CarriesOnly
from tbptt.unroll import MemoryBudget as MemoryBudget
from tbptt.unroll import Segments as Segments
from tbptt.unroll import plain_unroll as plain_unroll
from tbptt.unroll import unroll as unroll
from tbptt.unroll.associative import parallel_unroll as parallel_unroll
from tbptt.unroll.newton import newton_unroll as newton_unroll

if _TYPE_CHECKING:
    from tbptt import backends as backends
    from tbptt import cells as cells
    from tbptt import checkpoints as checkpoints
    from tbptt import data as data
    from tbptt import diagnostics as diagnostics
    from tbptt import distributed as distributed
    from tbptt import estimators as estimators
    from tbptt import losses as losses
    from tbptt import optim as optim

__all__ = [
    "Batch",
    "CarriesOnly",
    "Cell",
    "ClippedCell",
    "DiagonalLinear",
    "Elman",
    "Estimator",
    "GRU",
    "Gradient",
    "LSTM",
    "LinenCell",
    "LossFn",
    "MemoryBudget",
    "Metrics",
    "MinGRU",
    "MinLSTM",
    "NnxCell",
    "Segments",
    "SequenceParams",
    "Stack",
    "TrainState",
    "UnrollFn",
    "adaptive_bptt",
    "choose_window",
    "fit",
    "full_bptt",
    "init_params",
    "init_state",
    "load",
    "make_evaluate",
    "make_train_epoch",
    "make_train_step",
    "memory_plan",
    "newton_unroll",
    "parallel_unroll",
    "plain_unroll",
    "predict",
    "randomized_bptt",
    "rewind",
    "rtrl",
    "save",
    "sequence_loss",
    "snap",
    "squared_error",
    "training_updates",
    "truncated_bptt",
    "unroll",
    "uoro",
]

_SUBPACKAGES = (
    "backends",
    "cells",
    "checkpoints",
    "data",
    "diagnostics",
    "distributed",
    "estimators",
    "losses",
    "optim",
)


def __getattr__(name: str) -> _Any:
    if name in _SUBPACKAGES:
        return _importlib.import_module(f"tbptt.{name}")
    raise AttributeError(f"module 'tbptt' has no attribute {name!r}; see dir(tbptt)")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, "__version__"])


try:
    __version__ = _version("tbptt")
except _PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
