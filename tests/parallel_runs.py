"""The program that tests/test_parallel.py starts: devices and processes must be set up before jax is imported.

python -m tests.parallel_runs one_process FOLDER                       8 virtual devices
python -m tests.parallel_runs two_processes FOLDER PORT INDEX          2 of them, 2 virtual devices each; after one_process
"""

import functools
import json
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from tbptt import Batch
from tbptt.checkpoints import Checkpoints, restore

CHUNK, UPDATES, B, D, H = 10, 50, 8, 2, 5
LSTM, MIN, SMALL = tbptt.LSTM(D, H), tbptt.MinLSTM(D, H), tbptt.Elman(D, 3)
READOUT = nn.Dense(1, param_dtype=float)  # what jax takes for a float: 64 bits where x64 is on
OPTIMIZER = optax.chain(tbptt.watched(optax.clip_by_global_norm(0.5)), optax.adam(1e-2))
# name -> cell, estimator of a loss function
CASES = {
    "full": (LSTM, tbptt.full_bptt),
    "full, a cell without a derived backward pass": (MIN, tbptt.full_bptt),
    "truncated": (LSTM, lambda loss_fn: tbptt.truncated_bptt(loss_fn, CHUNK, 25)),
    "windows in one call": (LSTM, lambda loss_fn: tbptt.truncated_bptt(loss_fn, CHUNK // 2, CHUNK // 2)),
    "adaptive": (SMALL, lambda loss_fn: tbptt.adaptive_bptt(loss_fn, CHUNK, [10, 20], 0.5, lags=6)),
    "rtrl": (SMALL, tbptt.rtrl),
    "snap": (SMALL, lambda loss_fn: tbptt.snap(loss_fn, 1)),
    "uoro": (SMALL, tbptt.uoro),
}


def stream(lanes: slice | range = range(B)) -> list[Batch]:
    """Fifty chunks whose lanes differ in weight, have gaps and begin again at places of their own: NumPy draws."""
    rng, T = np.random.default_rng(0), CHUNK * UPDATES
    xs, ys = rng.normal(size=(T, B, D)), rng.normal(size=(T, B, 1))
    weights, mask = rng.uniform(0, 2, (T, B)) * np.arange(1, B + 1), rng.uniform(size=(T, B)) < 0.9
    resets = rng.uniform(size=(T, B)) < 0.02
    floats = jnp.result_type(float)
    whole = Batch(xs.astype(floats), ys.astype(floats), weights.astype(floats), resets, mask)
    own = jax.tree.map(lambda a: a[:, lanes.start : lanes.stop], whole)
    return [jax.tree.map(lambda a, i=i: a[i : i + CHUNK], own) for i in range(0, T, CHUNK)]


def make_state(name: str, loss_fn, lanes: int, seed=0) -> tbptt.TrainState:
    cell, make = CASES[name]
    draw, go_on = jax.random.split(jax.random.key(seed))
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct((CHUNK, lanes, *a.shape[2:]), a.dtype), stream()[0])
    params = tbptt.init_params(draw, cell, READOUT)
    return tbptt.init_state(make(loss_fn), OPTIMIZER, params, cell.initial_carry((lanes,)), example, go_on)


def plain_loss(name: str):
    return tbptt.sequence_loss(CASES[name][0], READOUT, tbptt.squared_error)


def step_of(name: str, loss_fn):
    return tbptt.make_train_step(CASES[name][1](loss_fn), OPTIMIZER)


def train(step, state, batches) -> tuple[tbptt.TrainState, list[float]]:
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(metrics.loss)
    return state, [float(np.asarray(loss)) for loss in losses]


def on_one_device(name: str) -> list[float]:
    """Without a line of tbptt.parallel."""
    return train(step_of(name, plain_loss(name)), make_state(name, plain_loss(name), B), stream())[1]


class Parallel:
    """A run on a row of devices."""

    def __init__(self, name: str, devices: int | None):
        self.mesh = tbptt.lane_mesh(devices)
        self.loss_fn = tbptt.over_lanes(plain_loss(name), CASES[name][0].initial_carry, self.mesh)
        self.make_state = functools.partial(make_state, name, self.loss_fn)
        self.state = tbptt.init_lanes(self.make_state, B, self.mesh)
        self.step = tbptt.make_parallel_step(step_of(name, self.loss_fn), self.state)
        self.own = tbptt.own_lanes(B, self.mesh)

    def batches(self) -> list[Batch]:
        return [tbptt.put_lanes(batch, self.mesh) for batch in stream(self.own)]

    def train(self, start: int = 0, stop: int = UPDATES) -> list[float]:
        self.state, losses = train(self.step, self.state, self.batches()[start:stop])
        return losses

    def save(self, folder: Path, step: int) -> None:
        """All processes write, each what it holds."""
        with Checkpoints(folder, {}, keep=10) as checkpoints:
            checkpoints.save(step, self.state, step)

    def restore(self, folder: Path, step: int) -> None:
        """Reads every leaf to where this run has it, wherever it lay when it was saved."""
        self.state = restore(folder / f"step_{step:09d}", self.state, {}).state


def collectives(program: str) -> list[tuple[str, bool, int]]:
    """(operation, whether inside a loop, numbers it moves) of every collective of a compiled program."""
    text, calls, found, here = {}, {}, [], None
    for line in program.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        here = head[1] if head else here
        text.setdefault(here, []).append(line)
    for name, lines in text.items():
        calls[name] = {ref for line in lines for ref in re.findall(r"%([\w.\-]+)", line) if ref in text and ref != name}
    looped = {body for lines in text.values() for line in lines for body in re.findall(r"body=%?([\w.\-]+)", line)}
    while more := {called for name in looped for called in calls[name]} - looped:
        looped |= more
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    for name, lines in text.items():
        for line in lines:
            if match := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
                shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
                size = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
                found.append((match[2], name in looped, size))
    return found


def compiled(step, state, batch) -> list[tuple[str, bool, int]]:
    return collectives(step.lower(state, batch).compile().as_text())


def left_to_xla(name: str) -> list[tuple[str, bool, int]]:
    """The collectives of a step that is given sharded arguments and no `over_lanes`."""
    run = Parallel(name, 8)
    step = tbptt.make_parallel_step(step_of(name, plain_loss(name)), run.state)
    return compiled(step, run.state, run.batches()[0])


def seeds_apart_and_together(devices: int | None) -> dict:
    """Three seeds with rates of their own, the last of which blows up: alone, and by vmap."""
    name, rates, chunks = "truncated", [1e-2, 3e-2, jnp.inf], stream()[:8]
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.inject_hyperparams(optax.adam)(learning_rate=1e-2))
    loss_fn, cell = plain_loss(name), LSTM
    if devices is not None:
        mesh = tbptt.lane_mesh(devices)
        loss_fn = tbptt.over_lanes(loss_fn, cell.initial_carry, mesh)
        chunks = [tbptt.put_lanes(batch, mesh) for batch in chunks]
    estimator = CASES[name][1](loss_fn)

    def make(key, lanes=B):
        example = jax.eval_shape(
            lambda: jax.tree.map(lambda a: jnp.zeros((CHUNK, lanes, *a.shape[2:]), a.dtype), chunks[0])
        )
        params = tbptt.init_params(key, cell, READOUT)
        return tbptt.init_state(estimator, optimizer, params, cell.initial_carry((lanes,)), example)

    keys = jax.random.split(jax.random.key(7), len(rates))

    def together(lanes):
        states = tbptt.init_seeds(functools.partial(make, lanes=lanes), keys)
        return optax.tree_utils.tree_set(states, learning_rate=jnp.asarray(rates))

    one = tbptt.make_train_step(estimator, optimizer)
    if devices is None:
        states, step = together(B), tbptt.over_seeds(one)
    else:
        states = tbptt.init_lanes(together, B, mesh)
        step = tbptt.make_parallel_step(tbptt.over_seeds(one), states)
    losses = []
    for batch in chunks:
        states, metrics = step(states, batch)
        losses.append(np.asarray(metrics.loss).tolist())
    alone = []
    for key, rate in zip(keys, rates, strict=True):
        state = optax.tree_utils.tree_set(make(key), learning_rate=jnp.asarray(rate))
        alone.append(train(one, state, chunks)[1] if devices is None else None)
    return {"together": np.transpose(losses).tolist(), "alone": alone}


