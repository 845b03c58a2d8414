"""Back-propagation through time in JAX, full and truncated."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from tbptt import data as data
from tbptt import diagnostics as diagnostics
from tbptt.cells import GRU as GRU
from tbptt.cells import LSTM as LSTM
from tbptt.cells import DiagonalLinear as DiagonalLinear
from tbptt.cells import Elman as Elman
from tbptt.cells import GRUResetBefore as GRUResetBefore
from tbptt.cells import LocalGRU as LocalGRU
from tbptt.cells import LocalLSTM as LocalLSTM
from tbptt.cells import MinGRU as MinGRU
from tbptt.cells import MinLSTM as MinLSTM
from tbptt.cells import Stack as Stack
from tbptt.clipping import ClippedCell as ClippedCell
from tbptt.clipping import clip_by_global_norm as clip_by_global_norm
from tbptt.clipping import clip_cotangent as clip_cotangent
from tbptt.clipping import global_norm as global_norm
from tbptt.clipping import guarded as guarded
from tbptt.clipping import leaves_named as leaves_named
from tbptt.clipping import raise_if_non_finite as raise_if_non_finite
from tbptt.clipping import shrink_non_finite as shrink_non_finite
from tbptt.clipping import skip_non_finite as skip_non_finite
from tbptt.clipping import stop_at_non_finite as stop_at_non_finite
from tbptt.clipping import watched as watched
from tbptt.diagnostics import compare_estimators as compare_estimators
from tbptt.diagnostics import gradient_by_lag as gradient_by_lag
from tbptt.estimators import AwdLengths as AwdLengths
from tbptt.estimators import ConstantRate as ConstantRate
from tbptt.estimators import HeavyTail as HeavyTail
from tbptt.estimators import LogUniformLengths as LogUniformLengths
from tbptt.estimators import WindowChoice as WindowChoice
from tbptt.estimators import adaptive_bptt as adaptive_bptt
from tbptt.estimators import choose_window as choose_window
from tbptt.estimators import explain_choice as explain_choice
from tbptt.estimators import full_bptt as full_bptt
from tbptt.estimators import random_window_bptt as random_window_bptt
from tbptt.estimators import randomized_bptt as randomized_bptt
from tbptt.estimators import rtrl as rtrl
from tbptt.estimators import snap as snap
from tbptt.estimators import sparse_rtrl as sparse_rtrl
from tbptt.estimators import truncated_bptt as truncated_bptt
from tbptt.estimators import uoro as uoro
from tbptt.interop import LinenCell as LinenCell
from tbptt.interop import NnxCell as NnxCell
from tbptt.interop import as_linen as as_linen
from tbptt.kernels import fused_unroll as fused_unroll
from tbptt.newton import NewtonReport as NewtonReport
from tbptt.newton import newton_unroll as newton_unroll
from tbptt.newton import quasi_newton_unroll as quasi_newton_unroll
from tbptt.objectives import SequenceParams as SequenceParams
from tbptt.objectives import init_params as init_params
from tbptt.objectives import memory_plan as memory_plan
from tbptt.objectives import predict as predict
from tbptt.objectives import sequence_loss as sequence_loss
from tbptt.objectives import squared_error as squared_error
from tbptt.omega import norm_preserving as norm_preserving
from tbptt.parallel import init_lanes as init_lanes
from tbptt.parallel import init_seeds as init_seeds
from tbptt.parallel import lane_mesh as lane_mesh
from tbptt.parallel import lane_shardings as lane_shardings
from tbptt.parallel import make_parallel_step as make_parallel_step
from tbptt.parallel import over_lanes as over_lanes
from tbptt.parallel import over_seeds as over_seeds
from tbptt.parallel import own_lanes as own_lanes
from tbptt.parallel import put_lanes as put_lanes
from tbptt.parallel import split_cpu as split_cpu
from tbptt.parallel import start_processes as start_processes
from tbptt.parallel_scan import parallel_unroll as parallel_unroll
from tbptt.stochastic import SeededTargets as SeededTargets
from tbptt.stochastic import stochastic_loss as stochastic_loss
from tbptt.stochastic import with_seeds as with_seeds
from tbptt.training import Metrics as Metrics
from tbptt.training import TrainState as TrainState
from tbptt.training import init_state as init_state
from tbptt.training import make_train_epoch as make_train_epoch
from tbptt.training import make_train_step as make_train_step
from tbptt.training import rewind as rewind
from tbptt.types import AffineCell as AffineCell
from tbptt.types import Batch as Batch
from tbptt.types import Cell as Cell
from tbptt.types import Estimator as Estimator
from tbptt.types import Gradient as Gradient
from tbptt.types import LossFn as LossFn
from tbptt.unroll import CarriesOnly as CarriesOnly
from tbptt.unroll import MemoryBudget as MemoryBudget
from tbptt.unroll import Segments as Segments
from tbptt.unroll import plain_unroll as plain_unroll
from tbptt.unroll import unroll as unroll

__all__ = [
    "AffineCell",
    "AwdLengths",
    "Batch",
    "CarriesOnly",
    "Cell",
    "ClippedCell",
    "ConstantRate",
    "DiagonalLinear",
    "Elman",
    "Estimator",
    "GRU",
    "GRUResetBefore",
    "Gradient",
    "HeavyTail",
    "LSTM",
    "LinenCell",
    "LocalGRU",
    "LocalLSTM",
    "LogUniformLengths",
    "LossFn",
    "MemoryBudget",
    "Metrics",
    "MinGRU",
    "MinLSTM",
    "NewtonReport",
    "NnxCell",
    "SeededTargets",
    "Segments",
    "SequenceParams",
    "Stack",
    "TrainState",
    "WindowChoice",
    "adaptive_bptt",
    "as_linen",
    "choose_window",
    "clip_by_global_norm",
    "clip_cotangent",
    "compare_estimators",
    "data",
    "diagnostics",
    "explain_choice",
    "full_bptt",
    "fused_unroll",
    "global_norm",
    "gradient_by_lag",
    "guarded",
    "init_lanes",
    "init_params",
    "init_seeds",
    "init_state",
    "lane_mesh",
    "lane_shardings",
    "leaves_named",
    "make_parallel_step",
    "make_train_epoch",
    "make_train_step",
    "memory_plan",
    "newton_unroll",
    "norm_preserving",
    "over_lanes",
    "over_seeds",
    "own_lanes",
    "parallel_unroll",
    "plain_unroll",
    "predict",
    "put_lanes",
    "quasi_newton_unroll",
    "raise_if_non_finite",
    "random_window_bptt",
    "randomized_bptt",
    "rewind",
    "rtrl",
    "sequence_loss",
    "shrink_non_finite",
    "skip_non_finite",
    "snap",
    "sparse_rtrl",
    "split_cpu",
    "squared_error",
    "start_processes",
    "stochastic_loss",
    "stop_at_non_finite",
    "truncated_bptt",
    "unroll",
    "uoro",
    "watched",
    "with_seeds",
]

try:
    __version__ = _version("tbptt")
except _PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
