"""The problem of `benchmarks.streaming`: files of a synthetic signal, and one LSTM."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from tbptt.data import RecordingStream, forecast_batches, open_source

NAMES = ("a", "b", "c", "d")
BLOCK = 100_000  # rows written at once


class Sizes(NamedTuple):
    """Sizes of a run.

    steps:  length of the recording
    batch:  streams trained side by side
    chunk:  steps per update, k1 = k2
    hidden: units of the LSTM
    """

    steps: int
    batch: int
    chunk: int
    hidden: int


def write_file(path: Path, steps: int) -> Path:
    """Write a recording of four noisy waves as .npy, .parquet or .csv, by its suffix."""
    if path.suffix == ".npy":
        array = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(steps, len(NAMES))
        )
        for start, block in _blocks(steps):
            array[start : start + len(block)] = block
        array.flush()
        return path
    import polars as pl

    rows = path.with_suffix(".csv")  # the shortest digits that give the same float32
    with rows.open("wb") as file:
        for start, block in _blocks(steps):
            pl.DataFrame(block, list(NAMES)).write_csv(file, include_header=start == 0)
    if path.suffix == ".parquet":
        table = pl.scan_csv(rows, schema=dict.fromkeys(NAMES, pl.Float32))
        table.sink_parquet(path, row_group_size=BLOCK)
        rows.unlink()
    return path


def _blocks(steps: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, steps, BLOCK):
        rng = np.random.default_rng(start)
        t = np.arange(start, min(start + BLOCK, steps))[:, None]
        noise = rng.standard_normal((len(t), len(NAMES)))
        waves = np.sin(t * [0.05, 0.11, 0.23, 0.017]) + 0.1 * noise
        yield start, waves.astype(np.float32)


def open_stream(path: Path, sizes: Sizes) -> RecordingStream:
    """Open a file as a stream of forecasts of its first column, one step ahead."""
    source = open_source(path, dtype=jnp.result_type(float))
    make_batch = forecast_batches(source.names[0], (1,))
    return RecordingStream(source, sizes.batch, sizes.chunk, make_batch)


def make_trainer(
    sizes: Sizes, example: Any, unroll: tbptt.UnrollFn = tbptt.unroll
) -> Callable[[Iterable[Any]], tuple[Any, Any]]:
    """Make `train(batches) -> (params, last loss)`: TBPTT from the same start at each call.

    At most two updates are dispatched at a time, as in a run that reads its losses. Otherwise
    the batches of all dispatched updates would be in memory.
    """
    cell = tbptt.LSTM(len(NAMES), sizes.hidden)
    readout = nn.Dense(1, param_dtype=jnp.result_type(float))
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error, unroll=unroll)
    estimator = tbptt.truncated_bptt(loss_fn, sizes.chunk, sizes.chunk)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    params = tbptt.init_params(jax.random.key(0), cell, readout)
    step = tbptt.make_train_step(estimator, optimizer)

    def train(batches: Iterable[Any]) -> tuple[Any, Any]:
        carry = cell.initial_carry((sizes.batch,))
        state = tbptt.init_state(estimator, optimizer, params, carry, example)
        loss = None
        for batch in batches:
            before = loss
            state, metrics = step(state, batch)
            loss = metrics.loss
            jax.block_until_ready(before)
        return jax.block_until_ready((state.params, loss))

    return train