def one_process(folder: Path) -> dict:
    found: dict = {"losses": {}, "collectives": {}, "left to XLA": {}, "refused": [], "resumed": resumed(folder)}
    for name in CASES:
        run = Parallel(name, 8)
        found["collectives"][name] = compiled(run.step, run.state, run.batches()[0])
        found["losses"][name] = {"one device": on_one_device(name), "devices": run.train()}
    for name in ("full", "full, a cell without a derived backward pass"):
        found["left to XLA"][name] = left_to_xla(name)
    with jax.enable_x64(True):
        run = Parallel("truncated", 8)
        found["losses"]["truncated, float64"] = {"one device": on_one_device("truncated"), "devices": run.train()}
    for lanes in (12, 4):
        try:
            tbptt.put_lanes(
                jax.tree.map(lambda a, n=lanes: np.repeat(a, 2, axis=1)[:, :n], stream()[0]), tbptt.lane_mesh(8)
            )
        except ValueError as error:
            found["refused"].append(str(error))
    found["seeds"] = {"one device": seeds_apart_and_together(None), "devices": seeds_apart_and_together(4)}
    return found


def resumed(folder: Path) -> list[float]:
    """Fifty updates on 1, then 8, then 2 devices."""
    losses = []
    for devices, start, stop in ((1, 0, 15), (8, 15, 30), (2, 30, UPDATES)):
        run = Parallel("truncated", devices)
        if start:
            run.restore(folder / "saved", start)
        losses += run.train(start, stop)
        run.save(folder / "saved", stop)
    return losses


def two_processes(folder: Path, port: str, index: str) -> dict:
    started = tbptt.start_processes(f"127.0.0.1:{port}", 2, int(index), timeout=120)
    run = Parallel("truncated", None)
    found = {"started": started, "own": [run.own.start, run.own.stop], "losses": run.train()}
    run.restore(folder / "saved", 15)  # one device has written it
    found["resumed"] = run.train(15, 30)
    run.save(folder / "saved by two", 30)
    run = Parallel("truncated", None)
    run.restore(folder / "saved by two", 30)
    found["resumed"] += run.train(30)
    with jax.enable_x64(True):
        found["losses, float64"] = Parallel("truncated", None).train()
    return found


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    found = {"one_process": one_process, "two_processes": two_processes}[what](Path(folder), *rest)
    (Path(folder) / f"{'-'.join([what, *rest[1:]])}.json").write_text(json.dumps(found))
